"""The three kinds of detector behind one interface, and what each refuses."""

import json
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from common.cli import UserError
from common.video import VideoWriter
from phase3_tracking import mot_files
from phase3_tracking.backends import load_backend, of_model
from phase3_tracking.recorded_detections import RecordedDetections
from phase3_tracking.video_detector import VideoDetector, main
from tests.exported_detector import CATEGORY_IDS, CLASS_NAMES, exported_once
from tests.phase3_tracking.video_files import frame, write_detections
from tests.random_detectors import random_scene

FRAMES, HEIGHT, WIDTH = 8, 120, 160


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_once(tmp_path_factory)


@pytest.fixture(scope="module")
def pan(tmp_path_factory):
    """A camera that turns slowly over a scene."""
    path = tmp_path_factory.mktemp("pan") / "pan.mp4"
    scene = random_scene(np.random.default_rng(5), HEIGHT, WIDTH + 2 * FRAMES)
    with VideoWriter(path, WIDTH, HEIGHT, Fraction(10)) as writer:
        for index in range(FRAMES):
            writer.write(np.ascontiguousarray(scene[:, 2 * index : 2 * index + WIDTH]))
    return path


def run(*arguments) -> int:
    return main([*map(str, arguments), "--quiet"])


def widest_gap(scores: np.ndarray) -> float:
    """A threshold that rounding cannot carry a score across."""
    ordered = np.sort(scores[(scores > 0.3) & (scores < 0.9)])
    at = np.argmax(np.diff(ordered))
    assert ordered[at + 1] - ordered[at] > 0.005
    return float(ordered[at : at + 2].mean())


def test_an_onnx_file_gives_the_tracks_of_its_checkpoint(tmp_path, exported, pan):
    from phase3_tracking.inputs.sources import open_source

    with open_source(pan) as source:
        frames = [one.image_bgr for one in source]
    detector = VideoDetector(of_model(exported.loaded, "fp32"), 0.05)
    scores = np.concatenate([rows[:, 4] for rows in detector.detect_frames(frames)])
    confidence = widest_gap(scores)
    options = ("--input", pan, "--confidence", confidence, "--tracker", "iou", "--min-hits", "1")
    more = ("--no-video", "--device", "cpu")
    found = []
    for name, precision in (
        (exported.model_path, ("--precision", "fp32")),
        (exported.onnx_path, ()),
    ):
        output = tmp_path / f"{name.suffix[1:]}.mp4"
        assert run(*options, *more, *precision, "--model-path", name, "--output", output) == 0
        found.append(mot_files.read(output.with_suffix(".mot.txt"), unique_ids=True))
    of_checkpoint, of_onnx = found
    assert len(of_checkpoint) >= FRAMES
    assert set(of_checkpoint.classes.tolist()) <= set(CATEGORY_IDS)
    assert of_onnx.frames.tolist() == of_checkpoint.frames.tolist()
    assert of_onnx.ids.tolist() == of_checkpoint.ids.tolist()
    assert of_onnx.classes.tolist() == of_checkpoint.classes.tolist()
    np.testing.assert_allclose(of_onnx.boxes_xyxy, of_checkpoint.boxes_xyxy, atol=0.1)
    np.testing.assert_allclose(of_onnx.confidences, of_checkpoint.confidences, atol=0.005)


def test_what_an_onnx_backend_says_of_itself(exported):
    backend = load_backend(exported.onnx_path, None, "cpu", "auto")
    assert (backend.class_names, backend.category_ids) == (CLASS_NAMES, CATEGORY_IDS)
    assert (backend.device, backend.file, backend.may_resume) == ("cpu", exported.onnx_path, True)
    images = [random_scene(np.random.default_rng(seed), 96, 128) for seed in range(3)]
    together = backend.detect(images, [0, 1, 2])
    for image, found in zip(images, together, strict=True):
        (alone,) = backend.detect([image], [7])
        np.testing.assert_allclose(found.boxes_xyxy, alone.boxes_xyxy, atol=0.05)
        np.testing.assert_array_equal(found.labels, alone.labels)


