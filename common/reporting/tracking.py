"""The sections about tracking: the videos there are, what was counted in the newest, the scores,
and pictures of how a tracker decides."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import recorded_files
from common.reporting import charts
from common.reporting.blocks import (
    Block,
    Card,
    Note,
    Section,
    Table,
    dig,
    finite,
    listed,
    number,
    pictures,
    text,
)

Report = Mapping[str, Any]
Columns = Mapping[str, tuple[tuple[str, ...], int]]  # heading -> keys and digits of the number

TRACK_COMMAND = "python phase3_tracking/video_detector.py"
EVALUATE_COMMAND = "python phase3_tracking/evaluate_tracking.py"
EXPLAIN_COMMAND = "python phase3_tracking/explain_tracking.py"
EXPLAINED = Path("tracking_explained", "explained.json")  # in metrics/, its pictures beside it
EXPLAINING = {
    "1_iou.png": "Two boxes of consecutive frames, their intersection and union.",
    "2_assignment.png": "A crowded frame: costs, what the Hungarian method chooses, and greedy.",
    "3_prediction.png": "A track in six frames: predicted, with its uncertainty, and corrected.",
    "4_low_score.png": "A weak detection that continues a track, and what happens without it.",
    "5_camera_motion.png": "How far boxes lie from where they were predicted, and their median.",
}
HEATMAP, CONTACT = ".heatmap.png", ".contact.jpg"
NO_REPORTS = (".tracks.json", ".coco.json")  # tracks: large, and not all of them objects
CLASS_COLUMNS: Columns = {
    "Tracks": (("unique_tracks",), 0),
    "Boxes": (("boxes",), 0),
    "At a time": (("mean_at_a_time",), 2),
    "At most": (("max_at_a_time",), 0),
}
LINE_COLUMNS: Columns = {
    "Left to right": (("left_to_right", "total"), 0),
    "Right to left": (("right_to_left", "total"), 0),
    "Net": (("net",), 0),
}
ZONE_COLUMNS: Columns = {
    "Entries": (("entries", "total"), 0),
    "Appeared inside": (("appeared_inside",), 0),
    "Exits": (("exits", "total"), 0),
    "Vanished inside": (("vanished_inside",), 0),
    "Inside at the end": (("occupancy",), 0),
    "Inside at most": (("max_occupancy",), 0),
    "Median stay, s": (("dwell_median_s",), 1),
    "Longest stay, s": (("dwell_max_s",), 1),
}


def report_files(folder: Path) -> list[Path]:
    """The reports of videos in a folder, which also holds tracks as JSON."""
    return [path for path in folder.glob("*.json") if not path.name.endswith(NO_REPORTS)]


def cards(evaluation: Report | None, videos: Mapping[str, Report]) -> list[Card]:
    found = []
    combined = dig(evaluation, "combined")
    if finite(dig(combined, "idf1")) is not None:
        mota, hota = number(dig(combined, "mota"), 3), number(dig(combined, "hota"), 3)
        switches = number(dig(combined, "id_switches"), 0)
        word = "switch" if switches == "1" else "switches"
        note = f"MOTA {mota}, HOTA {hota}, {switches} identity {word}"
        found.append(Card("Tracking IDF1", number(dig(combined, "idf1"), 3), note))
    newest = next(iter(videos.values()), None)
    if newest is not None and finite(dig(newest, "fps_end_to_end")) is not None:
        frames = number(dig(newest, "frames_written"), 0)
        device = text(dig(newest, "environment", "device_name"))
        note = f"frames per second from file to file over {frames} frames, on {device}"
        found.append(Card("Video, end to end", number(newest["fps_end_to_end"], 1), note))
    return found


def section(evaluation: Report | None, videos: Mapping[str, Report], folder: Path) -> Section:
    """`videos` holds the reports of video_detector by name, the newest first."""
    title = "Tracking"
    reading = (
        "Each object keeps the number and colour it was given when it first appeared; a number "
        "that changes on the same object is an identity switch. IDF1 is the share of boxes under "
        "the right identity, MOTA also counts misses and false alarms, HOTA balances both."
    )
    if not videos and evaluation is None:
        return Section(title, reading, missing=TRACK_COMMAND)
    blocks: list[Block] = []
    for name in list(videos)[:1]:
        blocks += _pictures_of(name, videos[name], folder)
    if videos:
        blocks += _video_tables(videos)
        blocks += _counts_of_newest(videos)
    else:
        blocks.append(Note(f"No video has been made yet. Make one with: {TRACK_COMMAND}"))
    if evaluation is None:
        blocks.append(Note(f"Not scored yet. Score it with: {EVALUATE_COMMAND}"))
    else:
        blocks.append(_score_table(evaluation))
    return Section(title, reading, blocks)


def explained_section(report: Report | None, metrics: Path) -> Section:
    """`report` is explained.json, with its pictures in a folder of `metrics`."""
    title = "How a tracker decides"
    reading = (
        "Moments of one video, chosen because they show a step of the tracker well. What the video "
        "does not show has no picture."
    )
    names = dig(report, "pictures")
    if not isinstance(names, list):
        return Section(title, reading, missing=EXPLAIN_COMMAND)
    blocks: list[Block] = []
    for name, caption in EXPLAINING.items():
        if name in names:
            shown = charts.picture(metrics / EXPLAINED.parent / name)
            blocks += pictures([shown], caption, is_wide=True)
    return Section(title, reading, blocks)


def _pictures_of(name: str, video: Report, folder: Path) -> list[Block]:
    """Of the files beside a report those that are its own, and a note for each other one."""
    blocks: list[Block] = []
    for suffix, caption in (
        (".mp4", f"Frames at equal distances through {name}.mp4."),
        (CONTACT, f"Frames from all over {name}, each with its time."),
        (HEATMAP, f"Where objects were in {name}, and for how long."),
    ):
        path = folder / f"{name}{suffix}"
        if path.is_file() and not recorded_files.tells_of(video, path):
            blocks.append(Note(f"{path.name} is not of the run that {name}.json tells of."))
            continue
        shown = charts.video_strip(path) if suffix == ".mp4" else [charts.picture(path)]
        blocks += pictures(shown, caption)
    return blocks


def _video_tables(videos: Mapping[str, Report]) -> list[Block]:
    rows = tuple(
        (
            text(name),
            f"{number(dig(video, 'frames_written'), 0)} of {number(dig(video, 'frames_read'), 0)}"
            + (", source cut short" if dig(video, "truncated") else "")
            + ("" if dig(video, "complete") is not False else ", stopped early"),
            number(dig(video, "fps_end_to_end"), 1),
            number(dig(video, "tracks"), 0),
            _counts(dig(video, "class_counts")),
        )
        for name, video in videos.items()
    )
    columns = ("Video", "Frames written", "Frames/s", "Tracks", "Objects by class")
    stages = ("decode", "detect", "track", "draw", "encode")
    times = tuple(
        (text(name), *(number(dig(video, "stage_ms", stage), 1) for stage in stages))
        for name, video in videos.items()
    )
    return [Table(columns, rows), Table(("Milliseconds per frame", *stages), times)]


def _counts_of_newest(videos: Mapping[str, Report]) -> list[Block]:
    """Tables of the newest video: by class, and at its lines and zones."""
    name, video = next(iter(videos.items()))
    statistics, regions = dig(video, "statistics"), dig(video, "regions")
    classes = listed(dig(statistics, "classes"))
    if len(classes) > 1 and isinstance(statistics, Mapping):
        classes.append({**statistics, "class": "all together"})
    tables = [
        _table(f"Class in {name}", "class", CLASS_COLUMNS, classes),
        _table("Line", "name", LINE_COLUMNS, listed(dig(regions, "lines"))),
        _table("Zone", "name", ZONE_COLUMNS, listed(dig(regions, "zones"))),
    ]
    return [table for table in tables if table.rows]


def _table(heading: str, key: str, columns: Columns, entries: Sequence[Report]) -> Table:
    """A row for each entry, called by its `key`."""
    rows = tuple(
        (
            text(dig(entry, key)),
            *(number(dig(entry, *keys), digits) for keys, digits in columns.values()),
        )
        for entry in entries
    )
    return Table((heading, *columns), rows)


def _counts(counts: Any) -> str:
    pairs = counts.items() if isinstance(counts, Mapping) else ()
    return text(", ".join(f"{number(count, 0)} {name}" for name, count in pairs))


def _score_table(evaluation: Report) -> Table:
    groups = listed(dig(evaluation, "sequences"))
    if len(groups) != 1:
        combined = dig(evaluation, "combined")
        scores = combined if isinstance(combined, Mapping) else {}
        groups.append({**scores, "name": "all together"})
    groups += listed(dig(evaluation, "classes"))
    rows = tuple(
        (
            text(dig(scores, "name")),
            *(number(dig(scores, key), 3) for key in ("idf1", "mota", "hota", "deta", "assa")),
            *(number(dig(scores, key), 0) for key in ("id_switches", "fp", "fn")),
        )
        for scores in groups
    )
    columns = (
        *("Scored", "IDF1", "MOTA", "HOTA", "DetA", "AssA"),
        *("Id switches", "False boxes", "Missed boxes"),
    )
    return Table(columns, rows)
