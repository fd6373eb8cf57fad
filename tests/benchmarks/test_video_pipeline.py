"""The arms of the video benchmark go through the same frames; a small run of it."""

import json
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from benchmarks.video_pipeline import LOOP, LOOP_AGAIN, OURS, STAGES, Arms, main
from common.models import load_model, save_model
from common.video import VideoWriter
from tests.phase3_tracking.video_files import decoded, times_of
from tests.random_detectors import random_detector, random_scene

FRAMES = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint and a video of FRAMES + 2 frames."""
    folder = tmp_path_factory.mktemp("benchmark")
    names = {"class_names": ("a", "b"), "category_ids": (1, 2)}
    model = random_detector("demo", num_classes=3, min_size=64, max_size=128, bounded=False)
    save_model(folder / "model.pth", model, architecture="demo", summary={}, **names)
    with VideoWriter(folder / "video.mp4", 96, 64, Fraction(10)) as writer:
        for seed in range(FRAMES + 2):
            writer.write(random_scene(np.random.default_rng(seed), 64, 96))
    return folder / "model.pth", folder / "video.mp4"


def test_every_arm_goes_through_the_frames_asked_for(tmp_path, files):
    model_path, video = files
    arms = Arms(load_model(model_path, torch.device("cpu")), video, FRAMES, tmp_path)
    functions = arms.functions()
    assert set(functions) == {LOOP, LOOP_AGAIN, OURS, *STAGES}
    for function in functions.values():
        function()
    assert len(decoded(tmp_path / "ours.mp4")) == len(decoded(tmp_path / "stage.mp4")) == FRAMES
    assert times_of(tmp_path / "stage.mp4") == times_of(tmp_path / "ours.mp4")
    capture, count = cv2.VideoCapture(str(tmp_path / "loop.mp4")), 0
    while capture.read()[0]:
        count += 1
    assert count == FRAMES
    assert len(arms.frames) == len(arms.detections) == len(arms.tracks) == len(arms.drawn) == FRAMES


def test_a_run(tmp_path, files):
    model_path, video = files
    paths = ("--model-path", model_path, "--input", video, "--output", tmp_path / "speed.json")
    options = ("--max-frames", FRAMES, "--rounds", 2, "--device", "cpu", "--quiet")
    assert main([*map(str, (*paths, *options))]) == 0
    result = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert (result["frames"], result["rounds"]) == (FRAMES, 2)
    assert set(result["ms_per_frame"]) == {LOOP, LOOP_AGAIN, OURS, *STAGES}
    assert all(ms > 0 for ms in result["ms_per_frame"].values())
    assert result["speedup_over_loop"]["ci95"] is None, "two rounds have none"
    assert list(result["inputs"]) == [str(model_path), str(video)]