@pytest.mark.parametrize("suffix", [".onnx", ".ONNX"])
def test_the_suffix_decides(tmp_path, exported, suffix):
    path = shutil.copy(exported.onnx_path, tmp_path / f"model{suffix}")
    backend = load_backend(Path(path), None, "auto", "auto")
    assert backend.class_names == CLASS_NAMES


@pytest.mark.parametrize(
    ("device", "precision", "reason"),
    [
        ("cpu", "fp32", "--precision fp32: an ONNX file has its own"),
        ("cpu", "bf16", "--precision bf16: an ONNX file has its own"),
        ("mps", "auto", "--device mps: not for ONNX files – use --device auto, cuda, cpu"),
        ("cuda:0", "auto", "--device cuda:0: not for ONNX files"),
        ("tpu", "auto", "--device tpu: not for ONNX files"),
    ],
)
def test_options_that_an_onnx_file_does_not_have(
    tmp_path, exported, pan, capsys, device, precision, reason
):
    options = ("--device", device, "--precision", precision)
    output = tmp_path / "out.mp4"
    assert (
        run("--input", pan, "--model-path", exported.onnx_path, "--output", output, *options) == 2
    )
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("class_names", "category_ids"),
    [
        (["car", "person"], [3, 1, 10]),
        (["car", "person", "light", "dog"], [3, 1, 10]),
        (["car", "person", "light"], [3, 1]),
        (["car", "person", "light"], []),
        (["car"], [3]),  # fewer than the network finds
        ("cars", [3, 1, 10, 4]),
        (["car", "person", "light"], None),
    ],
)
def test_p3_37_labels_that_do_not_fit_are_one_line(
    tmp_path, exported, pan, capsys, class_names, category_ids
):
    model = onnx.load(exported.onnx_path)
    changed = {"class_names": json.dumps(class_names), "category_ids": json.dumps(category_ids)}
    for entry in model.metadata_props:
        entry.value = changed.get(entry.key, entry.value)
    path, output = tmp_path / "labels.onnx", tmp_path / "out" / "out.mp4"
    onnx.save(model, path)
    options = ("--model-path", path, "--device", "cpu", "--confidence", "0.05")
    assert run("--input", pan, "--output", output, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert error.endswith("– export it again\n")
    assert error.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("category_ids", [(3, 1), (3, 1, 10, 4)])
def test_p3_37_a_checkpoint_whose_labels_do_not_fit_is_one_line(
    tmp_path, exported, pan, capsys, category_ids
):
    checkpoint = torch.load(exported.model_path, weights_only=True)
    checkpoint["category_ids"] = list(category_ids)
    path = tmp_path / "labels.pth"
    torch.save(checkpoint, path)
    assert run("--input", pan, "--output", tmp_path / "out.mp4", "--model-path", path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.mp4").exists()


def test_without_onnxruntime_it_is_a_line_with_the_command(
    tmp_path, exported, pan, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    options = ("--model-path", exported.onnx_path, "--output", tmp_path / "out.mp4")
    assert run("--input", pan, *options) == 2
    expected = "error: onnxruntime: is not installed – run: pip install -r requirements.txt\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_no_cpu(exported):
    for path in (exported.onnx_path, exported.model_path):
        with pytest.raises(UserError, match="--device cuda: "):
            load_backend(path, None, "cuda", "auto")


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x08\x07"])
def test_files_that_are_no_model(tmp_path, content):
    for name in ("a.onnx", "a.pth"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: "):
            load_backend(tmp_path / name, None, "cpu", "auto")


def test_a_checkpoint_stays_as_it_is(exported):
    before = {key: value.clone() for key, value in exported.loaded.model.state_dict().items()}
    backend = of_model(exported.loaded, "bf16")
    assert (backend.precision, backend.device) == ("bfloat16", "cpu")
    assert (backend.class_names, backend.category_ids) == (CLASS_NAMES, CATEGORY_IDS)
    backend.detect([random_scene(np.random.default_rng(0), 96, 128)], [0])
    after = exported.loaded.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_box_head_of_a_checkpoint_looks_at_fewer_proposals(exported):
    image = random_scene(np.random.default_rng(0), 96, 128)
    full, limited = (
        load_backend(exported.model_path, None, "cpu", "fp32", count) for count in (None, 3)
    )
    assert (full.max_proposals, limited.max_proposals) == (None, 3)
    ((every,), (few,)) = (backend.detect([image], [0]) for backend in (full, limited))
    assert len(every.scores) > 3 * len(CLASS_NAMES) >= len(few.scores) > 0
    assert VideoDetector(limited).detection_settings()["max_proposals"] == 3
    assert load_backend(exported.model_path, None, "cpu", "fp32", 999).max_proposals is None


def test_proposals_belong_to_a_checkpoint(exported, tmp_path):
    with pytest.raises(UserError, match="--max-proposals 3: an ONNX file has its own"):
        load_backend(exported.onnx_path, None, "cpu", "auto", 3)
    with pytest.raises(UserError, match="--max-proposals 3: recorded detections have none"):
        load_backend(None, tmp_path / "det.txt", "cpu", "auto", 3)


# --- recorded detections ------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [(-1, -1), (0, 0), (40.5, -3)])
def test_every_box_counts_where_scores_are_no_confidences(tmp_path, scores):
    path = tmp_path / "det.txt"
    path.write_text("".join(f"1,-1,{10 * n},0,4,4,{s},1\n" for n, s in enumerate(scores)))
    found = RecordedDetections(path, {}).of_frame(1)
    assert (found.boxes_xyxy[:, 0].tolist(), found.scores.tolist()) == ([0, 10], [1, 1])


def test_recorded_detections_answer_by_frame(tmp_path):
    path = tmp_path / "det.txt"
    path.write_text("3,-1,0,0,4,4,0.5,9\n1,-1,1,2,3,4,0.25,-1\n")
    recorded = RecordedDetections(path, {})
    assert recorded.class_names == ("object", "class 9")
    third, first, second = (recorded.of_frame(number) for number in (3, 1, 2))
    assert (first.boxes_xyxy.tolist(), first.labels.tolist()) == ([[1, 2, 4, 6]], [1])
    assert len(second.scores) == len(recorded.of_frame(4).scores) == 0
    assert (third.scores.tolist(), third.labels.tolist()) == ([0.5], [2])


def test_recorded_detections_are_called_as_was_asked(tmp_path):
    """Ids that are not in this file may be named, too; those without a name keep their own."""
    path = tmp_path / "det.txt"
    path.write_text("1,-1,0,0,4,4,0.5,9\n1,-1,1,2,3,4,0.25,-1\n1,-1,1,2,3,4,0.25,3\n")
    names = {9: "car", 80: "kite"}
    backend = load_backend(None, path, "cpu", "auto", None, names)
    assert (backend.category_ids, backend.class_names) == ((-1, 3, 9), ("object", "class 3", "car"))
    assert load_backend(None, path, "cpu", "auto", None, {-1: "seal"}).class_names[0] == "seal"


def test_a_model_names_its_classes_itself(exported):
    for path in (exported.onnx_path, exported.model_path, None):
        with pytest.raises(UserError, match="--class-names: a model names its classes itself"):
            load_backend(path, None, "cpu", "auto", None, {1: "person"})


def test_a_backend_of_recorded_detections_counts_frames_from_zero(tmp_path):
    backend = load_backend(None, write_detections(tmp_path / "det.txt", label=7), "cpu", "auto")
    assert (backend.class_names, backend.category_ids) == (("class 7",), (7,))
    assert backend.may_resume is False
    found = backend.detect([frame(0)] * 3, [4, 0, 11])
    assert [one.boxes_xyxy[0, 0] for one in found] == [8, 0, 22]
    assert backend.detect([frame(0)], [12])[0].boxes_xyxy.shape == (0, 4)
