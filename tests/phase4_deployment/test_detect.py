"""The shipped detect.py, run as its users do: alone, in another folder, without the project and
without PyTorch, on pictures and videos. What it finds is what the project finds."""

import csv
import json
import re
import shutil
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from common.artifacts import sha256
from common.onnx_detector import OnnxDetector
from common.video import VideoWriter
from phase3_tracking.backends import load_backend
from phase3_tracking.video_detector import VideoDetector
from phase4_deployment.packing import clean_environment, package_files
from tests.phase4_deployment.packages import run_detect
from tests.random_detectors import random_scene

TRACKS = (".mot.txt", ".csv", ".tracks.json", ".coco.json", ".heatmap.png")


@pytest.fixture
def run(package, clean_python, tmp_path):
    def call(*arguments: str | Path, folder: Path = package):
        return run_detect(clean_python, folder, *arguments, cwd=tmp_path)

    return call


@pytest.fixture
def damaged(package, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(package, tmp_path / "damaged"))


def write_picture(path: Path, height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    picture = random_scene(np.random.default_rng(seed), height, width)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return picture


def write_video(path: Path, frames: int = 10) -> Path:
    """A scene that moves to the right."""
    scene = random_scene(np.random.default_rng(2), 96, 128)
    with VideoWriter(path, 128, 96, Fraction(10)) as writer:
        for index in range(frames):
            writer.write(np.roll(scene, 2 * index, axis=1))
    return path


def frame_sizes(path: str) -> list[tuple[int, int]]:
    with av.open(path) as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


# --- pictures ---------------------------------------------------------------------------------


def test_a_picture_gives_the_same_boxes_as_the_library(run, exported, tmp_path):
    bgr = write_picture(tmp_path / "Straße 1.png")
    done = run("--input", "Straße 1.png", "--output", "out", "--confidence", "0.3")
    assert (done.status, done.error) == (0, "")
    report = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    assert "CPUExecutionProvider" in done.out
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


def test_a_folder_goes_on_after_a_damaged_picture(run, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, size in enumerate([(90, 120), (50, 40), (90, 120), (90, 120)]):
        write_picture(folder / f"{index}.png", *size, seed=index)
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no picture")
    done = run("--input", folder)
    assert done.status == 0
    assert [line.split(":")[0] for line in done.error.splitlines()] == ["warning", "warning"]
    report = json.loads((tmp_path / "detections" / "detections.json").read_text())
    assert [picture["file"] for picture in report["images"]] == [f"{i}.png" for i in range(4)]
    assert report["unreadable"] == ["damaged.jpg", "empty.png"]
    assert len(list((tmp_path / "detections").iterdir())) == 5


def test_classes_that_were_not_asked_for_are_left_out(run, tmp_path):
    write_picture(tmp_path / "a.png", seed=1)
    names = {}
    for classes in (("--classes", "Fußgänger,10"), ()):
        run("--input", "a.png", "--confidence", "0.1", "--overwrite", *classes)
        report = json.loads((tmp_path / "detections" / "detections.json").read_text("utf-8"))
        names[bool(classes)] = {box["name"] for box in report["images"][0]["detections"]}
    assert names[True] == names[False] - {"car"} != names[False]


# --- videos -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tracker", ["cmcsort", "sort"])
def test_a_video_gives_the_tracks_of_phase_3_byte_for_byte(
    run, exported, tmp_path, monkeypatch, tracker
):
    write_video(tmp_path / "street.mp4")
    options = ("--confidence", "0.3", "--tracker", tracker, "--batch-size", "4")
    done = run("--input", "street.mp4", "--output", "package/tracked.mp4", *options)
    assert (done.status, done.error) == (0, "")

    monkeypatch.chdir(tmp_path)
    backend = load_backend(exported.onnx_path, None, "cpu", "auto")
    detector = VideoDetector(backend, 0.3, tracker=tracker, batch_size=4)
    report = detector.process_video("street.mp4", Path("project/tracked.mp4"))
    assert report["tracks"] > 1
    for suffix in TRACKS:
        ours, theirs = (Path(who, "tracked").with_suffix(suffix) for who in ("project", "package"))
        assert ours.read_bytes() == theirs.read_bytes(), suffix
    assert frame_sizes("package/tracked.mp4") == [(128, 96)] * 10  # the picture tells the speed
    written = json.loads(Path("package/tracked.json").read_text(encoding="utf-8"))
    for key in ("statistics", "class_counts", "tracks", "frames_read", "settings", "categories"):
        assert written[key] == json.loads(json.dumps(report[key])), key
    assert "torch" not in written["environment"]["packages"]
    assert written["environment"]["git_commit"] is None
    assert sorted(p.name for p in Path("package").iterdir()) == sorted(
        p.name for p in Path("project").iterdir()
    )


def test_the_options_of_reading_and_counting_are_those_of_phase_3(run, tmp_path):
    write_video(tmp_path / "street.mp4")
    done = run(
        *("--input", "street.mp4", "--output", "results", "--confidence", "0.3"),
        *("--max-frames", "5", "--line", "gate:0.5,0,0.5,1", "--no-video", "--smooth"),
    )
    assert (done.status, done.error) == (0, "")
    with open(tmp_path / "results" / "street_tracked.csv", newline="", encoding="utf-8") as file:
        assert {row["frame"] for row in csv.DictReader(file)} == {"1", "2", "3", "4", "5"}
    assert (tmp_path / "results" / "street_tracked.events.csv").is_file()
    assert not (tmp_path / "results" / "street_tracked.mp4").exists()


def test_a_live_view_is_served_while_the_video_is_worked_on(run, tmp_path):
    write_video(tmp_path / "street.mp4")
    done = run("--input", "street.mp4", "--output", "t.mp4", "--live", "0")
    assert (done.status, done.error) == (0, "")
    assert re.search(r"Live view: open http://127\.0\.0\.1:[1-9]\d*/$", done.out, re.MULTILINE)
    assert frame_sizes(str(tmp_path / "t.mp4")) == [(128, 96)] * 10


def test_a_live_view_on_a_port_in_use_is_refused(run, tmp_path):
    write_video(tmp_path / "street.mp4", frames=2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run("--input", "street.mp4", "--output", "out", "--live", str(port))
    assert done.status == 2
    assert done.error.startswith(f"error: --live 127.0.0.1:{port}: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("asked", "used"), [((), 3), (("--batch-size", "5"), 5)])
def test_the_batch_size_is_the_one_that_was_measured(run, tmp_path, asked, used):
    write_video(tmp_path / "street.mp4", frames=2)
    done = run("--input", "street.mp4", "--output", "t.mp4", "--no-video", *asked)
    assert done.status == 0, done.error
    report = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert report["settings"]["batch_size"] == used


# --- beside other packages --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["common", "phase3_tracking", "phase4_deployment"])
def test_an_installed_package_of_the_same_name_is_not_taken_for_its_own(package, tmp_path, name):
    names = clean_environment.requirement_names(package_files.REQUIREMENTS)
    python = clean_environment.make(tmp_path / "environment", names)
    foreign = next((tmp_path / "environment").rglob("site-packages")) / name
    foreign.mkdir()
    (foreign / "__init__.py").write_text("", encoding="utf-8")
    write_picture(tmp_path / "a.png")
    for arguments in (("--verify", "--device", "cpu"), ("--input", "a.png")):
        done = run_detect(python, package, *arguments, cwd=tmp_path)
        assert (done.status, done.error) == (0, "")


# --- --verify ---------------------------------------------------------------------------------


def test_a_whole_package_verifies(run):
    done = run("--verify", "--device", "cpu")
    assert (done.status, done.error) == (0, "")
    assert re.search(r"^\d{2,3} files are as they were built$", done.out, re.MULTILINE)
    assert re.search(r"^\d+ boxes in golden/image.png are the golden ones", done.out, re.MULTILINE)


@pytest.mark.fault("P4-27")
def test_every_damaged_file_is_named_and_the_status_is_2(run, damaged):
    (damaged / "labels.json").write_bytes(b"{}")
    (damaged / "model_int8.onnx").unlink()
    (damaged / "scipy.py").touch()
    done = run("--verify", folder=damaged)
    assert done.status == 2
    names = [line.split(": ")[1] for line in done.error.splitlines()]
    assert sorted(names) == ["labels.json", "model_int8.onnx", "scipy.py"]


@pytest.mark.parametrize(
    "name", ["common/cli.py", "phase3_tracking/video_detector.py", "common/video.py"]
)
@pytest.mark.parametrize("content", [None, b"def cut(", b"a_name_cut_sh"])
def test_code_that_cannot_be_imported_is_named_too(run, damaged, name, content):
    (damaged / name).unlink()
    if content:
        (damaged / name).write_bytes(content)
    done = run("--verify", folder=damaged)
    assert done.status == 2
    assert done.error.startswith(f"error: {name}: ")
    assert done.error.count("\n") == 0


def test_other_boxes_than_the_golden_ones_are_told(run, damaged):
    golden, info = damaged / "golden" / "detections.json", damaged / "package_info.json"
    content = json.loads(golden.read_text(encoding="utf-8"))
    content["detections"][0]["box_xyxy"][0] -= 2
    golden.write_text(json.dumps(content), encoding="utf-8")
    listed = json.loads(info.read_text(encoding="utf-8"))
    listed["files"]["golden/detections.json"]["sha256"] = sha256(golden)  # as if built so
    info.write_text(json.dumps(listed), encoding="utf-8")
    done = run("--verify", folder=damaged)
    assert done.status == 2
    assert done.error.startswith("error: golden/image.png: 1 of ")


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --input --verify is required"),
        (["--input", "missing.png"], "missing.png: no such file"),
        (["--input", "missing.mp4"], "missing.mp4: no such file"),
        (["--input", "picture.png", "--verify"], "--verify: not allowed with argument --input"),
        (["--input", "picture.png", "--confidence", "2"], "not between 0 and 1"),
        (["--input", "picture.png", "--confidence", "high"], "'high' is not a number"),
        (["--input", "picture.png", "--classes", "unicorn"], "the classes are: car, Fuß"),
        (["--input", "picture.png", "--model", "missing.onnx"], "missing.onnx: no such file"),
        (["--input", "picture.png", "--model", "picture.png"], "picture.png: is no .onnx file"),
        (["--input", "picture.png", "--model", "truncated.onnx"], "truncated.onnx: cannot be load"),
        (["--input", "picture.png", "--model", "empty.onnx"], "empty.onnx: "),
        (["--input", "damaged.png"], "damaged.png: cannot be decoded"),
        (["--input", "notes.txt"], "notes.txt: "),
        (["--input", "empty"], "empty: holds neither videos nor pictures"),
        (["--input", ""], "--input: is empty"),
        (["--input", "picture.png", "--output", "notes.txt"], "notes.txt: is a file"),
        (["--input", "picture.png", "--output", "a.mp4"], "a.mp4: is a file"),
        (["--input", "picture.png", "--output", "."], "is the folder of the input"),
        (["--input", "picture.png", "--live", "8000"], "--live: shows videos, cameras and"),
        (["--input", "picture.png", "--show"], "--show: shows videos, cameras and"),
        (["--input", "picture.png", "--live", "here"], "'here' has no port number"),
        (["--input", "picture.png", "--device", "tpu"], "--device: "),
        (["--input", "picture.png", "--imput", "x"], "did you mean --input?"),
    ],
)
def test_mistakes_are_one_line_and_status_2(run, package, tmp_path, arguments, message):
    write_picture(tmp_path / "picture.png")
    content = (package / "model.onnx").read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "damaged.png").touch()
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments)
    assert done.status == 2, done.error
    assert done.error.count("\n") == 0
    assert done.error.startswith("error: ")
    assert message in done.error
    assert sorted(tmp_path.rglob("*")) == before


