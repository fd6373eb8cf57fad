"""The trial of an archive: what it compares, and that it notices a package that differs."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.models import Detections, stock_predictor
from phase4_deployment.packing import package_trial
from phase4_deployment.packing.package_files import write_archive
from phase4_deployment.packing.package_trial import (
    Trial,
    interpreter,
    read_tracks,
    same_tracks,
    unpacked,
)
from tests.phase4_deployment.conftest import CATEGORY_IDS
from tests.random_detectors import random_scene

IMAGE = random_scene(np.random.default_rng(2), 96, 128)


def rows(*changes: tuple[int, float]) -> np.ndarray:
    """Two tracks in two frames, with (column, by how much) changed in the last row."""
    tracks = np.array(
        [[frame, i, 10.0 * i, 5.0, 20.0, 30.0, 0.9, 3, 1] for frame in (1, 2) for i in (1, 2)]
    )
    for column, by in changes:
        tracks[-1, column] += by
    return tracks


@pytest.mark.parametrize(
    ("actual", "same"),
    [
        (rows(), True),
        (rows((2, 0.4), (5, -0.4)), True),
        (rows((2, 0.6)), False),
        (rows((1, 1)), False),
        (rows((0, 1)), False),
        (rows((7, 1)), False),
        (rows()[:-1], False),
        (rows()[::-1], False),
    ],
)
def test_tracks_are_the_same_in_ids_classes_and_boxes(actual, same):
    assert same_tracks(rows(), actual) is same


def test_a_file_of_tracks(tmp_path):
    file = tmp_path / "a.mot.txt"
    file.write_text("1,2,10.50,5.00,20.00,30.00,0.9000,3,1\n", encoding="utf-8")
    assert read_tracks(file).tolist() == [[1, 2, 10.5, 5, 20, 30, 0.9, 3, 1]]
    file.write_text("", encoding="utf-8")
    assert read_tracks(file).shape == (0, 9)


@pytest.mark.fault("P4-47")
def test_the_package_agrees_with_the_project_on_a_picture_and_a_video(
    archive, clean_python, exported
):
    found = stock_predictor(exported.loaded.model, torch.device("cpu"))([IMAGE])[0]
    with unpacked(archive, clean_python) as trial:
        assert "golden ones" in trial.run("--verify")
        parity = trial.picture_parity("model.onnx", IMAGE, found, CATEGORY_IDS)
        assert parity["matched"] >= 0.99
        assert trial.tracks("model.onnx", IMAGE) > 0
        moved = found._replace(boxes_xyxy=found.boxes_xyxy + 5)
        with pytest.raises(RuntimeError, match="of the boxes"):
            trial.picture_parity("model_int8.onnx", IMAGE, moved, CATEGORY_IDS)


def test_a_package_that_tracks_differently_is_noticed(package, clean_python, tmp_path):
    copy = tmp_path / "new"
    shutil.copytree(package, copy)
    options = copy / "phase3_tracking" / "trackers" / "tracker_options.py"
    text = options.read_text(encoding="utf-8")
    options.write_text(text.replace("START_SHARE = 0.4", "START_SHARE = 0.9"), encoding="utf-8")
    assert options.read_text(encoding="utf-8") != text
    with unpacked(write_archive(copy, "detector"), clean_python) as trial:
        with pytest.raises(RuntimeError, match="finds other tracks"):
            trial.tracks("model.onnx", IMAGE)
        with pytest.raises(RuntimeError, match=r"detect\.py: error: phase3_tracking.*differs from"):
            trial.run("--verify")


@pytest.mark.fault("P4-47")
def test_an_environment_of_its_own_is_recorded_as_clean(tmp_path):
    python, tried_in = interpreter(tmp_path / "environment")
    assert tmp_path in python.parents
    assert tried_in == {"clean": True, "reason": None}


def test_without_a_clean_environment_it_is_told(archive, tmp_path, monkeypatch, caplog):
    def make(folder, names):
        raise OSError("no venv\nhere")

    monkeypatch.setattr(package_trial.clean_environment, "make", make)
    python, tried_in = interpreter(tmp_path / "environment")
    assert tried_in == {"clean": False, "reason": "no venv here"}
    assert "no venv here" in caplog.text
    with unpacked(archive, python) as trial:
        assert "golden ones" in trial.run("--verify")


def test_what_makes_the_environment_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    python, tried_in = interpreter(tmp_path / "environment")
    assert python == Path(sys.executable)
    assert not tried_in["clean"]
    assert "packaging.requirements" in tried_in["reason"]


def detections(*scores: float) -> Detections:
    boxes = np.tile(np.float32([1, 2, 30, 40]), (len(scores), 1))
    return Detections(boxes, np.float32(scores), np.ones(len(scores), np.int64))


def test_the_trial_takes_the_first_image_with_something_to_track(caplog):
    images = [np.full((4, 4, 3), value, np.uint8) for value in range(4)]
    scores = [(), (0.29,), (0.1, 0.31), (0.9, 0.9)]

    def detect(batch):
        return [detections(*scores[image[0, 0, 0]]) for image in batch]

    assert package_trial.image_for(images, detect) is images[2]
    assert not caplog.records
    assert package_trial.image_for(images[:2], detect) is images[0]
    assert "No val image has boxes" in caplog.text


def test_a_video_in_which_nothing_is_tracked_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(package_trial, "_run", lambda command, cwd: "")
    monkeypatch.setattr(package_trial, "read_tracks", lambda file: np.empty((0, 9)))
    assert Trial(tmp_path, Path(sys.executable), tmp_path).tracks("model.onnx", IMAGE) == 0
    assert "Nothing is tracked in the trial's video" in caplog.text
