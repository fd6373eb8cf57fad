"""The rungs that run the exported graph in another runtime: ONNX Runtime and OpenVINO."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import environment, onnx_graph, openvino_runtime
from common.inference_graph import InferenceGraph
from common.models import Predictor, proposals_of
from common.openvino_runtime import EXTRAS
from common.predictors import batch_predictor
from phase2_optimization.builders import VariantUnavailableError, Workshop

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN


def onnxruntime(model: "FasterRCNN", workshop: Workshop) -> Predictor:
    """ONNX Runtime on the device asked for and no other: by itself it would fall back silently."""
    _require("onnxruntime", "pip install -r requirements.txt")
    import onnxruntime as ort

    file = _exported(model, workshop.folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = workshop.threads
    options.log_severity_level = 3
    is_cuda = workshop.device.type == "cuda"
    wanted = "CUDAExecutionProvider" if is_cuda else "CPUExecutionProvider"
    if wanted not in ort.get_available_providers():
        raise VariantUnavailableError(f"this onnxruntime has no {wanted}")
    on_cuda = {"device_id": workshop.device.index or 0, "use_tf32": int(workshop.allows_tf32)}
    provider = (wanted, on_cuda) if is_cuda else wanted
    session = ort.InferenceSession(str(file), options, providers=[provider])
    if session.get_providers()[0] != wanted:
        raise VariantUnavailableError(f"{wanted} cannot be used: ONNX Runtime fell back to the CPU")

    session.disable_fallback()  # to the CPU, when a call fails

    def run(batch: np.ndarray) -> list[np.ndarray]:
        return session.run(None, {onnx_graph.INPUT_NAME: batch})

    return batch_predictor(run)


def openvino(precision: str) -> Callable[["FasterRCNN", Workshop], Predictor]:
    """OpenVINO on the CPU, computing in "f32" or "bf16"."""

    def build(model: "FasterRCNN", workshop: Workshop) -> Predictor:
        _require("openvino", EXTRAS)
        if precision == "bf16" and not openvino_runtime.has_bfloat16():
            raise VariantUnavailableError("this processor has no bfloat16 instructions")
        exported = openvino_runtime.read_model(_exported(model, workshop.folder))
        return openvino_runtime.openvino_predictor(exported, precision, workshop.threads)

    return build


def openvino_int8(model: "FasterRCNN", workshop: Workshop) -> Predictor:
    """Convolutions and matrix products in 8 bits, calibrated on training images; the rest in
    bfloat16 where the processor has it."""
    _require("openvino", EXTRAS)
    _require("nncf", EXTRAS)
    file = workshop.folder / "int8.xml"
    if not file.exists():
        if not workshop.calibration:
            raise VariantUnavailableError("no training images to calibrate on")
        exported = _exported(model, workshop.folder)
        openvino_runtime.quantise(exported, file, workshop.calibration)
    quantised = openvino_runtime.read_model(file)
    precision = openvino_runtime.beside_int8()
    return openvino_runtime.openvino_predictor(quantised, precision, workshop.threads)


def _exported(model: "FasterRCNN", folder: Path) -> Path:
    """The model as ONNX, written by the first variant with so many proposals that asks."""
    _require("onnx", "pip install -r requirements.txt")
    _require("onnxscript", "pip install -r requirements.txt")
    file = folder / f"model_{proposals_of(model)}.onnx"
    if not file.exists():
        onnx_graph.write_onnx(InferenceGraph(model.cpu()), file, {})
    return file


def _require(package: str, remedy: str) -> None:
    if not environment.is_installed(package):
        raise VariantUnavailableError(f"{package} is not installed: {remedy}")
