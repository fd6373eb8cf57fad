"""Draws how tracks move: the Kalman filter's prediction, and the camera's motion.

Every function takes a moment, the frames it needs (by number, uint8 BGR) and the path of a PNG.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from phase3_tracking.explain.explain_moments import CameraMoment, PredictionMoment
from phase3_tracking.explain.explain_style import (
    BLUE,
    GREEN,
    POINTS,
    SMALL_PT,
    TEXT_PT,
    VERMILION,
    Style,
    detail_of,
    draw_box,
    draw_ellipses,
    legend,
    put_name,
    put_note,
    show_detail,
    teaching_figure,
    two_parts,
)
from phase3_tracking.explain.explain_trace import Step, centre_px, estimated_box, sigmas_px
from phase3_tracking.object_tracker import BOX

Frames = Mapping[int, np.ndarray]

PREDICTED = Style("predicted box of a track", VERMILION, "--")
DETECTED = Style("detection", BLUE)
CORRECTED = Style("corrected box", GREEN, "-.")
PLACE_HEAD = "   x      y   ±σx  ±σy"
ENLARGED = 10  # how many times an arrow is longer than the displacement


# --- prediction -------------------------------------------------------------------------------


def draw_prediction(moment: PredictionMoment, frames: Frames, path: Path) -> None:
    """A track over some frames: predicted, detected, corrected."""
    first, last = moment.steps[0].number, moment.steps[-1].number
    heading = f"Kalman filter: track {moment.track_id} in frames {first} to {last}"
    columns = [_column(step, moment.track_id) for step in moment.steps]
    boxes = [box for pair in zip(moment.steps, columns, strict=True) for box in _boxes_of(*pair)]
    height, width = frames[first].shape[:2]
    detail = detail_of(np.column_stack(boxes), width, height, 0.9)
    with teaching_figure(path, heading, 8.8) as figure:
        pictures, table = two_parts(figure, [3.4, 1])
        axes = pictures.subplots(2, 3).ravel()
        for axis, step, column in zip(axes, moment.steps, columns, strict=True):
            seen = step.detection_of(column) is not None
            title = f"frame {step.number}" + ("" if seen else ": no detection")
            show_detail(axis, frames[step.number], detail, title)
            _draw_step(axis, step, column)
        put_note(table.subplots(), prediction_note(moment), monospace=True)
        sigma = [Patch(facecolor=VERMILION, alpha=0.4, label="centre: 1 sigma, dotted 2 sigma")]
        styles = (Style("predicted box", VERMILION, "--"), DETECTED, CORRECTED)
        legend(figure, [*(style.handle() for style in styles), *sigma], columns=4)


def _column(step: Step, track_id: int) -> int:
    column = step.column(track_id)
    if column is None:
        raise ValueError(f"track {track_id} is not in frame {step.number}")
    return column


def _boxes_of(step: Step, column: int) -> list[np.ndarray]:
    row = step.detection_of(column)
    found = [] if row is None else [step.detections[BOX, row]]
    return [step.predicted[BOX, column], *found]


def _draw_step(axis: Axes, step: Step, column: int) -> None:
    predicted, after = step.predicted[:, column], step.after[:, column]
    draw_ellipses(axis, centre_px(predicted), sigmas_px(predicted), VERMILION)
    draw_box(axis, predicted[BOX], PREDICTED)
    row = step.detection_of(column)
    if row is not None:
        draw_box(axis, step.detections[BOX, row], DETECTED)
        draw_box(axis, estimated_box(after), CORRECTED)


def prediction_note(moment: PredictionMoment) -> str:
    """A table with a line for each frame: centres and standard deviations in pixels, the gain."""
    lines = [
        _row("", "predicted", "detected", "gain", "corrected"),
        _row("frame", PLACE_HEAD, "   x      y", "  x    y", PLACE_HEAD),
    ]
    for step in moment.steps:
        column = _column(step, moment.track_id)
        predicted, after = step.predicted[:, column], step.after[:, column]
        row = step.detection_of(column)
        cells = [str(step.number), _place(predicted), "none", "", "= predicted"]
        if row is not None:
            box = step.detections[BOX, row]
            gain = 1 - (sigmas_px(after) / sigmas_px(predicted)) ** 2
            centre = _pair((box[:2] + box[2:]) / 2, 6)
            cells[2:] = centre, f"{gain[0]:.2f} {gain[1]:.2f}", _place(after)
        lines.append(_row(*cells))
    return "\n".join([*lines, "corrected = predicted + gain x (detected - predicted)"])


def _row(frame: str, predicted: str, detected: str, gain: str, corrected: str) -> str:
    return f"{frame:>5} | {predicted:23} | {detected:13} | {gain:9} | {corrected:23}"


def _place(track: np.ndarray) -> str:
    """The centre of a track (rows,) and its standard deviations."""
    return f"{_pair(centre_px(track), 6)} {_pair(sigmas_px(track), 4)}"


def _pair(values: np.ndarray, width: int) -> str:
    return " ".join(f"{value:{width}.1f}" for value in values.tolist())


# --- camera motion ----------------------------------------------------------------------------


def draw_camera(moment: CameraMoment, frames: Frames, path: Path) -> None:
    """Predicted and detected boxes with arrows, and the displacements with their median."""
    image = frames[moment.number]
    with teaching_figure(
        path, f"Camera motion from the tracks: frame {moment.number}", 4.9
    ) as figure:
        upper, lower = two_parts(figure, [3.8, 1])
        picture, plot = upper.subplots(1, 2, width_ratios=[1.35, 1])
        height, width = image.shape[:2]
        boxes = np.concatenate([moment.predicted, moment.detected], axis=1)
        show_detail(picture, image, detail_of(boxes, width, height, 1.35))
        centres = (moment.predicted[:2] + moment.predicted[2:]) / 2
        for index, track_id in enumerate(moment.track_ids.tolist()):
            draw_box(picture, moment.predicted[:, index], Style("", VERMILION, "--", 1.2))
            draw_box(picture, moment.detected[:, index], Style("", BLUE, "-", 1.2), f"T{track_id}")
        picture.quiver(
            *(*centres, *(ENLARGED * moment.displacements)),
            angles="xy",
            scale_units="xy",
            scale=1,
            color=GREEN,
            width=0.008,
            zorder=3,
        )
        _draw_displacements(plot, moment)
        put_note(lower.subplots(), camera_note(moment))
        arrow = Style(f"displacement, {ENLARGED} times as long", GREEN, "-", 3)
        legend(figure, [style.handle() for style in (PREDICTED, DETECTED, arrow)])


def _draw_displacements(axis: Axes, moment: CameraMoment) -> None:
    x, y = moment.displacements
    axis.axhline(0, color="0.8", linewidth=1)
    axis.axvline(0, color="0.8", linewidth=1)
    axis.scatter(x, y, s=36, color=GREEN, zorder=2, gid=POINTS)
    for track_id, left, top in zip(moment.track_ids, x, y, strict=True):
        put_name(axis, left, top, f"T{track_id}", "white", "bottom")
    for line, place in zip((axis.axvline, axis.axhline), moment.shift.tolist(), strict=True):
        line(place, color="black", linestyle="--", linewidth=1.5)
    axis.set_xlabel("displacement to the right, px", fontsize=TEXT_PT)
    axis.set_ylabel("displacement down, px", fontsize=TEXT_PT)
    axis.set_title("dashed: the medians", fontsize=TEXT_PT)
    axis.tick_params(labelsize=SMALL_PT)
    axis.margins(0.2)
    axis.invert_yaxis()


def _towards(pixels: float, positive: str, negative: str) -> str:
    """3.0 -> 3.00 px right."""
    return f"{abs(pixels):.2f} px {positive if pixels >= 0 else negative}"


def camera_note(moment: CameraMoment) -> str:
    """What the tracker concludes."""
    right, down = moment.shift
    lines = [
        f"One detection alone fits each of {len(moment.track_ids)} tracks. The median of their "
        "displacements from",
        f"the predicted boxes, {_towards(right, 'right', 'left')} and "
        f"{_towards(down, 'down', 'up')}, is taken for the camera's motion: all tracks move by it.",
        "A fixed camera in front of one-way traffic that speeds up looks the same to it.",
    ]
    if np.hypot(right, down) < 1:
        lines.append("That is less than a pixel: this camera stands still.")
    return "\n".join(lines)
