"""The numbers of the teaching pictures as plain values, for explained.json.

Pixels are those of the input, boxes xyxy; everything has four decimals, and NaN is null.
"""

from typing import Any

import numpy as np

from phase3_tracking.explain.explain_moments import (
    AssignmentMoment,
    CameraMoment,
    OverlapMoment,
    PredictionMoment,
)
from phase3_tracking.explain.explain_trace import Step, centre_px, estimated_box, sigmas_px
from phase3_tracking.explain.explain_weak import WeakMoment
from phase3_tracking.object_tracker import BOX
from phase3_tracking.trackers.association import Pairs

DECIMALS = 4


def overlap(moment: OverlapMoment) -> dict[str, Any]:
    return {
        "frames": list(moment.frames),
        "track_id": moment.track_id,
        "boxes_xyxy": _plain(moment.boxes.T),
        "iou": _plain(moment.iou),
    }


def assignment(moment: AssignmentMoment) -> dict[str, Any]:
    """`cost` has a row for each track and a column for each detection."""
    return {
        "frame": moment.number,
        "track_ids": moment.track_ids.tolist(),
        "predicted_xyxy": _plain(moment.track_boxes.T),
        "detected_xyxy": _plain(moment.detection_boxes.T),
        "cost": _plain(1 - moment.iou),
        "iou_threshold": moment.iou_threshold,
        "chosen": _pairs(moment.chosen),
        "greedy": _pairs(moment.greedy),
        "total_iou": _plain(moment.total(moment.chosen)),
        "total_iou_greedy": _plain(moment.total(moment.greedy)),
    }


def _pairs(pairs: Pairs) -> list[list[int]]:
    """[row of cost, column of cost] of each."""
    return sorted(np.column_stack(pairs).tolist())


def prediction(moment: PredictionMoment) -> dict[str, Any]:
    steps = [_prediction_step(step, moment.track_id) for step in moment.steps]
    return {"track_id": moment.track_id, "frames": steps}


def _prediction_step(step: Step, track_id: int) -> dict[str, Any]:
    column = step.column(track_id)
    predicted, after = step.predicted[:, column], step.after[:, column]
    row = None if column is None else step.detection_of(column)
    return {
        "frame": step.number,
        "predicted_xyxy": _plain(predicted[BOX]),
        "predicted_centre": _plain(centre_px(predicted)),
        "predicted_sigma": _plain(sigmas_px(predicted)),
        "detected_xyxy": None if row is None else _plain(step.detections[BOX, row]),
        "corrected_xyxy": None if row is None else _plain(estimated_box(after)),
        "corrected_centre": None if row is None else _plain(centre_px(after)),
        "corrected_sigma": None if row is None else _plain(sigmas_px(after)),
    }


def weak(moment: WeakMoment) -> dict[str, Any]:
    return {
        "track_id": moment.track_id,
        "first_frame": moment.begin.with_weak.number,
        "strong_again_in_frame": moment.end.with_weak.number if moment.end else None,
        "weak_detections": moment.frames,
        "iou": _plain(moment.iou),
        "without_them": moment.outcome,
    }


def camera(moment: CameraMoment) -> dict[str, Any]:
    return {
        "frame": moment.number,
        "track_ids": moment.track_ids.tolist(),
        "displacements": _plain(moment.displacements.T),
        "shift": _plain(moment.shift),
    }


def _plain(value: Any) -> Any:
    """Lists and rounded numbers of arrays and numbers."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if np.isnan(value) else round(float(value), DECIMALS)
