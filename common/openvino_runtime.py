"""Runs the exported graph in OpenVINO on the CPU, in FP32, bfloat16 or INT8 (an optional extra)."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import onnx_graph
from common.models import Predictor
from common.openvino_graph import PRODUCTS, network_operations, with_fp32_coordinates
from common.predictors import batch_predictor

EXTRAS = "pip install -r requirements-extras.txt"
NOT_QUANTISED = {"Constant", "Parameter", "Result"}  # NNCF wants to hear of operations only


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def read_model(file: Path) -> Any:
    """An openvino.Model of an .onnx or an OpenVINO .xml."""
    import openvino

    return openvino.Core().read_model(str(file))


def convert(file: Path, target: Path) -> None:
    """Writes an .onnx as OpenVINO's .xml with its .bin, in FP32."""
    import openvino

    openvino.save_model(read_model(file), str(target), compress_to_fp16=False)


def quantise(file: Path, target: Path, calibration: Sequence[np.ndarray]) -> None:
    """Writes an INT8 copy of an exported graph as OpenVINO's .xml with its .bin.

    Weights and activations of convolutions and matrix products get 8 bits, by NNCF's calibration
    (https://arxiv.org/abs/2002.08679). 8 bits hold activations, but not coordinates: all but the
    networks stays in FP32, and so do the box predictor's matrix products, which end in coordinates
    (and cost next to nothing).

    Args:
        file: an .onnx of `common.onnx_graph`.
        calibration: uint8 RGB images (H, W, 3) of the training set.
    """
    import openvino

    model = read_model(file)
    with without_chatter():
        quantised = _quantised(model, calibration)
    openvino.save_model(quantised, str(target))


def _quantised(model: Any, calibration: Sequence[np.ndarray]) -> Any:
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


def _is_of_box_predictor(operation: Any) -> bool:
    weights = (entry.get_source_output().get_node() for entry in operation.inputs())
    is_product = operation.get_type_name() in PRODUCTS
    return is_product and any("box_predictor" in node.get_friendly_name() for node in weights)


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


def openvino_predictor(model: Any, precision: str, threads: int) -> Predictor:
    """A Predictor over an exported graph.

    Args:
        model: see `read_model`.
        precision: "f32" or "bf16" for what is not in INT8; in bf16 boxes stay in FP32.
        threads: of one inference.
    """
    import openvino

    if precision != "f32":
        model = with_fp32_coordinates(model)
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
        },
    )
    request = compiled.create_infer_request()

    def run(batch: np.ndarray) -> list[np.ndarray]:
        outputs = request.infer({onnx_graph.INPUT_NAME: batch})
        return [outputs[name] for name in onnx_graph.OUTPUT_NAMES]

    return batch_predictor(run)