def test_results_are_not_replaced_unless_that_is_asked_for(run, tmp_path):
    write_picture(tmp_path / "picture.png")
    assert run("--input", "picture.png", "--output", "out").status == 0
    done = run("--input", "picture.png", "--output", "out")
    assert done.status == 2
    assert "exists already" in done.error
    assert run("--input", "picture.png", "--output", "out", "--overwrite").status == 0


@pytest.mark.parametrize("kind", ["picture", "video"])
def test_cuda_asked_for_and_absent_is_an_error(run, tmp_path, kind):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    write_picture(tmp_path / "picture.png")
    write_video(tmp_path / "video.mp4", frames=2)
    name = {"picture": "picture.png", "video": "video.mp4"}[kind]
    done = run("--input", name, "--output", "out", "--device", "cuda")
    assert done.status == 2
    assert done.error.splitlines()[-1].startswith("error: --device cuda: runs on CPUExecutionProv")
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_not_installed_is_told_with_the_command(package, tmp_path):
    """In a Python that has nothing at all."""
    write_picture(tmp_path / "picture.png")
    command = [
        sys.executable,
        "-I",
        "-S",
        "-B",
        str(package / "detect.py"),
        "--input",
        "picture.png",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: \w+: is not installed – run: pip install -r requirements.txt\n", done.stderr
    )


def test_help_answers_in_a_python_that_has_nothing_at_all(package, tmp_path):
    command = [sys.executable, "-I", "-S", "-B", str(package / "detect.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    asked = {"--input", "--output", "--model", "--confidence", "--device", "--classes"}
    asked |= {"--tracker", "--max-frames", "--batch-size", "--verify"}
    assert asked <= set(re.findall(r"--[a-z-]+", done.stdout))
    assert str(package) not in done.stdout


def test_help_loads_nothing_heavy(package, tmp_path):
    command = [sys.executable, "-I", "-X", "importtime", str(package / "detect.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & {"numpy", "cv2", "onnxruntime", "torch", "av", "scipy", "PIL"}


# --- the detector itself ----------------------------------------------------------------------


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


def test_a_session_never_moves_to_the_cpu_on_its_own(exported):
    assert OnnxDetector(exported.onnx_path, "cpu").session._enable_fallback is False


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
