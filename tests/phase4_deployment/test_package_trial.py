"""The trial of an archive: what it compares, and that it notices a package that differs."""

import shutil

import numpy as np
import pytest
import torch

from common.models import stock_predictor
from phase4_deployment import package_trial
from phase4_deployment.package_files import write_archive
from phase4_deployment.package_trial import read_tracks, same_tracks, unpacked
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


def test_the_package_agrees_with_the_project_on_a_picture_and_a_video(archive, exported):
    found = stock_predictor(exported.loaded.model, torch.device("cpu"))([IMAGE])[0]
    with unpacked(archive) as trial:
        assert "environment" in trial.python.parts  # a clean one
        assert "golden ones" in trial.run("--verify")
        parity = trial.picture_parity("model.onnx", IMAGE, found, CATEGORY_IDS)
        assert parity["matched"] >= 0.99
        assert trial.tracks("model.onnx", IMAGE) > 0
        moved = found._replace(boxes_xyxy=found.boxes_xyxy + 5)
        with pytest.raises(RuntimeError, match="of the boxes"):
            trial.picture_parity("model_int8.onnx", IMAGE, moved, CATEGORY_IDS)


def test_a_package_that_tracks_differently_is_noticed(package, tmp_path):
    copy = tmp_path / "new"
    shutil.copytree(package, copy)
    options = copy / "phase3_tracking" / "trackers" / "tracker_options.py"
    text = options.read_text(encoding="utf-8")
    options.write_text(text.replace("START_SHARE = 0.4", "START_SHARE = 0.9"), encoding="utf-8")
    assert options.read_text(encoding="utf-8") != text
    with unpacked(write_archive(copy, "detector")) as trial:
        with pytest.raises(RuntimeError, match="finds other tracks"):
            trial.tracks("model.onnx", IMAGE)
        with pytest.raises(RuntimeError, match=r"detect\.py: error: phase3_tracking.*differs from"):
            trial.run("--verify")


def test_without_a_clean_environment_it_is_told(archive, monkeypatch, caplog):
    def make(folder, names):
        raise OSError("no venv here")

    monkeypatch.setattr(package_trial.clean_environment, "make", make)
    with unpacked(archive) as trial:
        assert "no venv here" in caplog.text
        assert "golden ones" in trial.run("--verify")
