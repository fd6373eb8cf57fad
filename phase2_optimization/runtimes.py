"""The rungs that run the exported graph in another runtime: ONNX Runtime and OpenVINO."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import onnx_graph
from common.inference_graph import InferenceGraph, batch_predictor
from common.models import Predictor, proposals_of
from common.openvino_graph import PRODUCTS, network_operations, with_fp32_coordinates
from phase2_optimization.builders import VariantUnavailableError, Workshop

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

NOT_QUANTISED = {"Constant", "Parameter", "Result"}  # NNCF wants to hear of operations only
EXTRAS = "pip install -r requirements-extras.txt"


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
        import openvino

        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise VariantUnavailableError("this processor has no bfloat16 instructions")
        exported = core.read_model(str(_exported(model, workshop.folder)))
        if precision != "f32":
            exported = with_fp32_coordinates(exported)
        return _openvino_predictor(exported, precision, workshop)

    return build


def openvino_int8(model: "FasterRCNN", workshop: Workshop) -> Predictor:
    """Weights and activations of convolutions and matrix products in 8 bits, by NNCF's calibration
    on training images (https://arxiv.org/abs/2002.08679)."""
    _require("openvino", EXTRAS)
    _require("nncf", EXTRAS)
    import openvino

    file = workshop.folder / "int8.xml"
    core = openvino.Core()
    if not file.exists():
        if not workshop.calibration:
            raise VariantUnavailableError("no training images to calibrate on")
        exported = core.read_model(str(_exported(model, workshop.folder)))
        with without_chatter():
            quantised = _quantised(exported, workshop.calibration)
        openvino.save_model(quantised, str(file))
    return _openvino_predictor(core.read_model(str(file)), "f32", workshop)


def _quantised(model: Any, calibration: Sequence[np.ndarray]) -> Any:
    """8 bits hold activations, but not coordinates: all but the networks stays in FP32, and so do
    the box predictor's matrix products, which end in coordinates (and cost next to nothing)."""
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    networks = network_operations(model)
    outside = [
        operation.get_friendly_name()
        for operation in model.get_ops()
        if operation.get_type_name() not in NOT_QUANTISED
        and (operation.get_friendly_name() not in networks or _is_of_box_predictor(operation))
    ]
    return nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in calibration]),
        subset_size=len(calibration),
        preset=nncf.QuantizationPreset.MIXED,  # activations need not be symmetric
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # A single outlier would stretch the range, and leave few of 256 steps to the rest
            activations_range_estimator_params=RangeEstimatorParametersSet.MEAN_QUANTILE
        ),
        ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
    )


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Keeps notes, warnings and progress bars of other libraries out of the terminal.

    NNCF prints bars, and has PyTorch look for a CUDA compiler, which it warns of on a CPU. What
    they log as an error, or raise, is still heard.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _is_of_box_predictor(operation: Any) -> bool:
    weights = (entry.get_source_output().get_node() for entry in operation.inputs())
    is_product = operation.get_type_name() in PRODUCTS
    return is_product and any("box_predictor" in node.get_friendly_name() for node in weights)


def _openvino_predictor(model: Any, precision: str, workshop: Workshop) -> Predictor:
    import openvino

    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": workshop.threads,
        },
    )
    request = compiled.create_infer_request()

    def run(batch: np.ndarray) -> list[np.ndarray]:
        outputs = request.infer({onnx_graph.INPUT_NAME: batch})
        return [outputs[name] for name in onnx_graph.OUTPUT_NAMES]

    return batch_predictor(run)


def _exported(model: "FasterRCNN", folder: Path) -> Path:
    """The model as ONNX, written by the first variant with so many proposals that asks."""
    _require("onnx", "pip install -r requirements.txt")
    _require("onnxscript", "pip install -r requirements.txt")
    file = folder / f"model_{proposals_of(model)}.onnx"
    if not file.exists():
        onnx_graph.write_onnx(InferenceGraph(model.cpu()), file, {})
    return file


def _require(package: str, remedy: str) -> None:
    if not is_installed(package):
        raise VariantUnavailableError(f"{package} is not installed: {remedy}")


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # made absent on purpose
        return False
