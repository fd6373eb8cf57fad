"""The runtimes that an exported file is run in: the same batches, each named by what really ran."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import environment
from common.cli import UserError
from common.models import Detections, Predictor
from common.onnx_detector import OnnxDetector
from common.predictors import onnx_predictor
from phase4_deployment import web_page
from phase4_deployment.checks import chromium, web_runtime

WARMUP_RUNS = 2
CUDA = "CUDAExecutionProvider"
REASON_LENGTH = 300
Batches = Sequence[Sequence[np.ndarray]]


class Tools(NamedTuple):
    """Where onnxruntime-web and Chromium are; None looks in the usual places."""

    web_runtime: Path | None = None
    browser: Path | None = None


class Run(NamedTuple):
    """What a runtime found.

    Attributes:
        provider: what really computed, by the runtime's own name.
        version: of the runtime.
        detections: of each image.
        latency_ms: of each batch.
    """

    provider: str
    version: str
    detections: list[Detections]
    latency_ms: list[float]


class Runtime(NamedTuple):
    """`require` raises a UserError with the remedy where the machine lacks something; `run` takes
    batches of equally large uint8 RGB images (H, W, 3)."""

    require: Callable[[Tools], None]
    run: Callable[[Path, Batches, Tools], Run]


class RuntimeFailureError(Exception):
    """The runtime is there, but cannot load or run the file; the text says why in one line."""


def run(name: str, onnx_path: Path, batches: Batches, tools: Tools) -> Run:
    """Runs the batches in one of RUNTIMES.

    Raises:
        UserError: the machine lacks something; the text names the remedy.
        RuntimeFailureError: see there.
    """
    runtime = RUNTIMES[name]
    runtime.require(tools)
    try:
        return runtime.run(onnx_path, batches, tools)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RuntimeFailureError(f"{type(error).__name__}: {reason}"[:REASON_LENGTH]) from error


def _onnxruntime(onnx_path: Path, batches: Batches, tools: Tools) -> Run:
    return _in_onnxruntime(OnnxDetector(onnx_path, "cpu"), batches)


def _onnxruntime_cuda(onnx_path: Path, batches: Batches, tools: Tools) -> Run:
    try:
        detector = OnnxDetector(onnx_path, "cuda")
    except UserError as error:  # the file itself was read on the CPU before
        remedy = "install onnxruntime-gpu with CUDA, or leave CUDA out"
        raise UserError("CUDA", "cannot be used here", remedy) from error
    return _in_onnxruntime(detector, batches)


def _in_onnxruntime(detector: OnnxDetector, batches: Batches) -> Run:
    import onnxruntime

    detections, latency_ms = _timed(onnx_predictor(detector), batches)
    version = f"onnxruntime {onnxruntime.__version__}"
    return Run(detector.provider, version, detections, latency_ms)


def _openvino(onnx_path: Path, batches: Batches, tools: Tools) -> Run:
    """Reads the .onnx file itself and computes in FP32: by itself OpenVINO takes 16 bits where the
    processor multiplies them."""
    import openvino

    from common import openvino_runtime

    compiled = openvino_runtime.compiled_for_cpu(openvino_runtime.read_model(onnx_path), "f32")
    detections, latency_ms = _timed(openvino_runtime.predictor_of(compiled), batches)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    devices = "+".join(compiled.get_property("EXECUTION_DEVICES"))
    version = f"openvino {openvino.__version__.split('-')[0]}"
    return Run(f"{devices} {precision}", version, detections, latency_ms)


def _web(onnx_path: Path, batches: Batches, tools: Tools) -> Run:
    runtime = web_page.find_runtime(tools.web_runtime)
    browser = chromium.find_browser(tools.browser)
    found = web_runtime.run_on_page(onnx_path, batches, runtime, browser)
    return Run("wasm", found.version, found.detections, found.latency_ms)


def _timed(predict: Predictor, batches: Batches) -> tuple[list[Detections], list[float]]:
    for _ in range(WARMUP_RUNS):
        predict(batches[0])
    detections, latency_ms = [], []
    for batch in batches:
        started = time.perf_counter()
        detections += predict(batch)
        latency_ms.append((time.perf_counter() - started) * 1000)
    return detections, latency_ms


def _require_nothing(tools: Tools) -> None:
    """ONNX Runtime belongs to requirements.txt."""


def _require_cuda(tools: Tools) -> None:
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        what = f"this onnxruntime {onnxruntime.__version__} has no {CUDA}"
        raise UserError("CUDA", what, "install onnxruntime-gpu")


def _require_openvino(tools: Tools) -> None:
    if not environment.is_installed("openvino"):
        raise UserError("OpenVINO", "not installed", "pip install -r requirements-extras.txt")


def _require_web(tools: Tools) -> None:
    web_page.find_runtime(tools.web_runtime)
    chromium.find_browser(tools.browser)


RUNTIMES = {
    "onnxruntime": Runtime(_require_nothing, _onnxruntime),
    "onnxruntime-cuda": Runtime(_require_cuda, _onnxruntime_cuda),
    "openvino": Runtime(_require_openvino, _openvino),
    "web": Runtime(_require_web, _web),
}
