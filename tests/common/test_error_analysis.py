"""Confusions, misses and false alarms: by hand, and against counts nobody can argue about."""

import json
from dataclasses import replace

import numpy as np
import pytest

from common import artifacts, detection_matching, error_analysis
from common.coco import load_split
from common.error_analysis import CONFIDENCE, CONFUSION, FALSE_ALARM, MISSED, analyse, content
from common.evaluation import coco_map
from tests.coco_data import annotation, image, write_annotations
from tests.common.test_evaluation import detections, perfect, random_detections, random_split


def split_of(folder, *boxes, images=1):
    """Classes disc (label 1, id 3) and box (2, 7); a box is ([x, y, w, h], label, image, crowd)."""
    entries = [
        annotation(bbox, number, at, iscrowd=crowd) | {"category_id": (3, 7)[label - 1]}
        for number, (bbox, label, at, crowd) in enumerate(boxes, start=1)
    ]
    pictures = [image(number, f"{number}.png", 100, 100) for number in range(1, images + 1)]
    return load_split(write_annotations(folder, *entries, images=pictures, split="val"), "val")


def told(analysis):
    """(kind, image, truth, predicted, score, reason) of each error."""
    return [
        (e.kind, e.image, e.truth, e.predicted, e.score and round(e.score, 3), e.reason)
        for e in analysis.errors
    ]


def test_every_kind_of_error_by_hand(tmp_path):
    split = split_of(
        tmp_path,
        ([0, 0, 20, 20], 1, 1, 0),  # found
        ([30, 0, 20, 20], 1, 1, 0),  # taken for a box
        ([60, 0, 20, 20], 2, 1, 0),  # found below the confidence
        ([0, 60, 30, 30], 2, 1, 0),  # not found, the largest
        ([50, 50, 50, 50], 1, 1, 1),  # a crowd
        images=2,
    )
    found = [
        detections(
            [
                *([0, 0, 20, 20], [0, 0, 20, 19], [0, 1, 20, 20], [30, 0, 50, 20]),
                *([60, 0, 80, 19], [60, 60, 70, 70], [60, 60, 70, 70], [0, 60, 30, 64]),
            ],
            [0.9, 0.8, 0.7, 0.95, 0.4, 0.6, 0.55, 0.65],
            [1, 1, 2, 2, 2, 1, 2, 2],
        ),
        detections([[5, 5, 15, 15], [5, 5, np.nan, 15]], [0.99, 1.0], [1, 1]),
    ]
    analysis = analyse(split, found)
    assert told(analysis) == [
        (MISSED, 0, 2, None, None, error_analysis.NOTHING_THERE),
        (MISSED, 0, 2, None, 0.4, error_analysis.WEAK),
        (FALSE_ALARM, 1, None, 1, 0.99, error_analysis.OF_NOTHING),
        (FALSE_ALARM, 0, None, 1, 0.8, error_analysis.TWICE),
        (FALSE_ALARM, 0, None, 2, 0.7, error_analysis.SECOND_CLASS),
        (FALSE_ALARM, 0, None, 2, 0.65, error_analysis.BADLY_PLACED),
        (FALSE_ALARM, 0, None, 2, 0.55, error_analysis.OF_NOTHING),  # a crowd of another class
        (CONFUSION, 0, 1, 2, 0.95, ""),
    ]
    assert analysis.confusion.tolist() == [[1, 1, 0], [0, 0, 2], [2, 3, 0]]
    assert analysis.errors[0].box_xyxy.tolist() == [0, 60, 30, 90]
    assert analysis.errors[2].box_xyxy.tolist() == [5, 5, 15, 15]


def test_a_right_detection_has_its_box_before_a_more_confident_confusion(tmp_path):
    split = split_of(tmp_path, ([0, 0, 20, 20], 1, 1, 0))
    boxes = [[0, 0, 20, 20], [0, 0, 20, 20]]
    analysis = analyse(split, [detections(boxes, [0.9, 0.6], [2, 1])])
    assert told(analysis) == [(FALSE_ALARM, 0, None, 2, 0.9, error_analysis.SECOND_CLASS)]
    assert analysis.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_the_more_confident_confusion_takes_the_box_it_overlaps_most(tmp_path):
    split = split_of(tmp_path, ([0, 0, 20, 20], 1, 1, 0), ([0, 2, 20, 20], 1, 1, 0))
    boxes = [[0, 0, 20, 20], [0, 2, 20, 22]]
    analysis = analyse(split, [detections(boxes, [0.6, 0.9], [2, 2])])
    assert [(e.score, e.truth) for e in analysis.errors] == [
        (pytest.approx(0.9), 1),
        (pytest.approx(0.6), 1),
    ]
    assert analysis.confusion.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_counted_twice_or_lost(tmp_path, seed):
    split = random_split(tmp_path, seed)
    found = random_detections(split, seed)
    confusion = analyse(split, found).confusion
    classes = len(split.class_names)
    boxes = np.concatenate([record.labels[~record.is_crowd] for record in split.records])
    shown = []
    for record, one in zip(split.records, found, strict=True):
        strong = one.scores >= CONFIDENCE
        shown += one.labels[strong & ~detection_matching.match(record, one).is_ignored].tolist()
    counts = np.bincount(boxes, minlength=classes + 1)[1:]
    assert confusion[:-1].sum(axis=1).tolist() == counts.tolist()
    assert confusion[:, :-1].sum(axis=0).tolist() == np.bincount(shown, minlength=4)[1:].tolist()
    assert confusion[-1, -1] == 0
    assert 0 < np.trace(confusion) < len(boxes)


