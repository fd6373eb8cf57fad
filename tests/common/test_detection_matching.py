"""Matching and precision-recall curves against pycocotools, and by hand."""

import numpy as np
import pytest

from common.coco_format import ImageRecord
from common.detection_matching import RECALLS, finite, match, precision_curve, precision_curves
from common.models import Detections
from tests.common.test_evaluation import (
    detections,
    pycocotools_evaluator,
    random_detections,
    random_split,
)


def record(boxes=(), labels=(), crowd=()):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.array(labels, np.int64)
    is_crowd = np.isin(np.arange(len(labels)), crowd)
    return ImageRecord(1, None, 100, 100, boxes, labels, is_crowd, boxes[:, 2] * 0)


# --- against pycocotools ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_curves_equal_pycocotools(tmp_path, seed):
    split = random_split(tmp_path, seed)
    found = random_detections(split, seed)
    matches = [match(*pair) for pair in zip(split.records, found, strict=True)]
    ours = precision_curves(split.records, found, matches, len(split.class_names))
    evaluator = pycocotools_evaluator(split, found)
    theirs = evaluator.eval["precision"][0, :, :, 0, -1].T  # of IoU 0.5, (class, recall)
    assert np.array_equal(RECALLS, evaluator.params.recThrs)
    assert [curve is None for curve in ours] == [(curve == -1).all() for curve in theirs]
    compared = [pair for pair in zip(ours, theirs, strict=True) if pair[0] is not None]
    assert len(compared) == 2
    for curve, expected in compared:
        assert 0.05 < curve.mean() < 0.95
        assert curve == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_each_detection_finds_what_it_finds_in_pycocotools(tmp_path, seed):
    split = random_split(tmp_path, seed)
    found = random_detections(split, seed)
    by_image = {}
    for one in pycocotools_evaluator(split, found).evalImgs:
        if one is not None and one["aRng"] == [0, 1e10]:
            ignored = one["dtIgnore"][0].astype(bool)
            right = (one["dtMatches"][0] > 0) & ~ignored
            rows = by_image.setdefault(one["image_id"], [])
            rows += zip(one["dtScores"], right.tolist(), ignored.tolist(), strict=True)
    for each, of_image in zip(split.records, found, strict=True):
        ours = match(each, of_image)
        told = zip(of_image.scores.tolist(), ours.partner >= 0, ours.is_ignored, strict=True)
        assert sorted(told) == sorted(by_image[each.image_id])


# --- by hand ----------------------------------------------------------------------------------


def test_the_confident_one_takes_the_box_and_the_next_goes_without():
    truth = record([[0, 0, 10, 10], [0, 0, 10, 9]], [1, 1])
    found = detections(
        [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]],
        [0.7, 0.9, 0.8, 0.95],
        [1, 1, 1, 2],
    )
    ours = match(truth, found)
    assert ours.partner.tolist() == [-1, 0, 1, -1]
    assert not ours.is_ignored.any()


def test_of_equal_overlaps_the_last_is_taken_as_in_coco():
    ours = match(record([[0, 0, 10, 10]] * 2, [1, 1]), detections([[0, 0, 10, 10]], [0.9], [1]))
    assert ours.partner.tolist() == [1]


def test_an_iou_of_one_half_is_enough():
    truth = record([[0, 0, 10, 10]], [1])
    assert match(truth, detections([[0, 0, 10, 5]], [0.9], [1])).partner.tolist() == [0]
    assert match(truth, detections([[0, 0, 10, 4.9]], [0.9], [1])).partner.tolist() == [-1]


def test_a_crowd_region_takes_any_number_of_its_class_only():
    truth = record([[0, 0, 50, 50], [10, 10, 20, 20]], [1, 1], crowd=[0])
    boxes = [[10, 10, 20, 20], [30, 30, 40, 40], [30, 30, 40, 40], [30, 30, 40, 40], [45, 0, 56, 9]]
    ours = match(truth, detections(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 1, 2, 1]))
    assert ours.partner.tolist() == [1, -1, -1, -1, -1]
    assert ours.is_ignored.tolist() == [False, True, True, False, False]


@pytest.mark.parametrize(("boxes", "found"), [(0, 0), (0, 2), (2, 0)])
def test_nothing_on_either_side(boxes, found):
    ours = match(
        record([[0, 0, 9, 9]] * boxes, [1] * boxes),
        detections([[20, 20, 30, 30]] * found, [0.5] * found, [1] * found),
    )
    assert ours.partner.tolist() == [-1] * found
    assert ours.is_ignored.tolist() == [False] * found


def test_what_is_no_number_is_left_out():
    boxes = [[0, 0, np.nan, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, np.inf, 1]]
    kept = finite(detections(boxes, [0.9, np.nan, 0.7, 0.6], [1, 2, 3, 4]))
    assert isinstance(kept, Detections)
    assert kept.labels.tolist() == [3]


def test_a_curve_by_hand():
    """Right, wrong, right of 4 boxes: recalls 0.25, 0.25, 0.5 at precisions 1, 1/2, 2/3."""
    curve = precision_curve(np.array([0.7, 0.9, 0.8]), np.array([True, True, False]), 4)
    assert curve[:26] == pytest.approx(np.ones(26))
    assert curve[26:51] == pytest.approx(np.full(25, 2 / 3))
    assert not curve[51:].any()
    assert not precision_curve(np.zeros(0), np.zeros(0, bool), 3).any()
