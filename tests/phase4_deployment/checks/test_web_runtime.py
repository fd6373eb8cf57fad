"""Runs in onnxruntime-web: the way there and back with a stand-in, and the real one where it is."""

import json

import numpy as np
import pytest

from common.onnx_detector import OnnxDetector
from phase4_deployment import web_page
from phase4_deployment.checks import chromium, parity, web_runtime
from phase4_deployment.checks.web_runtime import WebError, run_on_page
from tests.phase4_deployment.browsers import fake_browser, fake_runtime, needs_a_browser
from tests.random_detectors import random_scene


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "some.onnx"
    path.write_bytes(b"any bytes: the stand-in does not read them")
    return path


def pictures(*values: int, height: int, width: int) -> list[np.ndarray]:
    return [np.full((height, width, 3), value, np.uint8) for value in values]


@pytest.mark.parametrize("behaviour", ["works", "nonsense"])
def test_every_picture_arrives_and_every_answer_comes_back(model, tmp_path, behaviour):
    batches = [pictures(64, height=2, width=3), pictures(128, 192, height=5, width=4)]
    runtime, browser = fake_runtime(tmp_path), fake_browser(tmp_path, behaviour)
    found = run_on_page(model, batches, runtime, browser)
    assert [one.boxes_xyxy.tolist() for one in found.detections] == [
        [[0, 0, 3, 2]],
        [[0, 0, 4, 5]],
        [[0, 0, 4, 5]],
    ]
    assert [one.scores.tolist() for one in found.detections] == [[0.25], [0.5], [0.75]]
    assert [one.labels.tolist() for one in found.detections] == [[1]] * 3
    assert found.latency_ms == [7, 7]
    assert json.loads(found.version) == {  # browsers compile and run nothing of another type
        "ort/ort-wasm-simd-threaded.wasm": "application/wasm",
        "detector.js": "text/javascript",
    }


def test_pictures_that_are_views_keep_their_order(model, tmp_path):
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[:, -1] = 64
    found = run_on_page(
        model, [[picture[:, ::-1]]], fake_runtime(tmp_path), fake_browser(tmp_path, "works")
    )
    assert found.detections[0].scores.tolist() == [0.25]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("ends", "the browser ended: cannot open display"),
        ("fails", "RangeError: out of memory"),
        ("hangs", "the browser said nothing for 1 s"),
    ],
)
def test_a_browser_that_does_not_answer(model, tmp_path, monkeypatch, behaviour, message):
    if behaviour == "hangs":
        monkeypatch.setattr(web_runtime, "SILENCE_S", 1.0)
    batches = [pictures(1, height=2, width=2)]
    with pytest.raises(WebError) as error:
        run_on_page(model, batches, fake_runtime(tmp_path), fake_browser(tmp_path, behaviour))
    assert str(error.value) == message


def real_run(onnx_path, batches):
    return run_on_page(onnx_path, batches, web_page.find_runtime(None), chromium.find_browser(None))


@needs_a_browser
@pytest.mark.slow
def test_the_same_file_finds_the_same_in_a_browser(exported):
    batches = parity.gate_batches([random_scene(np.random.default_rng(3), 240, 320)])
    found = real_run(exported.onnx_path, batches)
    detector = OnnxDetector(exported.onnx_path, "cpu", threads=1)
    expected = [one for batch in batches for one in detector(batch)]
    measured = parity.measure_parity(expected, found.detections)
    assert measured["detections"] > 100
    assert parity.within(measured, parity.STRICT), measured
    assert len(found.latency_ms) == len(batches)
    assert min(found.latency_ms) > 0
    assert "onnxruntime-web" in found.version
    assert "Chrome/" in found.version


@needs_a_browser
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no model", "no ONNX file|cut off"), (b"", "not a detector"), (None, "cut off")],
    ids=["text", "empty", "truncated"],
)
def test_a_damaged_file_in_a_browser(exported, tmp_path, content, message):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(exported.onnx_path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(WebError, match=message):
        real_run(damaged, [pictures(1, height=8, width=8)])
