"""evaluation.json and worst_misses.png: what a detector gets wrong on a validation split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from common import artifacts, detection_matching, error_analysis, recorded_files
from common.coco import CocoSplit, read_image
from common.error_analysis import CONFIDENCE, KINDS, MISSED, Analysis, Error
from common.models import Detections
from phase1_training.panels import SKY, VERMILION, YELLOW, draw_box, panels, short, show

REPORT, PICTURE = "evaluation.json", "worst_misses.png"
SHOWN = 4  # of each kind: a row of panels
ASPECT, SURROUNDINGS, LEAST_WIDTH = 4 / 3, 2.4, 96  # of a cutting; times the box; pixels


def write(
    folder: Path,
    head: Mapping[str, Any],
    split: CocoSplit,
    scores: Mapping[str, Any],
    detections: Sequence[Detections],
) -> list[Path]:
    """Analyses `detections[i]` on `split.records[i]` and writes both files, or none.

    Args:
        head: the first keys of the report: where it comes from.
        scores: see `evaluation.coco_map`.

    Returns:
        The files written; without an error to show there is no picture, and an older one goes.
    """
    analysis = error_analysis.analyse(split, detections)
    report = {**head, **error_analysis.content(split, scores, analysis)}
    picture = folder / PICTURE

    def draw(path: Path) -> None:
        worst_misses(split, detections, analysis, path)
        report[recorded_files.KEY] = {PICTURE: recorded_files.record([path])[path.name]}

    writers = {picture: draw} if analysis.errors else {}
    writers[folder / REPORT] = lambda path: artifacts.put_json(path, report)
    artifacts.write_together(writers)
    if not analysis.errors:
        picture.unlink(missing_ok=True)
    return list(writers)


def worst_misses(
    split: CocoSplit, detections: Sequence[Detections], analysis: Analysis, path: Path
) -> None:
    """Cuttings around the worst errors of each kind, with all boxes that lie there."""
    worst = [
        error
        for kind in KINDS
        for error in [each for each in analysis.errors if each.kind == kind][:SHOWN]
    ]
    windows = [_window(error, split) for error in worst]
    sizes = [(bottom - top, right - left) for left, top, right, bottom in windows]
    title = (
        f"Worst first: missed objects by size, false alarms and confusions by score (at least "
        f"{CONFIDENCE}). Red: the error. Blue: ground truth. Yellow, dashed: predictions."
    )
    with panels(path, sizes, title) as axes:
        for axis, error, window in zip(axes, worst, windows, strict=True):
            _draw(axis, error, window, split, detections[error.image])


def _window(error: Error, split: CocoSplit) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the cutting, in whole pixels inside the picture."""
    record = split.records[error.image]
    x1, y1, x2, y2 = (float(side) for side in error.box_xyxy)
    width = max(SURROUNDINGS * max(x2 - x1, ASPECT * (y2 - y1)), LEAST_WIDTH)
    spans = []
    for middle, length, limit in (
        ((x1 + x2) / 2, width, record.width),
        ((y1 + y2) / 2, width / ASPECT, record.height),
    ):
        size = min(max(1, round(length)), limit)
        start = min(max(0, round(middle - size / 2)), limit - size)
        spans.append((start, start + size))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _draw(
    axis: Axes,
    error: Error,
    window: tuple[int, int, int, int],
    split: CocoSplit,
    found: Detections,
) -> None:
    """The ground truth, then the predictions, the error on top of them and not a second time."""
    record, classes = split.records[error.image], split.class_names
    left, top, right, bottom = window
    size = (bottom - top, right - left)
    picture = read_image(record.path, (record.width, record.height))
    show(axis, picture[top:bottom, left:right], size)
    truth = zip(record.boxes_xyxy, (short(classes[k - 1]) for k in record.labels), strict=True)
    predicted = [
        (box, _with_score(classes[label - 1], score))
        for box, score, label in zip(*detection_matching.finite(found), strict=True)
        if score >= CONFIDENCE
    ]
    for boxes, color, style in ((truth, SKY, "-"), (predicted, YELLOW, "--")):
        for box, name in boxes:
            is_inside = (box[:2] < [right, bottom]).all() and (box[2:] > [left, top]).all()
            if is_inside and not np.array_equal(box, error.box_xyxy):
                draw_box(axis, _moved(box, window), color, style, name, size)
    box = _moved(error.box_xyxy, window)
    draw_box(axis, box, VERMILION, "-", _box_name(error, classes), size)
    title = f"{_title(error, classes)}\n{short(record.path.name, 40)}"
    axis.set_title(title, fontsize=8, parse_math=False)


def _moved(box_xyxy: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """A box in the coordinates of the cutting, ending at its edges."""
    left, top, right, bottom = window
    corner, limits = np.array([left, top] * 2), np.array([right - left, bottom - top] * 2)
    return (box_xyxy - corner).clip(0, limits)


def _with_score(name: str, score: float | None) -> str:
    return short(name) if score is None else f"{short(name, 19)} {score:.2f}"


def _box_name(error: Error, classes: Sequence[str]) -> str:
    if error.predicted is not None:
        return _with_score(classes[error.predicted - 1], error.score)
    return "" if error.truth is None else short(classes[error.truth - 1])


def _title(error: Error, classes: Sequence[str]) -> str:
    if error.truth is None:
        return f"False alarm: {error.reason}"
    name = short(classes[error.truth - 1])
    if error.kind == MISSED:
        return f"Missed: {name}" + ("" if error.score is None else f" ({error.score:.2f} only)")
    return f"Wrong class, it is: {name}"
