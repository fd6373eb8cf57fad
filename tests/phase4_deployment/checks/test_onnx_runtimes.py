"""The runtimes themselves."""

import importlib.util

import numpy as np
import pytest

from common.cli import UserError
from phase4_deployment.checks import onnx_runtimes, parity
from phase4_deployment.checks.onnx_runtimes import RuntimeFailureError, Tools, run
from tests.random_detectors import random_scene

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is not installed: pip install -r requirements-extras.txt",
)


@pytest.fixture(scope="module")
def batches():
    scenes = [random_scene(np.random.default_rng(seed), 120, 160) for seed in range(2)]
    return [[scenes[0]], scenes, [random_scene(np.random.default_rng(2), 33, 97)]]


@needs_openvino
def test_openvino_reads_the_file_itself_and_computes_in_fp32(exported, batches):
    """Also on a processor on which it would take 16 bits by itself, which moves boxes."""
    expected = run("onnxruntime", exported.onnx_path, batches, Tools())
    found = run("openvino", exported.onnx_path, batches, Tools())
    assert found.provider == "CPU f32"
    assert found.version.startswith("openvino 20")
    assert len(found.latency_ms) == len(batches)
    measured = parity.measure_parity(expected.detections, found.detections)
    assert measured["images"] == 4
    assert measured["detections"] > 50
    assert parity.within(measured, parity.STRICT), measured


@needs_openvino
def test_a_file_that_openvino_cannot_read(tmp_path, batches):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeFailureError, match=r"RuntimeError: ") as error:
        run("openvino", tmp_path / "model.onnx", batches, Tools())
    assert "\n" not in str(error.value)


def test_onnxruntime_names_what_computed(exported, batches):
    import onnxruntime

    found = run("onnxruntime", exported.onnx_path, batches, Tools())
    assert found.provider == "CPUExecutionProvider"
    assert found.version == f"onnxruntime {onnxruntime.__version__}"
    assert len(found.detections) == 4
    assert min(found.latency_ms) > 0


def test_cuda_that_onnxruntime_has_but_cannot_start_is_not_the_cpu(exported, batches, monkeypatch):
    import onnxruntime

    if onnx_runtimes.CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA: pip install onnxruntime-gpu")
    real = onnxruntime.InferenceSession

    def falls_back(file, options, providers, provider_options):
        return real(file, options, ["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(UserError, match="CUDA: cannot be used here"):
        run("onnxruntime-cuda", exported.onnx_path, batches, Tools())


def test_a_runtime_that_is_missing_is_not_run(monkeypatch, tmp_path, batches):
    monkeypatch.setattr(onnx_runtimes.environment, "is_installed", lambda name: False)
    with pytest.raises(UserError, match=r"OpenVINO: not installed – pip install -r \S+"):
        run("openvino", tmp_path / "model.onnx", batches, Tools())
