"""How good detections are: COCO mean average precision, and how far two detectors agree."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from common import cli
from common.cli import log
from common.coco import CocoSplit, read_image
from common.models import Detections, Predictor

MATCH_IOU = 0.99  # two boxes are the same detection
PARITY_MIN_SCORE = 0.05  # torchvision's own score threshold: weaker boxes are never returned


def evaluate(
    predict: Predictor, split: CocoSplit, *, batch_size: int = 1, max_images: int | None = None
) -> dict[str, Any]:
    """COCO box mAP of a predictor on a split (crowd regions follow COCO's crowd rule).

    Returns:
        `map` (mean over IoU 0.50:0.95), `map_50`, `map_75`, `per_class` {name: map} and `images`,
        the number evaluated. A mean is None where there is no box (but crowd regions) to find.
    """
    records = split.records[:max_images]
    detections: list[Detections] = []
    starts = range(0, len(records), batch_size)
    for start in cli.progress(starts, total=len(starts), label="evaluating"):
        batch = records[start : start + batch_size]
        detections += predict([read_image(r.path, (r.width, r.height)) for r in batch])
    return coco_map(split, detections)


def coco_map(split: CocoSplit, detections: Sequence[Detections]) -> dict[str, Any]:
    """COCO box mAP of `detections[i]` on `split.records[i]`; see `evaluate` for the keys."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth = _ground_truth(split, len(detections))
    results = [
        {
            "image_id": image_index,
            "category_id": int(label),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
        }
        for image_index, found in enumerate(detections)
        for (x1, y1, x2, y2), score, label in zip(*found, strict=True)
        if np.isfinite((x1, y1, x2, y2, score)).all()
    ]
    per_class: dict[str, float | None] = dict.fromkeys(split.class_names)
    wanted = {entry["category_id"] for entry in truth["annotations"] if not entry["iscrowd"]}
    if not wanted or not results:
        per_class.update({split.class_names[label - 1]: 0.0 for label in wanted})
        means = dict.fromkeys(("map", "map_50", "map_75"), 0.0 if wanted else None)
        return {**means, "per_class": per_class, "images": len(detections)}
    ground_truth = COCO(truth)
    evaluator = COCOeval_faster(
        ground_truth, ground_truth.loadRes(results), iouType="bbox", print_function=log.debug
    )
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    precision = evaluator.eval["precision"][..., 0, -1]  # (IoU, recall, class), all areas
    for index, name in enumerate(split.class_names):
        values = precision[:, :, index]
        per_class[name] = float(values[values > -1].mean()) if (values > -1).any() else None
    overall, at_50, at_75 = (float(value) for value in evaluator.stats[:3])
    return {
        "map": overall,
        "map_50": at_50,
        "map_75": at_75,
        "per_class": per_class,
        "images": len(detections),
    }


def _ground_truth(split: CocoSplit, count: int) -> dict[str, list]:
    """The split as a COCO dictionary with contiguous ids. Annotation ids start at 1: COCO's
    evaluator takes the id 0 for "unmatched" and would lower a perfect score."""
    annotations: list[dict[str, Any]] = []
    for image_index, record in enumerate(split.records[:count]):
        boxes = zip(
            record.boxes_xyxy.tolist(), record.labels, record.is_crowd, record.areas, strict=True
        )
        for (x1, y1, x2, y2), label, is_crowd, area in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_index,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(is_crowd),
                }
            )
    return {
        "images": [
            {"id": index, "width": record.width, "height": record.height}
            for index, record in enumerate(split.records[:count])
        ],
        "annotations": annotations,
        "categories": [
            {"id": index + 1, "name": name} for index, name in enumerate(split.class_names)
        ],
    }


def compare_detections(
    reference: Sequence[Detections], candidate: Sequence[Detections]
) -> dict[str, float | None]:
    """Parity of two detectors on the same images, the same whichever is the reference.

    Detections are paired one to one, with the same label and IoU >= MATCH_IOU, best pairs first.

    Returns:
        `matched`: share of the detections scoring at least PARITY_MIN_SCORE that have a partner,
        of the reference or of the candidate, whichever is less: neither missing nor additional
        detections pass (1.0 when there are none). `unmatched`: how many of them have none, of the
        side that has more such. `max_box_error_px` and `max_score_error` over
        the pairs (None without pairs).
    """
    totals, partnered = np.zeros(2, int), np.zeros(2, int)
    box_errors, score_errors = [], []
    for expected, found in zip(reference, candidate, strict=True):
        strong = [side.scores >= PARITY_MIN_SCORE for side in (expected, found)]
        totals += [side.sum() for side in strong]
        for i, j in _one_to_one(expected, found):
            are_strong = np.array([strong[0][i], strong[1][j]])
            partnered += are_strong
            if are_strong.any():
                box_errors.append(np.abs(expected.boxes_xyxy[i] - found.boxes_xyxy[j]).max())
                score_errors.append(abs(expected.scores[i] - found.scores[j]))
    shares = partnered[totals > 0] / totals[totals > 0]
    return {
        "matched": float(shares.min(initial=1.0)),
        "unmatched": int((totals - partnered).max()),
        "max_box_error_px": float(max(box_errors)) if box_errors else None,
        "max_score_error": float(max(score_errors)) if score_errors else None,
    }


def _one_to_one(expected: Detections, found: Detections) -> list[tuple[int, int]]:
    if not len(expected.scores) or not len(found.scores):
        return []
    overlap = box_iou(expected.boxes_xyxy, found.boxes_xyxy)
    overlap[expected.labels[:, None] != found.labels[None, :]] = 0
    pairs, used_rows, used_columns = [], set(), set()
    rows, columns = np.nonzero(overlap >= MATCH_IOU)
    for order in np.argsort(-overlap[rows, columns], kind="stable"):
        i, j = int(rows[order]), int(columns[order])
        if i not in used_rows and j not in used_columns:
            pairs.append((i, j))
            used_rows.add(i)
            used_columns.add(j)
    return pairs


def box_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: xyxy (N, 4) and (M, 4) -> (N, M)."""
    a, b = boxes_a.astype(np.float64), boxes_b.astype(np.float64)
    width = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    overlap = width.clip(0) * height.clip(0)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
