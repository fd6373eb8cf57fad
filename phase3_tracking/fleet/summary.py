"""All videos of a fleet on one page, fleet.html, and in fleet.json."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import artifacts
from common.reporting.blocks import Block, Card, Note, Section, Table, number, text
from phase3_tracking.fleet.manifest import DONE, FAILED, Row

JSON_FILE, PAGE_FILE = "fleet.json", "fleet.html"
SHOWN = 500  # rows of a table: a page of a million videos would open on no phone

Rows = Sequence[Row]


def contents(
    rows: Rows, device: str, inputs: Sequence[Path], settings: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    """What fleet.json holds.

    Args:
        rows: of the manifest, one for each video.
        device: "cpu", "cuda:0", ...: where the tasks ran; "none" where there was nothing to do.
        inputs: the model.
        seconds: that this run took.
    """
    classes: Counter[str] = Counter()
    for row in rows:
        classes.update(row.get("class_counts", {}))
    return {
        **artifacts.provenance("video_fleet", device, inputs),
        "videos": len(rows),
        "done": sum(row["state"] == DONE for row in rows),
        "failed": sum(row["state"] == FAILED for row in rows),
        "frames": sum(row.get("frames", 0) for row in rows),
        "tracks": sum(row.get("tracks", 0) for row in rows),
        "class_counts": dict(classes.most_common()),
        "task_seconds": sum(row.get("seconds", 0.0) for row in rows),
        "run_seconds": seconds,
        "settings": dict(settings),
        "rows": list(rows),
    }


def write(folder: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Writes both files; their paths."""
    from common.report import render_html

    page, numbers = folder / PAGE_FILE, folder / JSON_FILE
    artifacts.write_text(page, render_html(_page(summary)))
    artifacts.write_json(numbers, summary)
    return [page, numbers]


def _page(summary: Mapping[str, Any]) -> dict[str, Any]:
    """For common/report.py."""
    rows: Rows = summary["rows"]
    failed = [row for row in rows if row["state"] == FAILED]
    done = [row for row in rows if row["state"] == DONE]
    ended = summary["created"].replace("T", " ").removesuffix("+00:00")
    open_rows = len(rows) - len(done) - len(failed)
    notices = [f"{len(failed)} of {len(rows)} videos failed."] if failed else []
    if open_rows:
        notices.append(f"{open_rows} of {len(rows)} videos have not been tracked yet.")
    sections = [_failed(failed)] if failed else []
    return {
        "title": "Video fleet",
        "subtitle": f"{summary['command']}; ended {ended} UTC",
        "notices": notices,
        "cards": _cards(summary),
        "sections": [*sections, _done(done), _classes(summary["class_counts"])],
    }


def _cards(summary: Mapping[str, Any]) -> list[Card]:
    worked = f"in {number(summary['task_seconds'], 0)} seconds of tasks"
    cut = sum(bool(row.get("truncated")) for row in summary["rows"])
    note = f"of {summary['videos']}" + (f", {cut} of them cut short" if cut else "")
    return [
        Card("Videos done", number(summary["done"], 0), note),
        Card("Failed", number(summary["failed"], 0), f"of {summary['videos']}"),
        Card("Frames", number(summary["frames"], 0), worked),
        Card("Tracks", number(summary["tracks"], 0), "an object in two videos counts twice"),
    ]


def _failed(rows: Rows) -> Section:
    cells = tuple(
        (text(row["input"]), text(row.get("error")), number(row.get("attempts"), 0))
        for row in rows[:SHOWN]
    )
    reading = "The same command tries these again, and leaves what is done alone."
    table = Table(("Video", "Reason", "Attempts"), cells)
    return Section("Failed", reading, [table, *_left_out(rows)])


def _done(rows: Rows) -> Section:
    columns = ("Video", "Frames", "Tracks", "Frames/s", "Seconds", "Attempts", "Whole")
    cells = tuple(
        (
            text(row["input"]),
            number(row.get("frames"), 0),
            number(row.get("tracks"), 0),
            number(row.get("fps_end_to_end"), 1),
            number(row.get("seconds"), 1),
            number(row.get("attempts"), 0),
            "cut short" if row.get("truncated") else "yes",
        )
        for row in rows[:SHOWN]
    )
    reading = (
        "Frames per second are those of one task, beside others on its machine; seconds are those "
        "of the last attempt, with loading the model."
    )
    blocks: list[Block] = [Table(columns, cells)] if rows else [Note("None.")]
    return Section("Done", reading, [*blocks, *_left_out(rows)])


def _classes(counts: Mapping[str, int]) -> Section:
    cells = tuple((text(name), number(count, 0)) for name, count in counts.items())
    blocks: list[Block] = [Table(("Class", "Tracks"), cells)] if cells else [Note("No tracks.")]
    return Section("Tracks by class", "Over all videos that are done.", blocks)


def _left_out(rows: Rows) -> list[Block]:
    more = len(rows) - SHOWN
    return [Note(f"{more} more are in {JSON_FILE}.")] if more > 0 else []
