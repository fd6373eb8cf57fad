"""Draws how boxes are compared and assigned: intersection over union, the Hungarian method.

Every function takes a moment, the frames it needs (by number, uint8 BGR) and the path of a PNG.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from phase3_tracking.explain.explain_moments import (
    AssignmentMoment,
    OverlapMoment,
)
from phase3_tracking.explain.explain_style import (
    BLUE,
    ORANGE,
    TEXT_PT,
    VERMILION,
    Style,
    detail_of,
    draw_box,
    legend,
    put_note,
    show_detail,
    teaching_figure,
)
from phase3_tracking.trackers.association import Pairs

Frames = Mapping[int, np.ndarray]

FIRST = Style("detection in the frame before", ORANGE, "--")
SECOND = Style("detection in this frame", BLUE)
PREDICTED = Style("predicted box of a track", VERMILION, "--")
DETECTED = Style("detection", BLUE)


# --- intersection over union ------------------------------------------------------------------


def draw_overlap(moment: OverlapMoment, frames: Frames, path: Path) -> None:
    """Two boxes with their intersection and union, and the numbers."""
    image = frames[moment.frames[1]]
    heading = f"Intersection over union (IoU): track {moment.track_id} in two consecutive frames"
    with teaching_figure(path, heading, 5.0) as figure:
        picture, note = figure.subplots(1, 2, width_ratios=[1, 1])
        height, width = image.shape[:2]
        show_detail(picture, image, detail_of(moment.boxes, width, height, 0.95))
        picture.set_title(f"frame {moment.frames[1]}", fontsize=TEXT_PT)
        _shade(picture, moment.boxes)
        draw_box(picture, moment.boxes[:, 0], FIRST, "A")
        draw_box(picture, moment.boxes[:, 1], SECOND, "B", at="bottom")
        put_note(note, overlap_note(moment), monospace=True)
        handles = [FIRST.handle(), SECOND.handle()]
        legend(figure, [*handles, *_shades()], columns=2)


def _shades() -> list[Patch]:
    shared = Patch(facecolor=BLUE, alpha=0.5, hatch="///", label="intersection")
    return [Patch(facecolor=ORANGE, alpha=0.35, label="rest of the union"), shared]


def _shade(axis: Axes, boxes: np.ndarray) -> None:
    x1, y1 = boxes[:2].max(axis=1)
    x2, y2 = boxes[2:].min(axis=1)
    for left, top, right, bottom in boxes.T.tolist():
        patch = Rectangle((left, top), right - left, bottom - top, color=ORANGE, alpha=0.35, lw=0)
        axis.add_patch(patch)
    shared = Rectangle((x1, y1), max(0.0, x2 - x1), max(0.0, y2 - y1))
    shared.set(facecolor=BLUE, alpha=0.45, hatch="///", linewidth=0)
    axis.add_patch(shared)


def overlap_note(moment: OverlapMoment) -> str:
    """The calculation, step by step."""
    (before, now), boxes = moment.frames, moment.boxes
    areas = (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])
    sides = np.maximum(boxes[2:].min(axis=1) - boxes[:2].max(axis=1), 0)
    shared = sides[0] * sides[1]
    lines = []
    for name, number, box, area in zip("AB", (before, now), boxes.T, areas, strict=True):
        x1, y1, x2, y2 = box
        lines += [
            f"{name}, frame {number}",
            f"  left, top      {x1:8.2f} {y1:8.2f}",
            f"  right, bottom  {x2:8.2f} {y2:8.2f}",
            f"  {x2 - x1:.2f} x {y2 - y1:.2f} = {area:.1f} px²",
        ]
    return "\n".join(
        [
            *lines,
            "",
            "intersection",
            f"  {sides[0]:.2f} x {sides[1]:.2f} = {shared:.1f} px²",
            "union = A + B - intersection",
            f"  {areas.sum() - shared:.1f} px²",
            "",
            "IoU = intersection / union",
            f"    = {moment.iou:.3f}",
        ]
    )


# --- assignment -------------------------------------------------------------------------------


def draw_assignment(moment: AssignmentMoment, frames: Frames, path: Path) -> None:
    """The boxes of the moment, and the table of costs with what was chosen."""
    image = frames[moment.number]
    heading = (
        f"Hungarian assignment in frame {moment.number}: which detection continues which track?"
    )
    with teaching_figure(path, heading, 8.6) as figure:
        picture, table, note = figure.subplots(3, 1, height_ratios=[1, 1.1, 0.26])
        height, width = image.shape[:2]
        boxes = np.concatenate([moment.track_boxes, moment.detection_boxes], axis=1)
        show_detail(picture, image, detail_of(boxes, width, height, 2.2))
        for track_id, box in zip(moment.track_ids, moment.track_boxes.T, strict=True):
            draw_box(picture, box, PREDICTED, f"T{track_id}")
        for number, box in enumerate(moment.detection_boxes.T, start=1):
            draw_box(picture, box, DETECTED, f"D{number}", at="bottom")
        _draw_costs(table, moment)
        put_note(note, assignment_note(moment))
        legend(figure, [PREDICTED.handle(), DETECTED.handle(), *_marks(moment)], columns=2)


def _marks(moment: AssignmentMoment) -> list[Patch]:
    handles = [Patch(fill=False, edgecolor="black", linewidth=3, label="chosen: least total cost")]
    if moment.greedy_differs:
        label = "greedy: least cost first"
        handles.append(
            Patch(fill=False, edgecolor=VERMILION, linewidth=2.5, linestyle="--", label=label)
        )
    return handles


def _draw_costs(axis: Axes, moment: AssignmentMoment) -> None:
    cost = 1 - moment.iou
    colors = axis.imshow(cost, cmap="cividis_r", vmin=0, vmax=1, aspect="auto")
    axis.set_facecolor("0.93")
    bar = axis.figure.colorbar(colors, ax=axis, pad=0.01)
    bar.set_label("cost = 1 - IoU", fontsize=TEXT_PT)
    rows, columns = cost.shape
    axis.set_xticks(range(columns), [f"D{number + 1}" for number in range(columns)])
    axis.set_yticks(range(rows), [f"T{track_id}" for track_id in moment.track_ids])
    axis.tick_params(length=0, labelsize=TEXT_PT)
    axis.set_xlabel("detections of this frame", fontsize=TEXT_PT)
    axis.set_ylabel("tracks", fontsize=TEXT_PT)
    for (row, column), value in np.ndenumerate(cost):
        allowed = moment.iou[row, column] >= moment.iou_threshold
        text = "-" if np.isnan(value) else f"{value:.2f}" if allowed else f"{value:.2f} too far"
        dark = bool(value > 0.55)  # false for NaN
        color = "white" if dark else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=TEXT_PT, color=color)
    _frame_cells(axis, moment.chosen, 0.44, "black", "-", 3)
    if moment.greedy_differs:
        _frame_cells(axis, moment.greedy, 0.36, VERMILION, "--", 2.5)


def _frame_cells(
    axis: Axes, pairs: Pairs, half: float, color: str, line: str, width: float
) -> None:
    for row, column in zip(*pairs, strict=True):
        cell = Rectangle(
            *((column - half, row - half), 2 * half, 2 * half),
            fill=False,
            edgecolor=color,
            linestyle=line,
            linewidth=width,
        )
        axis.add_patch(cell)


def assignment_note(moment: AssignmentMoment) -> str:
    """What was chosen, and what the best pair first would have chosen."""
    best, greedy = moment.total(moment.chosen), moment.total(moment.greedy)
    lines = [
        f"Chosen: {_pairs_text(moment, moment.chosen)}; total IoU {best:.3f}.",
        f"'too far': IoU below {moment.iou_threshold:g}.  '-': no overlap (or another class).",
    ]
    if moment.greedy_differs:
        text = (
            f"Greedy: {_pairs_text(moment, moment.greedy)}; total IoU {greedy:.3f}, which is less."
        )
    else:
        text = "Greedy, least cost first, comes to the same here."
    return "\n".join([lines[0], text, lines[1]])


def _pairs_text(moment: AssignmentMoment, pairs: Pairs) -> str:
    ordered = sorted(zip(*map(np.ndarray.tolist, pairs), strict=True))
    return ", ".join(f"T{moment.track_ids[row]}-D{column + 1}" for row, column in ordered)
