"""ONNX in INT8: weights and activations of the networks in 8 bits, where the mAP budget holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from phase4_deployment.activation_ranges import ESTIMATORS, SeenActivations, look_at
from phase4_deployment.formats import onnx_fp32
from phase4_deployment.formats.base import Format, Ingredients

if TYPE_CHECKING:
    from common.coco import ImageRecord
    from common.models import Predictor

NAME = "onnx_int8"
RUNTIME = onnx_fp32.RUNTIME


@dataclass(frozen=True)
class OnnxQuantiser:
    """See `int8_search.Quantiser`."""

    source: Path
    calibration: "Sequence[ImageRecord]"
    suffix: str = ".onnx"
    estimators: tuple[str, ...] = ESTIMATORS

    @cached_property
    def activations(self) -> SeenActivations:
        from phase4_deployment.quantization import QUANTIZED_OPERATORS

        return look_at(self.source, self.calibration, QUANTIZED_OPERATORS)

    def groups(self) -> dict[str, list[str]]:
        from phase4_deployment import quantization

        return quantization.layer_groups(self.source)

    def write(self, target: Path, float_nodes: Sequence[str], estimator: str) -> None:
        from phase4_deployment import quantization

        ranges = self.activations.ranges(estimator)
        quantization.quantize_static(self.source, target, ranges, float_nodes)

    def predictor(self, file: Path) -> "Predictor":
        return onnx_fp32.predictor(file)

    def count_int8_layers(self, file: Path) -> tuple[int, int]:
        from phase4_deployment import quantization

        return quantization.count_int8_layers(file)


def build(ingredients: Ingredients) -> Format:
    """Writes model_int8.onnx."""
    return quantise(ingredients, ingredients.folder / "model_int8.onnx")


def quantise(ingredients: Ingredients, file: Path) -> Format:
    """Static INT8 of the FP32 ONNX file, within the mAP budget if that can be."""
    from phase4_deployment.formats import int8_search

    quantiser = OnnxQuantiser(ingredients.onnx(), ingredients.calibration)
    runtimes = (RUNTIME, onnx_fp32.NAME)
    return int8_search.format_within_budget(NAME, *runtimes, ingredients, file, quantiser)


import_libraries = onnx_fp32.import_libraries


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model_int8.onnx."""
    return onnx_fp32.load(file, threads)
