"""Golden boxes: what counts as the same, and which batch size was measured."""

import shutil

import cv2
import numpy as np
import pytest

from common import artifacts
from phase4_deployment.package import package_check
from phase4_deployment.package.package_check import (
    GOLDEN,
    GOLDEN_IMAGE,
    golden_boxes,
    golden_findings,
    measured_batch_size,
    unmatched,
)


def box(left: float = 10, score: float = 0.9, category_id: int = 1) -> dict:
    return {"box_xyxy": [left, 10, 50, 60], "score": score, "category_id": category_id}


@pytest.mark.parametrize(
    ("other", "count"),
    [
        (box(), 0),
        (box(left=10.4), 0),
        (box(left=9.4), 1),
        (box(score=0.885), 0),
        (box(score=0.87), 1),
        (box(category_id=2), 1),
    ],
)
def test_boxes_are_the_same_within_the_tolerances(other, count):
    assert len(unmatched([box()], [other])) == len(unmatched([other], [box()])) == count


def test_boxes_near_the_smallest_score_need_no_partner():
    assert unmatched([box(score=0.11)], []) == []
    assert unmatched([box(score=0.13)], []) == [box(score=0.13)]
    assert unmatched([box(), box(left=30)], [box()]) == [box(left=30)]


@pytest.fixture
def golden(package, tmp_path):
    """A copy of what the golden check needs; `(folder, boxes)`."""
    for name in ("model.onnx", "package_info.json", "golden"):
        copy = shutil.copytree if (package / name).is_dir() else shutil.copyfile
        copy(package / name, tmp_path / name)
    return tmp_path, artifacts.read_json(tmp_path / GOLDEN)


def test_the_golden_image_has_boxes_and_they_are_found_again(golden):
    folder, content = golden
    assert len([b for b in content["detections"] if b["score"] > 0.5]) > 1
    assert golden_boxes(folder, "model.onnx", "cpu") == content["detections"]
    assert golden_findings(folder, "model.onnx", "cpu") == []


def test_a_box_that_is_not_found_is_told_with_its_place(golden):
    folder, content = golden
    first = content["detections"][0]
    left, top, right, bottom = first["box_xyxy"]
    first["box_xyxy"] = [left - 3, top, right, bottom]
    artifacts.write_json(folder / GOLDEN, content)
    (found,) = golden_findings(folder, "model.onnx", "cpu")
    count = len(content["detections"])
    told = f"golden/image.png: 1 of {count} golden boxes are not found, 1 others are: "
    assert found.startswith(told + f"{first['name']} {first['score']:.2f} at {left - 3:.0f}, ")


def test_a_box_that_nobody_knew_is_told(golden):
    folder, content = golden
    del content["detections"][0]
    artifacts.write_json(folder / GOLDEN, content)
    (found,) = golden_findings(folder, "model.onnx", "cpu")
    assert f"0 of {len(content['detections'])} golden boxes are not found, 1 others are" in found


@pytest.mark.usefixtures("blind_in_the_dark")
def test_a_golden_image_without_boxes_is_not_said_to_agree(golden, caplog):
    folder, _ = golden
    cv2.imwrite(str(folder / GOLDEN_IMAGE), np.zeros((64, 64, 3), np.uint8))
    artifacts.write_json(folder / GOLDEN, {"detections": []})
    assert golden_boxes(folder, "model.onnx", "cpu") == []
    assert golden_findings(folder, "model.onnx", "cpu") == []
    assert "has no boxes to compare" in caplog.text
    assert "are the golden ones" not in caplog.text


def test_the_batch_size_that_was_measured_for_a_model_of_the_package(package, tmp_path):
    model = package / "model.onnx"
    assert measured_batch_size(package, model, "throughput") == 3
    assert measured_batch_size(package, model, "latency") == 2
    assert measured_batch_size(package, package / "unknown.onnx", "throughput") is None
    assert measured_batch_size(package, tmp_path / "model.onnx", "throughput") is None
    assert measured_batch_size(tmp_path, tmp_path / "model.onnx", "throughput") is None


def test_golden_image_is_small(package):
    height, width = cv2.imread(str(package / package_check.GOLDEN_IMAGE)).shape[:2]
    assert max(height, width) <= 320
