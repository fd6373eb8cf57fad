"""Scores tracks against ground truth: HOTA, DetA, AssA, MOTA, MOTP, IDF1, switches, FP, FN.

    python phase3_tracking/evaluate_tracking.py                     # the result on the demo video
    python phase3_tracking/evaluate_tracking.py --tracks tracked.mot.txt --ground-truth gt.txt
    python phase3_tracking/evaluate_tracking.py --detections MOT17/train   # tracks them first

Every file is MOTChallenge text. There are two protocols:

classes  Each class is scored by itself, so a car tracked as a bus is a miss and a false positive.
         `combined` pools the matches of all classes and sequences, so every box weighs the same;
         this is TrackEval's detection-averaged combination, the way sequences are combined too,
         and the figure to quote. `class_agnostic` takes all boxes for one class and shows what is
         lost through wrong classes. Ground truth without classes (MOT15) is one class.
mot17    MOT16 and MOT17: only pedestrians count, and tracked boxes on distractors (people on
         vehicles, static people, reflections, ...) are removed before scoring.

`auto` takes mot17 for ground truth with a seqinfo.ini that names a MOT16 or MOT17 sequence, and
classes otherwise. The figures equal TrackEval's. Beside the JSON report lies a CSV with a row for
each sequence, each class, all boxes without regard to classes, and all combined.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase3_tracking/evaluate_tracking.py` finds common/

from common import artifacts, cli, paths
from common.cli import UserError, log
from phase3_tracking.results.text_streams import TextStreams
from phase3_tracking.trackers.tracker_options import (
    FRAME_RATE,
    add_tracker_arguments,
    build_tracker,
    tracker_settings,
)

if TYPE_CHECKING:
    from phase3_tracking.mot_files import MotBoxes, MotSequence
    from phase3_tracking.mot_metrics import MatchCounts

PROTOCOLS = ("auto", "classes", "mot17")
STRONG_CONFIDENCE = 0.5  # of a detection, in files whose scores lie between 0 and 1
DEMO_TRACKS = paths.VIDEOS / f"{paths.DEMO_VIDEO.stem}_tracked.mot.txt"
COLUMNS = {  # heading -> key; the first six are shown in percent
    "HOTA": "hota",
    "DetA": "deta",
    "AssA": "assa",
    "MOTA": "mota",
    "MOTP": "motp",
    "IDF1": "idf1",
    "IDSW": "id_switches",
    "Frag": "fragments",
    "FP": "fp",
    "FN": "fn",
}


@dataclass(frozen=True)
class Comparison:
    """Tracks and the ground truth of the same sequence."""

    name: str
    ground_truth: "MotBoxes"
    tracks: "MotBoxes"
    protocol: str  # "classes" or "mot17"


def score(
    comparisons: "Sequence[Comparison]", class_names: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Scores of every sequence, of all together, of every class, and without regard to classes.

    Args:
        class_names: class id -> name to show; others are called `class 7`.

    Returns:
        `sequences` and `classes` (lists of `name` and scores), `combined`, `class_agnostic`; see
        mot_metrics.scores.
    """
    from phase3_tracking.mot_metrics import count_matches, scores, sum_counts

    by_class: dict[str, list[MatchCounts]] = {}
    agnostic: list[MatchCounts] = []
    sequences = []
    for one in comparisons:
        counts = _count_by_class(one, class_names or {})
        for name, of_class in counts.items():
            by_class.setdefault(name, []).append(of_class)
        sequences.append({"name": one.name, **scores(sum_counts(counts.values()))})
        if one.protocol == "mot17":  # has one class only
            agnostic.extend(counts.values())
        else:
            agnostic.append(count_matches(one.ground_truth, one.tracks))
    classes = {name: sum_counts(counts) for name, counts in sorted(by_class.items())}
    return {
        "protocols": sorted({one.protocol for one in comparisons}),
        "sequences": sequences,
        "combined": scores(sum_counts(classes.values())),
        "classes": [{"name": name, **scores(counts)} for name, counts in classes.items()],
        "class_agnostic": scores(sum_counts(agnostic)),
    }


def _count_by_class(one: Comparison, class_names: Mapping[int, str]) -> "dict[str, MatchCounts]":
    import numpy as np

    from phase3_tracking import mot_files, mot_metrics

    ground_truth, tracks = one.ground_truth, one.tracks
    if one.protocol == "mot17":
        may_be_pedestrian = (mot_metrics.PEDESTRIAN, mot_files.NO_CLASS)
        tracks = tracks.select(np.isin(tracks.classes, may_be_pedestrian))
        boxes = mot_metrics.without_distractors(ground_truth, tracks)
        return {"pedestrian": mot_metrics.count_matches(*boxes)}
    if (ground_truth.classes == mot_files.NO_CLASS).all():
        return {"object": mot_metrics.count_matches(ground_truth, tracks)}
    counts = {}
    for class_id in np.union1d(ground_truth.classes, tracks.classes).tolist():
        counts[class_names.get(class_id, f"class {class_id}")] = mot_metrics.count_matches(
            ground_truth.select(ground_truth.classes == class_id),
            tracks.select(tracks.classes == class_id),
        )
    return counts


