"""TensorRT on machines without it, and what is asked of it, by sessions that pretend to have it."""

import numpy as np
import onnxruntime
import pytest
import torch

from common import environment
from common.evaluation import compare_detections
from common.models import stock_predictor
from phase4_deployment.formats import catalogue, onnx_tensorrt_fp16
from tests.random_detectors import random_scene

PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def sessions(monkeypatch):
    """The sessions that are asked for. They run on the CPU and say that `first` runs them."""
    asked = []

    class Session:
        first: str | Exception = PROVIDERS[0]

        def __init__(self, file, options, providers, settings, enable_fallback):
            asked.append((file, providers, settings, enable_fallback))
            if isinstance(self.first, Exception):
                raise self.first
            self._real = real(file, options, ["CPUExecutionProvider"])

        def get_providers(self):
            return [self.first]

        def disable_fallback(self):
            asked.append("no fallback")

        def run(self, *arguments):
            return self._real.run(*arguments)

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: PROVIDERS)
    Session.asked = asked
    return Session


def unavailable(item) -> str:
    assert item.predict is item.file is None
    assert item.status.startswith("unavailable: ")
    assert item.status.endswith(f" – {onnx_tensorrt_fp16.REMEDY}")
    assert "\n" not in item.status
    return item.status


def test_p4_38_a_runtime_without_the_provider_makes_no_session(ingredients, sessions, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: PROVIDERS[1:])
    text = unavailable(onnx_tensorrt_fp16.build(ingredients))
    assert "this onnxruntime has no TensorrtExecutionProvider" in text
    assert sessions.asked == []


@pytest.mark.parametrize("other", PROVIDERS[1:])
def test_p4_38_a_session_that_takes_another_provider_is_none(ingredients, sessions, other):
    """ONNX Runtime lists what it was built with, and says nothing when it takes another."""
    sessions.first = other
    text = unavailable(onnx_tensorrt_fp16.build(ingredients))
    assert f"{other} would run instead of TensorrtExecutionProvider" in text


def test_p4_38_a_provider_that_cannot_be_started(ingredients, sessions):
    sessions.first = RuntimeError("libnvinfer.so.10: no such file\nat line 7")
    text = unavailable(onnx_tensorrt_fp16.build(ingredients))
    assert "TensorrtExecutionProvider cannot be started" in text


def test_it_runs_the_fp32_file_in_fp16_and_ships_nothing(ingredients, exported, sessions):
    item = onnx_tensorrt_fp16.build(ingredients)
    assert (item.status, item.file, item.files) == ("ok", None, [])
    assert item.max_map_drop == ingredients.max_map_drop
    size_mib = ingredients.onnx().stat().st_size / 2**20
    assert item.extra == {
        **{"size_mib": size_mib, "runs": "model.onnx", "provider": PROVIDERS[0]},
        "device_name": environment.device_name("cuda:0"),  # all other rows are of the CPU
    }
    (file, providers, settings, enable_fallback), no_fallback = sessions.asked
    assert file == str(ingredients.onnx())
    assert providers == PROVIDERS
    assert settings[0] == {"trt_fp16_enable": "1"}
    assert settings[1]["use_tf32"] == "0"
    assert (enable_fallback, no_fallback) == (0, "no fallback")
    images = [random_scene(np.random.default_rng(1), *size) for size in ((96, 128), (64, 80))]
    assert item.predict is not None
    stock = stock_predictor(exported.loaded.model, torch.device("cpu"))
    expected = [stock([image])[0] for image in images]
    assert sum(len(found.scores) for found in expected) > 0
    assert compare_detections(expected, item.predict(images))["matched"] > 0.99


def test_what_tensorrt_cannot_build_fails_before_anything_is_timed(ingredients, sessions):
    def run(self, *_):
        raise RuntimeError("TensorRT EP failed to create engine")

    sessions.run = run
    with pytest.raises(RuntimeError, match="failed to create engine"):
        onnx_tensorrt_fp16.build(ingredients)


def test_it_is_made_when_asked_for_only():
    assert onnx_tensorrt_fp16.NAME in catalogue.FORMATS
    assert onnx_tensorrt_fp16.NAME not in catalogue.DEFAULT
