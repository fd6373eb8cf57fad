"""The shipped detect.py, run as its users do: alone, in another folder, without the project."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from common.onnx_detector import OnnxDetector
from phase4_deployment.package_files import write_program
from tests.random_detectors import random_scene


@pytest.fixture(scope="module")
def package(exported, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shipped package")
    write_program(folder)
    shutil.copy(exported.onnx_path, folder / "model.onnx")
    return folder


def run(package: Path, *arguments: str | Path, cwd: Path) -> SimpleNamespace:
    """Runs the copy isolated (-I): neither the working folder nor PYTHONPATH is searched."""
    command = [sys.executable, "-I", str(package / "detect.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    return SimpleNamespace(status=done.returncode, out=done.stdout, error=done.stderr.strip())


def write_picture(path: Path, height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    picture = random_scene(np.random.default_rng(seed), height, width)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return picture


def test_a_picture_gives_the_same_boxes_as_the_library(package, exported, tmp_path):
    bgr = write_picture(tmp_path / "Straße 1.png")
    done = run(package, "Straße 1.png", "--output", "out", "--confidence", "0.3", cwd=tmp_path)
    assert (done.status, done.error) == (0, "")
    report = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    assert report["provider"] in done.out
    (picture,) = report["images"]
    assert (picture["width"], picture["height"]) == (120, 90)
    (expected,) = OnnxDetector(exported.onnx_path, "cpu")([bgr[..., ::-1]])
    count = int((expected.scores >= 0.3).sum())
    assert len(picture["detections"]) == count > 0
    for row, box, score, name in zip(
        picture["detections"], expected.boxes_xyxy, expected.scores, expected.names, strict=False
    ):
        np.testing.assert_allclose(row["box_xyxy"], box, atol=1e-2)
        assert row["score"] == pytest.approx(float(score), abs=1e-4)
        assert row["name"] == name
        assert row["category_id"] == {"car": 3, "Fußgänger": 1, "traffic light": 10}[name]
    drawn = cv2.imread(str(tmp_path / "out" / "Straße 1.png.detections.jpg"))
    assert drawn.shape == bgr.shape


def test_a_folder_goes_on_after_a_damaged_picture(package, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, size in enumerate([(90, 120), (50, 40)]):
        write_picture(folder / f"{index}.png", *size, seed=index)
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no picture")
    done = run(package, folder, cwd=tmp_path)
    assert done.status == 0
    assert len(done.error.splitlines()) == 2
    report = json.loads((tmp_path / "detections" / "detections.json").read_text())
    assert [picture["file"] for picture in report["images"]] == ["0.png", "1.png"]
    assert report["unreadable"] == ["damaged.jpg", "empty.png"]
    assert len(list((tmp_path / "detections").iterdir())) == 3


def test_a_video_is_written_frame_by_frame(package, tmp_path):
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), codec, 12.0, (120, 90))
    for seed in range(4):
        writer.write(random_scene(np.random.default_rng(seed), 90, 120))
    writer.release()
    done = run(package, "in.avi", "--output", "out", cwd=tmp_path)
    assert (done.status, done.error) == (0, "")
    report = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert (report["frames_read"], report["truncated"], report["fps"]) == (4, False, 12)
    capture = cv2.VideoCapture(str(tmp_path / "out" / "in.detections.mp4"))
    frames = 0
    while capture.read()[0]:
        frames += 1
    assert frames == 4


def test_batches_of_several_sizes(exported):
    detector = OnnxDetector(exported.onnx_path, "cpu")
    rng = np.random.default_rng(0)
    images = [random_scene(rng, *size) for size in [(64, 96), (96, 64), (64, 96), (1, 1), (64, 96)]]
    together = detector(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector([image])
        assert found.names == alone.names
        np.testing.assert_allclose(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-3)
    assert detector([]) == []
    with pytest.raises(ValueError, match="uint8"):
        detector([np.zeros((4, 4), np.uint8)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "missing.png: no such file"),
        (["picture.png", "--confidence", "2"], "not between 0 and 1"),
        (["picture.png", "--confidence", "high"], "--confidence: 'high' is not a number"),
        (["picture.png", "--model", "missing.onnx"], "missing.onnx: no such file"),
        (["picture.png", "--model", "picture.png"], "picture.png: cannot be loaded"),
        (["picture.png", "--model", "truncated.onnx"], "truncated.onnx: cannot be loaded"),
        (["picture.png", "--model", "empty.onnx"], "empty.onnx: "),
        (["notes.txt"], "notes.txt: not a readable image or video"),
        (["empty"], "empty: no images in the folder"),
        (["picture.png", "--output", "notes.txt"], "cannot be written"),
        (["picture.png", "--no-such-option"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line_and_status_2(package, tmp_path, arguments, message):
    write_picture(tmp_path / "picture.png")
    content = (package / "model.onnx").read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = run(package, *arguments, cwd=tmp_path)
    lines = [line for line in done.error.splitlines() if line.startswith("error: ")]
    assert done.status == 2, done.error
    assert message in lines[0]
    assert "Traceback" not in done.error
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "detections") == before


def test_cuda_asked_for_and_absent_is_an_error(package, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    write_picture(tmp_path / "picture.png")
    done = run(package, "picture.png", "--device", "cuda", cwd=tmp_path)
    assert done.status == 2
    assert done.error.splitlines()[-1].startswith("error: --device cuda: runs on CPUExecutionProv")


def test_cuda_libraries_are_loaded_before_the_session_unless_on_the_cpu(
    exported, monkeypatch, capsys
):
    import onnxruntime

    loaded = []

    def preload():
        loaded.append("libraries")
        print("Failed to load libcurand.so.10")

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    OnnxDetector(exported.onnx_path, "cpu")
    assert loaded == []
    OnnxDetector(exported.onnx_path, "auto")
    assert loaded == ["libraries"]
    assert capsys.readouterr().out == ""


def test_a_mistake_is_told_before_any_package_is_loaded(tmp_path):
    write_program(tmp_path)
    code = "import detect, sys; print(*sys.modules)"
    folder = tmp_path
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0
    assert not set(done.stdout.split()) & {"numpy", "cv2", "onnxruntime", "torch", "common.cli"}
