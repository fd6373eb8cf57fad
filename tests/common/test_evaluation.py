"""mAP against pycocotools, parity of two detectors by hand."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.coco import load_split
from common.evaluation import (
    MATCH_IOU,
    PARITY_MIN_SCORE,
    box_iou,
    coco_map,
    compare_detections,
    evaluate,
)
from common.models import Detections
from tests.coco_data import CATEGORIES, annotation, image, write_annotations, write_shapes

THREE = [*CATEGORIES, {"id": 8, "name": "absent"}]


def detections(boxes=(), scores=(), labels=()):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
    )


def perfect(record):
    return Detections(
        record.boxes_xyxy, np.linspace(0.9, 0.5, len(record.labels), dtype=np.float32),
        record.labels,
    )  # fmt: skip


def random_split(folder, seed, crowd_share=0.15):
    """Ids with gaps, one annotation id 0, crowds, an image without boxes, an absent class."""
    rng = np.random.default_rng(seed)
    images = [image(int(i), f"{i}.png", 300, 200) for i in rng.permutation(99)[:12]]
    boxes = []
    for number in range(60):
        side = float(rng.choice([12, 40, 110]))
        height = side * rng.uniform(0.5, 0.8)
        # Eighths of a pixel are exact in float32: both evaluators get the very same boxes.
        box = [round(float(value) * 8) / 8 for value in (*rng.uniform(0, 80, 2), side, height)]
        entry = annotation(box, number, images[rng.integers(11)]["id"])
        entry["category_id"] = int(rng.choice([3, 7]))
        entry |= {"iscrowd": int(rng.random() < crowd_share), "area": box[2] * box[3] * 0.7}
        boxes.append(entry)
    folder = write_annotations(folder, *boxes, images=images, categories=THREE)
    return load_split(folder, "train")


def random_detections(split, seed):
    """Shifted ground truth, some with the wrong label, duplicates, and boxes at random."""
    rng = np.random.default_rng(seed)
    found, pool = [], rng.permutation(np.linspace(0.05, 1, 5000))  # no ties: their order is free
    for record in split.records:
        boxes = np.repeat(record.boxes_xyxy, 2, axis=0)
        sides = boxes[:, 2:] - boxes[:, :2]
        boxes = boxes + np.tile(sides, 2) * rng.normal(0, 0.06, boxes.shape)
        labels = np.where(rng.random(len(boxes)) < 0.15, 3, np.repeat(record.labels, 2))
        stray = rng.uniform(0, 100, (8, 4))
        stray[:, 2:] += stray[:, :2]
        boxes = np.vstack([boxes, stray])
        scores, pool = pool[: len(boxes)], pool[len(boxes) :]
        found.append(detections(boxes, scores, [*labels, *rng.integers(1, 4, 8)]))
    return found


def pycocotools_evaluator(split, found):
    """The oracle on the same data; annotation ids are moved off 0, which it mistakes."""
    content = json.loads(split.annotation_file.read_text())
    for entry in content["annotations"]:
        entry["id"] += 1
        entry["area"] = entry.get("area", entry["bbox"][2] * entry["bbox"][3])
        entry["iscrowd"] = entry.get("iscrowd", 0)
    results = [
        {
            "image_id": record.image_id,
            "category_id": split.category_ids[label - 1],
            "bbox": [*map(float, box[:2]), *map(float, box[2:] - box[:2])],
            "score": float(score),
        }
        for record, image_detections in zip(split.records, found, strict=True)
        for box, score, label in zip(*image_detections, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def pycocotools_means(split, found):
    evaluator = pycocotools_evaluator(split, found)
    precision = evaluator.eval["precision"][..., 0, -1]
    classes = [values[values > -1] for values in np.moveaxis(precision, 2, 0)]
    return evaluator.stats[:3], [values.mean() if len(values) else None for values in classes]


# --- mean average precision -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_means_and_classes_equal_pycocotools(tmp_path, seed, capsys):
    split = random_split(tmp_path, seed)
    found = random_detections(split, seed)
    ours = coco_map(split, found)
    assert capsys.readouterr().out == ""
    means, classes = pycocotools_means(split, found)
    assert [ours[key] for key in ("map", "map_50", "map_75")] == pytest.approx(means, abs=1e-9)
    assert 0.1 < ours["map"] < 0.9  # neither end would tell much
    assert ours["per_class"] == {
        name: value if value is None else pytest.approx(value, abs=1e-9)
        for name, value in zip(split.class_names, classes, strict=True)
    }
    assert ours["per_class"]["absent"] is None
    assert ours["images"] == 12


@pytest.mark.fault("P1-18")
def test_perfect_detections_score_one_also_with_annotation_id_zero(tmp_path):
    split = random_split(tmp_path, 3, crowd_share=0)
    result = coco_map(split, [perfect(record) for record in split.records])
    assert [result[key] for key in ("map", "map_50", "map_75")] == pytest.approx([1, 1, 1])
    assert result["per_class"] == {
        "disc": pytest.approx(1),
        "box": pytest.approx(1),
        "absent": None,
    }


@pytest.mark.fault("P1-32")
def test_detections_inside_a_crowd_are_neither_right_nor_wrong(tmp_path):
    crowd = annotation([50, 0, 50, 50], 2, iscrowd=1)
    folder = write_annotations(
        tmp_path, annotation([0, 0, 20, 20]), crowd, images=[image(width=100, height=50)]
    )
    split = load_split(folder, "train")
    in_crowd = [[60, 10, 70, 20], [80, 10, 90, 20]]
    result = coco_map(split, [detections([[0, 0, 20, 20], *in_crowd], [0.5, 0.9, 0.8], [1, 1, 1])])
    assert result["map"] == pytest.approx(1)
    elsewhere = coco_map(split, [detections([[0, 0, 20, 20], [25, 5, 35, 15]], [0.5, 0.9], [1, 1])])
    assert elsewhere["map"] == pytest.approx(0.5)  # one false positive before the true one


def test_a_box_of_half_the_area_counts_at_no_threshold_above_a_half(tmp_path):
    split = load_split(write_annotations(tmp_path, annotation([0, 0, 20, 20])), "train")
    result = coco_map(split, [detections([[0, 0, 20, 11]], [0.9], [1])])  # IoU 0.55
    assert (result["map_50"], result["map_75"]) == (pytest.approx(1), 0)
    assert result["map"] == pytest.approx(0.2)  # right at 0.50 and 0.55 of ten thresholds


def test_no_detections_score_zero_and_no_boxes_score_nothing(tmp_path):
    split = load_split(write_annotations(tmp_path / "a", annotation([0, 0, 9, 9])), "train")
    result = coco_map(split, [detections()])
    assert (result["map"], result["map_50"], result["map_75"]) == (0, 0, 0)
    assert result["per_class"] == {"disc": 0.0, "box": None}
    folders = [
        write_annotations(tmp_path / "b"),
        write_annotations(tmp_path / "c", annotation([0, 0, 9, 9], iscrowd=1)),
    ]
    for folder in folders:
        split = load_split(folder, "train")
        for found in (detections(), detections([[0, 0, 9, 9]], [0.5], [1])):
            result = coco_map(split, [found])
            assert (result["map"], result["map_50"], result["map_75"]) == (None, None, None)
            assert result["per_class"] == {"disc": None, "box": None}


def test_detections_that_are_no_numbers_are_left_out(tmp_path):
    split = load_split(write_annotations(tmp_path, annotation([0, 0, 20, 20])), "train")
    boxes = [[0, 0, 20, 20], [np.nan, 0, 5, 5], [0, 0, np.inf, 5], [1, 1, 5, 5]]
    result = coco_map(split, [detections(boxes, [0.5, 0.9, 0.9, np.nan], [1, 1, 1, 1])])
    assert result["map"] == pytest.approx(1)


def test_evaluate_predicts_in_batches_and_stops_at_max_images(tmp_path):
    split = load_split(write_shapes(tmp_path / "data", splits={"train": 5}), "train")
    batches = []

    def predict(images):
        start = sum(batches)
        batches.append(len(images))
        assert all(picture.shape == (48, 64, 3) for picture in images)
        return [perfect(record) for record in split.records[start : start + len(images)]]

    result = evaluate(predict, split, batch_size=2)
    assert batches == [2, 2, 1]
    assert (result["map"], result["images"]) == (pytest.approx(1), 5)
    batches.clear()
    assert evaluate(predict, split, batch_size=2, max_images=3)["images"] == 3
    assert batches == [2, 1]


# --- parity -----------------------------------------------------------------------------------

A, B = [0, 0, 200, 200], [300, 300, 400, 500]
NEAR_A = [0, 0, 200, 199]  # IoU with A: 0.995


def test_parity_of_equal_detectors_is_one():
    found = [detections([A, B], [0.9, 0.3], [1, 2]), detections()]
    assert compare_detections(found, found) == {
        "matched": 1.0,
        "unmatched": 0,
        "max_box_error_px": 0.0,
        "max_score_error": 0.0,
    }


def test_parity_by_hand():
    reference = [detections([A, B], [0.9, 0.8], [1, 2]), detections([A, B], [0.7, 0.6], [1, 1])]
    candidate = [
        detections([B, NEAR_A], [0.75, 0.9], [2, 1]),  # both found, in another order
        detections([A, B], [0.7, 0.6], [2, 1]),  # the first has another label
    ]
    assert compare_detections(reference, candidate) == {
        "matched": 3 / 4,
        "unmatched": 1,
        "max_box_error_px": 1.0,
        "max_score_error": pytest.approx(0.05),
    }


def test_a_candidate_is_used_once_and_the_nearest_pair_first():
    reference = [detections([NEAR_A, A], [0.9, 0.8], [1, 1])]
    result = compare_detections(reference, [detections([A], [0.8], [1])])
    assert result["matched"] == 0.5
    assert result["max_box_error_px"] == 0.0
    assert result["max_score_error"] == 0.0


def test_weak_detections_are_not_asked_for():
    weak = np.nextafter(np.float32(PARITY_MIN_SCORE), np.float32(0))
    reference = [detections([A, B], [0.9, weak], [1, 1])]
    assert compare_detections(reference, [detections([A], [0.9], [1])])["matched"] == 1.0
    reference = [detections([A, B], [0.9, 0.0501], [1, 1])]
    assert compare_detections(reference, [detections([A], [0.9], [1])])["matched"] == 0.5


def test_parity_without_detections():
    nothing = {"matched": 1.0, "unmatched": 0, "max_box_error_px": None, "max_score_error": None}
    assert compare_detections([], []) == nothing
    one = [detections([A], [0.9], [1])]
    for missing in (
        compare_detections(one, [detections()]),
        compare_detections([detections()], one),
    ):
        assert missing == {**nothing, "matched": 0.0, "unmatched": 1}


def test_additional_detections_count_like_missing_ones():
    few, more = [detections([A], [0.9], [1])], [detections([A, B, B], [0.9, 0.8, 0.01], [1, 1, 2])]
    assert compare_detections(few, more)["matched"] == 0.5
    assert compare_detections(more, few) == compare_detections(few, more)


def test_parity_needs_the_same_images():
    with pytest.raises(ValueError, match="zip"):
        compare_detections([detections()], [])


def test_box_iou_by_hand():
    boxes = np.array([A, NEAR_A, B, [100, 100, 300, 300], [5, 5, 5, 9]], np.float32)
    iou = box_iou(boxes, boxes)
    assert iou.shape == (5, 5)
    assert iou[0, 1] == pytest.approx(0.995)
    assert iou[0, 1] >= MATCH_IOU
    assert iou[0, 2] == 0
    assert iou[0, 3] == pytest.approx(100 * 100 / (2 * 200 * 200 - 100 * 100))
    assert iou[4].tolist() == [0] * 5  # no area, no overlap, also with itself
    assert np.array_equal(iou, iou.T)
    assert box_iou(boxes, boxes[:0]).shape == (5, 0)