def run_tracker(
    detections: "MotBoxes",
    frame_count: int,
    settings: Mapping[str, Any],
    confidence: float | None,
    frame_rate: float = FRAME_RATE,
) -> "MotBoxes":
    """The tracks a tracker makes of a detection file.

    Args:
        frame_count: frames of the sequence; the tracker sees those without detections too.
        settings: the tracker and its parameters, see `tracker_settings`.
        confidence: detections below it are left out; None keeps all.
        frame_rate: frames per second of the sequence.
    """
    import numpy as np

    from phase3_tracking import mot_files

    if confidence is not None:
        detections = detections.select(detections.confidences >= confidence)
    is_rated = mot_files.are_confidences(detections.confidences)
    strong = STRONG_CONFIDENCE if is_rated else None
    tracker = build_tracker(confidence=strong, frame_rate=frame_rate, **settings)
    rows = [np.empty((0, 8))]
    for frame in range(1, frame_count + 1):
        x1, y1, x2, y2, ids, classes, confidences = tracker.update(detections.detections(frame)).T
        frames = np.full(len(ids), frame)
        rows.append(np.column_stack([frames, ids, x1, y1, x2 - x1, y2 - y1, confidences, classes]))
    if tracker.dropped_detections:
        log.warning("%d detections without an area were left out", tracker.dropped_detections)
    return mot_files.from_rows(np.concatenate(rows))


# --- the command line -----------------------------------------------------------------------


