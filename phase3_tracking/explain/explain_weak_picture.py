"""Draws how a weak detection keeps a track alive, beside what becomes of it without."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from phase3_tracking.explain.explain_style import (
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    Style,
    detail_of,
    draw_box,
    legend,
    put_note,
    show_detail,
    teaching_figure,
    two_parts,
)
from phase3_tracking.explain.explain_trace import Step
from phase3_tracking.explain.explain_weak import NEW, NONE, OTHER, Decision, WeakMoment
from phase3_tracking.object_tracker import BOX, DETECTED_CONFIDENCE, ID

STRONG = Style("strong detection", BLUE, "-")
WEAK = Style("weak detection, used", ORANGE, "--", 2.6)
LEFT_OUT = Style("weak detection, not used", GREY, ":", 2.0)
PREDICTED = Style("predicted box of a track without a detection", VERMILION, "-.")
NEIGHBOURS = 0.4  # how far beside the track a detail reaches, in longer sides of its box


def draw_weak(moment: WeakMoment, frames: Mapping[int, np.ndarray], path: Path) -> None:
    """With weak detections above, without them below; the weak frame, then the strong one."""
    decisions = [moment.begin, *([moment.end] if moment.end else [])]
    heading = f"Low-score association: what weak detections do for track {moment.track_id}"
    boxes = np.column_stack([_box_of_track(moment, one.with_weak) for one in decisions])
    reach = NEIGHBOURS * (boxes[2:] - boxes[:2]).max()
    boxes = np.concatenate([boxes[:2] - reach, boxes[2:] + reach])
    height, width = frames[moment.begin.with_weak.number].shape[:2]
    detail = detail_of(boxes, width, height, 1.3 if len(decisions) == 2 else 2.4)
    with teaching_figure(path, heading, 8.2) as figure:
        upper, lower = two_parts(figure, [5.6, 1])
        axes = upper.subplots(2, len(decisions), squeeze=False)
        for column, decision in zip(axes.T, decisions, strict=True):
            image, number = frames[decision.with_weak.number], decision.with_weak.number
            show_detail(column[0], image, detail, f"frame {number}, with weak detections")
            _draw_step(column[0], moment, decision.with_weak)
            show_detail(column[1], image, detail, f"frame {number}, without")
            _draw_step(column[1], moment, decision.without_weak, all_seen=decision)
        put_note(lower.subplots(), weak_note(moment))
        legend(figure, [style.handle() for style in (STRONG, WEAK, LEFT_OUT, PREDICTED)], 2)


def _box_of_track(moment: WeakMoment, step: Step) -> np.ndarray:
    column = step.column(moment.track_id)
    if column is None:
        raise ValueError(f"track {moment.track_id} is not in frame {step.number}")
    return step.after[BOX, column]


def _draw_step(
    axis: Axes, moment: WeakMoment, step: Step, *, all_seen: Decision | None = None
) -> None:
    """One frame as one of the trackers saw it.

    Args:
        all_seen: also show the weak detections that this tracker was not given.
    """
    detections = (all_seen.with_weak if all_seen else step).detections
    for row in range(detections.shape[1]):
        confidence = float(detections[DETECTED_CONFIDENCE, row])
        name = _track_name(step, detections[:, row])
        is_strong = confidence >= moment.confidence
        style = STRONG if is_strong else WEAK if name else LEFT_OUT
        if not name and all_seen and _track_name(all_seen.with_weak, detections[:, row]):
            name = "left out"  # others that nobody uses need no name
        text = f"{confidence:.2f}, {name}" if name else ""
        if _inside(axis, detections[BOX, row]):
            draw_box(axis, detections[BOX, row], style, text)
    column = step.column(moment.track_id)
    if column is not None and step.detection_of(column) is None:
        name = f"track {moment.track_id}: not seen"
        draw_box(axis, step.after[BOX, column], PREDICTED, name, at="bottom")


def _inside(axis: Axes, box: np.ndarray) -> bool:
    """Whether the middle of a box is in the detail."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    x, y = (box[:2] + box[2:]) / 2
    return bool(left <= x <= right and top <= y <= bottom)


def _track_name(step: Step, detection: np.ndarray) -> str:
    """`track 7`, `new track`, or nothing for a detection (6,) that the tracker did not use."""
    row = (step.detections == detection[:, None]).all(axis=0).nonzero()[0]
    column = step.pairs[1][np.isin(step.pairs[0], row)]
    if len(column):
        track_id = int(step.after[ID, column[0]])
        return f"track {track_id}" if track_id else "track without id yet"
    begun = step.after[BOX, step.predicted.shape[1] :]
    is_new = len(row) and (begun == detection[BOX, None]).all(axis=0).any()
    return "new track" if is_new else ""


def weak_note(moment: WeakMoment) -> str:
    """What happened with and without, in numbers."""
    step = moment.begin.with_weak
    column = step.column(moment.track_id)
    row = None if column is None else step.detection_of(column)
    confidence = float("nan") if row is None else float(step.detections[DETECTED_CONFIDENCE, row])
    many, bridge = ("s", "bridge") if moment.frames > 1 else ("", "bridges")
    return "\n".join(
        [
            f"Frame {step.number}: a detection of {confidence:.2f}, below {moment.confidence:g}, "
            f"has IoU {moment.iou:.2f} with the predicted box: it continues the track.",
            f"With: {moment.frames} weak detection{many} {bridge} the time without a strong one.",
            f"Without: no detection in {moment.frames} frame{many}; {_afterwards(moment)}.",
        ]
    )


def _afterwards(moment: WeakMoment) -> str:
    if moment.end is None:
        return "no strong detection follows, so it ends here"
    number = moment.end.with_weak.number
    endings = {
        NEW: f"in frame {number} the object starts a new track: its id changes",
        OTHER: f"in frame {number} the object is taken for another track: its id changes",
        NONE: f"in frame {number} the object belongs to no track",
    }
    return endings.get(moment.outcome, f"in frame {number} it is found again, under the same id")
