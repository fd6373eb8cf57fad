"""Where a detector goes wrong: precision-recall curves, confusion matrix, and the worst misses.

All of it is told at an IoU of 0.5, and but for the curves at one confidence: what a person sees who
shows the detections scoring that much. Right is what COCO's rule finds right. Of what is left over,
the most confident detection first, each takes the free box of another class that it overlaps most:
a confusion. Boxes that then remain are missed, detections that remain are false alarms; those in a
crowd region of their class are neither.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import detection_matching
from common.coco_format import CocoSplit, ImageRecord
from common.detection_matching import IOU_THRESHOLD, RECALLS, Match
from common.evaluation import box_iou
from common.models import Detections

CONFIDENCE = 0.5
LISTED = 20  # of the worst errors of each kind
MISSED, FALSE_ALARM, CONFUSION = "missed", "false_alarm", "confusion"
KINDS = (MISSED, FALSE_ALARM, CONFUSION)
BACKGROUND = "background"
NEAR_IOU = 0.1  # from here on a box of the right class is badly placed, not about nothing
# Why an object is missed:
NOTHING_THERE, WEAK = "nothing found", "found below the confidence"
# What a false alarm is about:
TWICE, BADLY_PLACED = "object found twice", "badly placed box"
SECOND_CLASS, OF_NOTHING = "second class for an object", "background"


@dataclass(frozen=True)
class Error:
    """One missed box, false alarm or confusion.

    Attributes:
        kind: one of KINDS.
        image: index of the record.
        box_xyxy: (4,) pixels; the ground truth's if missed, else the detection's.
        truth: label of the ground truth; None of a false alarm.
        predicted: label of the detection; None if missed.
        score: of the detection; of a missed box that of the detection below the confidence that
            would have found it, None without one.
        reason: see the constants; empty for a confusion.
    """

    kind: str
    image: int
    box_xyxy: np.ndarray
    truth: int | None
    predicted: int | None
    score: float | None
    reason: str = ""

    @property
    def badness(self) -> float:
        """Large missed objects and confident mistakes are the worst."""
        if self.kind == MISSED:
            return float((self.box_xyxy[2:] - self.box_xyxy[:2]).prod())
        return self.score or 0.0


@dataclass(frozen=True)
class Analysis:
    """
    Attributes:
        curves: of each class its precision at RECALLS, (101,), None without a box to find.
        confusion: int (C + 1, C + 1), rows the ground truth's class, columns the detection's, the
            last of both the background: missed boxes are in its column, false alarms in its row.
        errors: the worst first, those of one kind together in the order of KINDS.
    """

    curves: list[np.ndarray | None]
    confusion: np.ndarray
    errors: list[Error]


def analyse(split: CocoSplit, detections: Sequence[Detections]) -> Analysis:
    """Analyses `detections[i]` on `split.records[i]`."""
    classes = len(split.class_names)
    usable = [detection_matching.finite(found) for found in detections]
    records = split.records[: len(usable)]
    matches = [
        detection_matching.match(record, found)
        for record, found in zip(records, usable, strict=True)
    ]
    confusion = np.zeros((classes + 1, classes + 1), int)
    errors: list[Error] = []
    for index, (record, found, one) in enumerate(zip(records, usable, matches, strict=True)):
        right = one.partner[(one.partner >= 0) & (found.scores >= CONFIDENCE)]
        np.add.at(confusion, (record.labels[right] - 1,) * 2, 1)
        errors += errors_of_image(index, record, found, one)
    for error in errors:
        row, column = ((label or classes + 1) - 1 for label in (error.truth, error.predicted))
        confusion[row, column] += 1
    errors.sort(key=lambda error: (KINDS.index(error.kind), -error.badness))
    curves = detection_matching.precision_curves(records, usable, matches, classes)
    return Analysis(curves, confusion, errors)


def errors_of_image(
    index: int, record: ImageRecord, found: Detections, matched: Match
) -> Iterator[Error]:
    """What is wrong with the detections of one image that score CONFIDENCE or more."""
    confident = found.scores >= CONFIDENCE
    free = ~record.is_crowd
    free[matched.partner[(matched.partner >= 0) & confident]] = False
    wrong = np.flatnonzero(confident & (matched.partner < 0) & ~matched.is_ignored)
    overlap = box_iou(found.boxes_xyxy, record.boxes_xyxy)
    for row in wrong[np.argsort(-found.scores[wrong], kind="stable")]:
        box, label = found.boxes_xyxy[row], int(found.labels[row])
        score = float(found.scores[row])
        candidates = np.where(free, overlap[row], 0)
        if candidates.max(initial=0) >= IOU_THRESHOLD:
            taken = int(candidates.argmax())
            free[taken] = False
            yield Error(CONFUSION, index, box, int(record.labels[taken]), label, score)
        else:
            reason = _about(overlap[row], record, label)
            yield Error(FALSE_ALARM, index, box, None, label, score, reason)
    for missed in np.flatnonzero(free):
        weak = found.scores[matched.partner == missed]
        best = float(weak[0]) if len(weak) else None
        reason = NOTHING_THERE if best is None else WEAK
        box = record.boxes_xyxy[missed]
        yield Error(MISSED, index, box, int(record.labels[missed]), None, best, reason)


def _about(overlaps: np.ndarray, record: ImageRecord, label: int) -> str:
    """What a false alarm of this label is about, by its IoU with each box."""
    of_own_class = overlaps[(record.labels == label) & ~record.is_crowd].max(initial=0)
    if of_own_class >= IOU_THRESHOLD:
        return TWICE
    if overlaps[~record.is_crowd].max(initial=0) >= IOU_THRESHOLD:
        return SECOND_CLASS
    return BADLY_PLACED if of_own_class >= NEAR_IOU else OF_NOTHING


# --- as evaluation.json has it ----------------------------------------------------------------


def content(split: CocoSplit, scores: Mapping[str, Any], analysis: Analysis) -> dict[str, Any]:
    """The results of evaluation.json, without where they come from.

    Args:
        scores: see `evaluation.coco_map`.
    """
    names = list(split.class_names)
    return {
        "images": scores["images"],
        "confidence": CONFIDENCE,
        "iou": IOU_THRESHOLD,
        **{key: scores[key] for key in ("map", "map_50", "map_75")},
        "classes": _class_rows(names, scores["per_class"], analysis),
        "pr_curves": {
            "recall": [round(float(recall), 2) for recall in RECALLS],
            "precision": dict(zip(names, analysis.curves, strict=True)),
        },
        "confusion": {"classes": [*names, BACKGROUND], "counts": analysis.confusion},
        "errors": {kind: _errors(kind, split, analysis) for kind in KINDS},
    }


def _class_rows(
    names: Sequence[str], average_precision: Mapping[str, float | None], analysis: Analysis
) -> list[dict[str, Any]]:
    rows = []
    for index, (name, curve) in enumerate(zip(names, analysis.curves, strict=True)):
        right = int(analysis.confusion[index, index])
        boxes = int(analysis.confusion[index].sum())
        found = int(analysis.confusion[:, index].sum())
        rows.append(
            {
                "name": name,
                "boxes": boxes,
                "ap": average_precision[name] if boxes else None,
                "ap_50": None if curve is None else float(curve.mean()),
                "right": right,
                "recall": right / boxes if boxes else None,
                "precision": right / found if found else None,
                "missed": int(analysis.confusion[index, -1]),
                "false_alarms": int(analysis.confusion[-1, index]),
            }
        )
    return rows


def _errors(kind: str, split: CocoSplit, analysis: Analysis) -> dict[str, Any]:
    """How many there are, why, and the worst of them."""
    own = [error for error in analysis.errors if error.kind == kind]
    reasons = Counter(error.reason for error in own if error.reason)
    names: dict[int | None, str | None] = {None: None}
    names |= dict(enumerate(split.class_names, start=1))
    worst = [
        {
            "image": split.records[error.image].path.name,
            "image_id": split.records[error.image].image_id,
            "box_xyxy": [round(float(side), 1) for side in error.box_xyxy],
            "truth": names[error.truth],
            "predicted": names[error.predicted],
            "score": error.score,
            "reason": error.reason or None,
        }
        for error in own[:LISTED]
    ]
    return {"count": len(own), "reasons": dict(reasons.most_common()), "worst": worst}
