"""Which detection finds which box: COCO's rule for one IoU, and the precision-recall curve of it.

The rule is that of pycocotools' `evaluateImg`, without its limit of 100 detections per class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.coco_format import ImageRecord
from common.evaluation import box_iou
from common.models import Detections

IOU_THRESHOLD = 0.5
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the curve


@dataclass(frozen=True)
class Match:
    """What the D detections of an image have found, in their own order.

    Attributes:
        partner: int (D,), the box of its class that a detection has found; -1 for none.
        is_ignored: bool (D,), without a partner, but in a crowd region of its class: neither
            right nor wrong.
    """

    partner: np.ndarray
    is_ignored: np.ndarray


def finite(found: Detections) -> Detections:
    """The detections whose box and score are numbers."""
    whole = np.isfinite(found.boxes_xyxy).all(axis=1) & np.isfinite(found.scores)
    return Detections(*(values[whole] for values in found))


def match(record: ImageRecord, found: Detections) -> Match:
    """Each detection, the most confident first, takes the free box of its class that it overlaps
    most, with an IoU of IOU_THRESHOLD or more. What a detection finds does not depend on less
    confident ones.

    Args:
        found: finite, see `finite`.
    """
    overlap = box_iou(found.boxes_xyxy, record.boxes_xyxy)
    overlap[found.labels[:, None] != record.labels] = 0
    overlap[:, record.is_crowd] = 0
    partner = np.full(len(found.labels), -1)
    for row in np.argsort(-found.scores, kind="stable"):
        box = _last_of_the_best(overlap[row])
        if box >= 0 and overlap[row, box] >= IOU_THRESHOLD:
            partner[row] = box
            overlap[:, box] = 0
    return Match(partner, (partner < 0) & _in_crowd(record, found))


def _last_of_the_best(overlaps: np.ndarray) -> int:
    """The index of the largest value, the last of equal ones as in COCO; -1 of no values."""
    return len(overlaps) - 1 - int(overlaps[::-1].argmax()) if len(overlaps) else -1


def _in_crowd(record: ImageRecord, found: Detections) -> np.ndarray:
    """Whether at least IOU_THRESHOLD of a detection lies in one crowd region of its class."""
    regions, labels = record.boxes_xyxy[record.is_crowd], record.labels[record.is_crowd]
    boxes = found.boxes_xyxy.astype(np.float64)
    sides = np.minimum(boxes[:, None, 2:], regions[:, 2:])
    sides -= np.maximum(boxes[:, None, :2], regions[:, :2])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    inside = sides.clip(0).prod(axis=2) >= IOU_THRESHOLD * areas[:, None]
    return (inside & (labels == found.labels[:, None])).any(axis=1)


def precision_curve(scores: np.ndarray, is_right: np.ndarray, boxes: int) -> np.ndarray:
    """Precision at the recalls RECALLS, as COCO interpolates it: the best at that recall or a
    higher one, 0 where the recall is not reached. Its mean is the average precision.

    Args:
        scores, is_right: (D,), of the detections of one class in all images that are not ignored.
        boxes: number of boxes to find, at least 1.

    Returns:
        (101,)
    """
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(is_right[order])
    precision = right / np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / boxes, RECALLS, side="left")
    reached = places < len(right)
    curve = np.zeros(len(RECALLS))
    curve[reached] = best_from_here[places[reached]]
    return curve


def precision_curves(
    records: Sequence[ImageRecord],
    detections: Sequence[Detections],
    matches: Sequence[Match],
    classes: int,
) -> list[np.ndarray | None]:
    """`precision_curve` of each class, None of one without a box (but crowd regions) to find.

    Args:
        detections, matches: one for each of the records.
        classes: their number; label k belongs to class k - 1.
    """
    counted = [~one.is_ignored for one in matches]
    scores = _joined([f.scores[keep] for f, keep in zip(detections, counted, strict=True)])
    labels = _joined([f.labels[keep] for f, keep in zip(detections, counted, strict=True)])
    right = _joined([one.partner[keep] >= 0 for one, keep in zip(matches, counted, strict=True)])
    wanted = _joined([record.labels[~record.is_crowd] for record in records])
    curves: list[np.ndarray | None] = []
    for label in range(1, classes + 1):
        boxes, own = int((wanted == label).sum()), labels == label
        curves.append(precision_curve(scores[own], right[own], boxes) if boxes else None)
    return curves


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *parts])