def evaluate_tracking(
    *,
    tracks: Path | None,
    ground_truth: Path | None,
    detections: Path | None,
    protocol: str,
    confidence: float | None,
    settings: Mapping[str, Any],
    smooths: bool,
    output: Path,
) -> None:
    """Reads the files, scores them, prints the table, writes the report and the CSV beside it."""
    class_names: dict[int, str] = {}
    if detections is not None:
        comparisons, inputs = _tracked_here(
            detections, ground_truth, protocol, confidence, settings, smooths
        )
    else:
        if smooths:
            what, remedy = "is for tracks made here", "give --detections, or leave it out"
            raise UserError("--smooth", what, remedy)
        tracks, ground_truth = _chosen_files(tracks, ground_truth)
        comparisons, inputs = [_read_files(tracks, ground_truth, protocol)], [tracks, ground_truth]
        class_names = _class_names(tracks)
    csv_path = _csv_path(output)
    _check_no_input([output, csv_path], [*inputs, *([_report_of(tracks)] if tracks else [])])
    result = score(comparisons, class_names)
    report = {
        **artifacts.provenance("tracking_eval", "cpu", inputs),
        "tracker": {**settings, "smooth": smooths} if detections else None,
        **result,
    }
    with TextStreams([output, csv_path]) as files:  # both are new, or neither
        files.append(0, json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
        files.append(1, csv_table(result))
    log.info(table(result))
    cli.finished([output, csv_path], "python -m common.report")


def _csv_path(output: Path) -> Path:
    """Where the table goes: beside the report, and never over it."""
    csv_path = output.with_suffix(".csv")
    if csv_path == output:
        raise UserError(output, "the report is JSON", "let --output end in .json")
    return csv_path


def _check_no_input(written: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuses to write over what was read, also through a link."""
    read = [path for path in inputs if path.exists()]
    for path in filter(Path.exists, written):
        if any(os.path.samefile(path, one) for one in read):
            raise UserError(path, "is also an input", "choose another --output")


def _chosen_files(tracks: Path | None, ground_truth: Path | None) -> tuple[Path, Path]:
    """The files asked for, or those of the demo."""
    if tracks is not None and ground_truth is not None:
        return tracks, ground_truth
    if tracks is not None:
        raise UserError("--tracks", "has nothing to compare with", "give --ground-truth too")
    if ground_truth is not None:
        raise UserError("--ground-truth", "is alone", "give --tracks or --detections too")
    log.info("Tracks: %s", paths.display(DEMO_TRACKS))
    for path, script in (
        (paths.DEMO_VIDEO_GT, "phase1_training/make_demo_data.py"),
        (DEMO_TRACKS, "phase3_tracking/video_detector.py"),
    ):
        if not path.is_file():
            raise UserError(path, "no such file", f"make it with: python {script}")
    return DEMO_TRACKS, paths.DEMO_VIDEO_GT


def _read_files(tracks: Path, ground_truth: Path, protocol: str) -> Comparison:
    from phase3_tracking import mot_files

    sequence = mot_files.read_sequence(ground_truth.resolve().parent.parent)
    name = tracks.name.removesuffix(".txt").removesuffix(".mot")
    return Comparison(
        name,
        mot_files.read(ground_truth, unique_ids=True),
        mot_files.read(tracks, unique_ids=True),
        _protocol_of(sequence, protocol),
    )


def _protocol_of(sequence: "MotSequence", protocol: str) -> str:
    if protocol != "auto":
        return protocol
    is_mot17 = sequence.name.startswith(("MOT16-", "MOT17-"))
    return "mot17" if is_mot17 and sequence.frame_count else "classes"


def _report_of(tracks: Path) -> Path:
    """Where the report of the run that made the tracks would be."""
    return tracks.with_name(tracks.name.removesuffix(".mot.txt") + ".json")


def _class_names(tracks: Path) -> dict[int, str]:
    """Class names from the report video_detector.py writes beside its tracks, if it is there."""
    report = _report_of(tracks)
    if not report.is_file():
        return {}
    categories = artifacts.read_json(report).get("categories", {})
    return {int(category): name for category, name in categories.items()}


def _tracked_here(
    detections: Path,
    ground_truth: Path | None,
    protocol: str,
    confidence: float | None,
    settings: Mapping[str, Any],
    smooths: bool,
) -> tuple[list[Comparison], list[Path]]:
    """Runs the tracker over a detection file, or over every sequence in a folder."""
    from phase3_tracking import mot_files
    from phase3_tracking.trackers.track_smoothing import smooth

    files: list[tuple[MotSequence, Path, Path]] = []
    if not detections.exists():
        raise UserError(detections, "no such file or folder", "check the path")
    if detections.is_dir():
        if ground_truth is not None:
            raise UserError("--ground-truth", "not used with a folder", "leave it out")
        for sequence in mot_files.find_sequences(detections):
            files.append((sequence, sequence.detections, sequence.ground_truth))
    else:
        sequence = mot_files.read_sequence(detections.resolve().parent.parent)
        files.append((sequence, detections, ground_truth or sequence.ground_truth))
    comparisons = []
    for sequence, detection_file, gt_file in files:
        gt = mot_files.read(gt_file, unique_ids=True)
        boxes = mot_files.read(detection_file, unique_ids=False)
        last = max(gt.frames.max(initial=1), boxes.frames.max(initial=1))
        if sequence.frame_count and last > sequence.frame_count:
            what = f"has frame {last}, but seqinfo.ini says {sequence.frame_count} frames"
            raise UserError(sequence.folder, what, "correct seqinfo.ini or the files")
        frames, frame_rate = sequence.frame_count or int(last), sequence.frame_rate or FRAME_RATE
        tracks = run_tracker(boxes, frames, settings, confidence, frame_rate)
        if smooths:
            tracks = smooth(tracks, frame_rate)
        comparisons.append(Comparison(sequence.name, gt, tracks, _protocol_of(sequence, protocol)))
    return comparisons, [file for _, *pair in files for file in pair]


def table(result: Mapping[str, Any]) -> str:
    """A text table: one line for each sequence and class, then the totals; scores in percent."""
    lines = [(one["name"], one) for one in result["sequences"]]
    if len(result["classes"]) > 1:
        lines += [(one["name"], one) for one in result["classes"]]
        lines += [("class-agnostic", result["class_agnostic"])]
    lines += [("combined", result["combined"])]
    width = max(len(name) for name, _ in lines)
    text = [" " * width + "".join(f"{heading:>7}" for heading in COLUMNS)]
    for name, one in lines:
        values = [one[key] for key in COLUMNS.values()]
        cells = [f"{100 * value:7.1f}" for value in values[:6]] + [f"{n:7d}" for n in values[6:]]
        text.append(name.ljust(width) + "".join(cells))
    return "\n".join(text)


def csv_table(result: Mapping[str, Any]) -> str:
    """All scores as CSV, as in the report: `kind` is sequence, class, class_agnostic or combined,
    and `name` that of the sequence or class."""
    from phase3_tracking.results.spreadsheet_text import as_text, csv_lines

    rows = [("sequence", one["name"], one) for one in result["sequences"]]
    rows += [("class", one["name"], one) for one in result["classes"]]
    rows += [(kind, "", result[kind]) for kind in ("class_agnostic", "combined")]
    columns = list(result["combined"])
    return csv_lines(
        [
            ("kind", "name", *columns),
            *((kind, as_text(name), *(one[key] for key in columns)) for kind, name, one in rows),
        ]
    )


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--tracks", type=Path, help="tracks (default: those of the demo video)")
    source.add_argument(
        "--detections", type=Path, help="det.txt, or a folder of sequences, to run the tracker on"
    )
    parser.add_argument("--ground-truth", type=Path, help="ground truth of the file given")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="auto", help="see above")
    parser.add_argument("--confidence", type=cli.finite_float, help="leave out weaker detections")
    add_tracker_arguments(parser)
    cli.add_common_arguments(
        parser,
        output=paths.METRICS / "tracking_eval.json",
        output_help="report to write, with a .csv beside it",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: evaluate_tracking(
            tracks=args.tracks,
            ground_truth=args.ground_truth,
            detections=args.detections,
            protocol=args.protocol,
            confidence=args.confidence,
            settings=tracker_settings(args),
            smooths=args.smooth,
            output=args.output,
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
