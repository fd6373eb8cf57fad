"""Runs the exported graph in OpenVINO on the CPU, in FP32, bfloat16 or INT8 (an optional extra)."""

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import onnx_graph
from common.models import Predictor
from common.openvino_graph import PRODUCTS, network_operations, with_fp32_coordinates
from common.predictors import batch_predictor

PIXEL_CHANNELS = 3
EXTRAS = "pip install -r requirements-extras.txt"
FP32_NOTE = ["beside_int8"]  # where it is in an .xml
NOT_QUANTISED = {"Constant", "Parameter", "Result"}  # NNCF wants to hear of operations only


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def beside_int8() -> str:
    """The precision for what of a quantised model is not in INT8: "bf16" where it is quick."""
    return "bf16" if has_bfloat16() else "f32"


def needs_fp32(model: Any) -> bool:
    """Whether `quantise` has noted that what is not in INT8 has to be computed in FP32."""
    return bool(model.has_rt_info(FP32_NOTE))


def read_model(file: Path) -> Any:
    """An openvino.Model of an .onnx or an OpenVINO .xml."""
    import openvino

    return openvino.Core().read_model(str(file))


def convert(file: Path, target: Path) -> None:
    """Writes an .onnx as OpenVINO's .xml with its .bin, in FP32."""
    import openvino

    openvino.save_model(read_model(file), str(target), compress_to_fp16=False)


def quantise(
    file: Path,
    target: Path,
    calibration: Sequence[np.ndarray],
    float_nodes: Collection[str] = (),
    *,
    needs_fp32: bool = False,
) -> None:
    """Writes an INT8 copy of an exported graph as OpenVINO's .xml with its .bin.

    Weights and activations of convolutions and matrix products get 8 bits, by NNCF's calibration
    (https://arxiv.org/abs/2002.08679). 8 bits hold activations, but not coordinates: all but the
    networks stays in FP32, and so do the box predictor's matrix products, which end in coordinates
    (and cost next to nothing), the layer that reads the pixels, for which all of these would have
    to be rounded first, and depthwise convolutions, which OpenVINO computes in FP32 anyway (and its
    2026.4 crashes on some image sizes if their inputs are rounded).

    Args:
        file: an .onnx of `common.onnx_graph`.
        calibration: uint8 RGB images (H, W, 3) of the training set.
        float_nodes: names of further nodes of the .onnx to leave in FP32.
        needs_fp32: noted in the file, for whoever loads it.
    """
    import openvino

    model = read_model(file)
    with without_chatter():
        quantised = _quantised(model, calibration, float_nodes)
    if needs_fp32:
        quantised.set_rt_info("f32", FP32_NOTE)
    openvino.save_model(quantised, str(target), compress_to_fp16=False)


def _quantised(model: Any, calibration: Sequence[np.ndarray], float_nodes: Collection[str]) -> Any:
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    quantisable = _quantisable(model)
    outside = [
        operation.get_friendly_name()
        for operation in model.get_ops()
        if operation.get_type_name() not in NOT_QUANTISED
        and (
            operation.get_friendly_name() not in quantisable or node_name(operation) in float_nodes
        )
    ]
    return nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in calibration]),
        subset_size=len(calibration),
        preset=nncf.QuantizationPreset.MIXED,  # activations need not be symmetric
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # A single outlier would stretch the range, and leave few of 256 steps to the rest
            activations_range_estimator_params=RangeEstimatorParametersSet.MEAN_QUANTILE,
            # Whole 8 bits overflow where there is no VNNI, see quantization.quantize_static
            overflow_fix=nncf.OverflowFix.ENABLE,
        ),
        ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
    )


def _quantisable(model: Any) -> set[str]:
    """Names of the operations that `quantise` does not leave in FP32 by itself."""
    networks = network_operations(model)
    kept = {op.get_friendly_name() for op in model.get_ops() if _keeps_fp32(op)}
    return networks - kept


def quantisable_layers(file: Path) -> set[str]:
    """Names of the nodes of an .onnx, convolutions and matrix products, that `quantise` would put
    into INT8."""
    model = read_model(file)
    names = _quantisable(model)
    layers = [op for op in model.get_ops() if op.get_type_name() in PRODUCTS]
    return {node_name(op) for op in layers if op.get_friendly_name() in names}


def node_name(operation: Any) -> str:
    """Of the .onnx: OpenVINO calls a layer that it has split from its bias NAME/WithoutBiases."""
    return operation.get_friendly_name().removesuffix("/WithoutBiases")


def count_int8_layers(file: Path) -> tuple[int, int]:
    """(quantised, all) convolutions and matrix products of an .xml: those with weights in INT8."""
    layers = [op for op in read_model(file).get_ops() if op.get_type_name() in PRODUCTS]
    return sum(_weights_type(layer) in ("i8", "u8") for layer in layers), len(layers)


def _weights_type(layer: Any) -> str:
    """How the weights are stored; on the way to the layer they are converted and scaled."""
    node = layer.input_value(1).get_node()
    while node.get_type_name() != "Constant" and node.get_input_size():
        node = node.input_value(0).get_node()
    return node.get_element_type().get_type_name()


def _keeps_fp32(operation: Any) -> bool:
    """Whether it is of the box predictor, reads pixels, or is a depthwise convolution."""
    kind = operation.get_type_name()
    if kind not in PRODUCTS:
        return False
    if kind == "GroupConvolution":
        return True
    if kind == "Convolution" and operation.input(1).get_partial_shape()[1] == PIXEL_CHANNELS:
        return True
    weights = (entry.get_source_output().get_node() for entry in operation.inputs())
    return any("box_predictor" in node.get_friendly_name() for node in weights)


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


def compiled_for_cpu(model: Any, precision: str, threads: int = 0) -> Any:
    """An openvino.CompiledModel of an exported graph.

    Args:
        model: see `read_model`.
        precision: "f32" or "bf16" for what is not in INT8; in bf16 boxes stay in FP32.
        threads: of one inference; 0 lets OpenVINO choose.
    """
    import openvino

    if precision != "f32":
        model = with_fp32_coordinates(model)
    wishes = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
    }
    return openvino.Core().compile_model(model, "CPU", wishes)


def openvino_predictor(model: Any, precision: str, threads: int) -> Predictor:
    """A Predictor over an exported graph; arguments as of `compiled_for_cpu`."""
    return predictor_of(compiled_for_cpu(model, precision, threads))


def predictor_of(compiled: Any) -> Predictor:
    """A Predictor over an openvino.CompiledModel of an exported graph."""
    request = compiled.create_infer_request()

    def run(batch: np.ndarray) -> list[np.ndarray]:
        outputs = request.infer({onnx_graph.INPUT_NAME: batch})
        return [outputs[name] for name in onnx_graph.OUTPUT_NAMES]

    return batch_predictor(run)