def test_errors_are_worst_first_and_kinds_together(tmp_path):
    split = random_split(tmp_path, 1)
    errors = analyse(split, random_detections(split, 1)).errors
    for kind in error_analysis.KINDS:
        badness = [error.badness for error in errors if error.kind == kind]
        assert len(badness) > 1
        assert badness == sorted(badness, reverse=True)
    kinds = [error.kind for error in errors]
    assert kinds == sorted(kinds, key=error_analysis.KINDS.index)


def test_perfect_detections_have_no_error(tmp_path):
    split = random_split(tmp_path, 2)
    analysis = analyse(split, [perfect(record) for record in split.records])
    assert analysis.errors == []
    assert np.array_equal(analysis.confusion, np.diag(np.diag(analysis.confusion)))
    assert [curve is None or curve.min() == 1 for curve in analysis.curves] == [True] * 3


# --- the report -------------------------------------------------------------------------------


def test_the_report_by_hand(tmp_path):
    split = split_of(
        tmp_path,
        *(([0, 0, 20, 20], 1, 1, 0), ([30, 0, 20, 20], 1, 1, 0), ([60, 0, 20, 20], 1, 1, 0)),
    )
    found = detections(
        [[0, 0, 20, 20], [30, 0, 50, 20], [0, 60, 9, 70]], [0.9, 0.8, 0.7], [1, 2, 1]
    )
    report = content(split, coco_map(split, [found]), analyse(split, [found]))
    assert (report["images"], report["confidence"], report["iou"]) == (1, 0.5, 0.5)
    disc, box = report["classes"]
    assert disc | {"ap": None, "ap_50": None} == {
        **{"name": "disc", "boxes": 3, "ap": None, "ap_50": None, "right": 1},
        **{"recall": 1 / 3, "precision": 0.5, "missed": 1, "false_alarms": 1},
    }
    assert disc["ap_50"] == pytest.approx(34 / 101)  # recalls 0 to 0.33 at a precision of 1
    assert box == {
        **{"name": "box", "boxes": 0, "ap": None, "ap_50": None, "right": 0},
        **{"recall": None, "precision": 0.0, "missed": 0, "false_alarms": 0},
    }
    assert report["confusion"]["classes"] == ["disc", "box", "background"]
    assert report["errors"]["missed"] == {
        "count": 1,
        "reasons": {error_analysis.NOTHING_THERE: 1},
        "worst": [
            {
                **{"image": "1.png", "image_id": 1, "box_xyxy": [60, 0, 80, 20], "truth": "disc"},
                **{"predicted": None, "score": None, "reason": error_analysis.NOTHING_THERE},
            }
        ],
    }
    assert report["errors"]["confusion"]["worst"][0]["predicted"] == "box"
    assert report["errors"]["confusion"]["reasons"] == {}


def test_the_report_agrees_with_the_evaluation_and_is_json(tmp_path):
    split = random_split(tmp_path, 4)
    found = random_detections(split, 4)
    scores = coco_map(split, found)
    report = content(split, scores, analyse(split, found))
    artifacts.write_json(tmp_path / "evaluation.json", report)
    assert json.loads((tmp_path / "evaluation.json").read_text())["map"] == scores["map"]
    measured = [row["ap_50"] for row in report["classes"] if row["ap_50"] is not None]
    assert np.mean(measured) == pytest.approx(scores["map_50"], abs=1e-9)
    assert all(len(one["worst"]) <= error_analysis.LISTED for one in report["errors"].values())


def test_a_split_cut_short_is_analysed_as_far_as_it_goes(tmp_path):
    split = random_split(tmp_path, 5)
    found = random_detections(split, 5)[:4]
    short = replace(split, records=split.records[:4])
    assert told(analyse(split, found)) == told(analyse(short, found))
