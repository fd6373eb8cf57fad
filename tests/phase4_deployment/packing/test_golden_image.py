"""Which picture becomes the golden one: --verify shall have something to compare."""

import cv2
import numpy as np
import pytest

from common import artifacts
from common.models import Detections
from common.onnx_detector import OnnxDetector
from phase4_deployment.package import package_check
from phase4_deployment.packing import golden_image
from phase4_deployment.packing.golden_image import first_with_boxes, write_golden
from tests.random_detectors import random_scene

EMPTY = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture
def folder(exported, tmp_path):
    (tmp_path / "model.onnx").write_bytes(exported.onnx_path.read_bytes())
    return tmp_path


def picture(folder) -> np.ndarray:
    return cv2.imread(str(folder / "golden" / "image.png"))[..., ::-1]


def scenes(count: int) -> list[np.ndarray]:
    return [random_scene(np.random.default_rng(seed), 120, 160) for seed in range(count)]


def test_it_is_the_one_with_the_most_sure_boxes(folder, exported):
    images = scenes(4)
    found = OnnxDetector(exported.onnx_path, "cpu")(images)
    counts = [int((one.scores >= golden_image.SURE).sum()) for one in found]
    assert counts[0] < max(counts)
    compared = write_golden(folder, images, "model.onnx")
    best = counts.index(max(counts))
    np.testing.assert_array_equal(picture(folder), images[best])
    assert compared == int((found[best].scores >= package_check.COMPARED_SCORE).sum())


@pytest.mark.usefixtures("blind_in_the_dark")
def test_pictures_without_boxes_are_passed_over(folder, caplog):
    """More of them than there are candidates for the most sure boxes."""
    (scene,) = scenes(1)
    images = [EMPTY] * (golden_image.CANDIDATES + 1) + [scene]
    assert write_golden(folder, images, "model.onnx") > 0
    np.testing.assert_array_equal(picture(folder), scene)
    assert not caplog.records


@pytest.mark.usefixtures("blind_in_the_dark")
def test_where_nothing_is_sure_the_first_with_boxes_is_taken(folder, monkeypatch):
    monkeypatch.setattr(golden_image, "SURE", 1.1)
    images = scenes(2)
    assert write_golden(folder, [EMPTY, *images], "model.onnx") > 0
    np.testing.assert_array_equal(picture(folder), images[0])


@pytest.mark.usefixtures("blind_in_the_dark")
def test_no_boxes_at_all_are_told(folder, caplog):
    assert write_golden(folder, [EMPTY, EMPTY], "model.onnx") == 0
    assert "No val image has boxes" in caplog.text
    assert artifacts.read_json(folder / "golden" / "detections.json")["detections"] == []


def test_the_first_image_with_a_box_of_that_score():
    scores = [[], [0.49], [0.2, 0.5], [0.9]]
    images = [np.full((1, 1, 3), value, np.uint8) for value in range(4)]

    def detect(batch):
        (found,) = (np.float32(scores[image[0, 0, 0]]) for image in batch)
        return [Detections(np.zeros((len(found), 4)), found, np.ones(len(found), np.int64))]

    assert first_with_boxes(images, detect, 0.5) is images[2]
    assert first_with_boxes(images, detect, 0.95) is None
    assert first_with_boxes([], detect, 0.5) is None
