"""ONNX in INT8: weights and activations of the networks in 8 bits, where the mAP budget holds."""

from pathlib import Path
from typing import TYPE_CHECKING

from phase4_deployment.formats import onnx_fp32
from phase4_deployment.formats.base import OK, Format, Ingredients

if TYPE_CHECKING:
    from common.models import Predictor

NAME = "onnx_int8"


def build(ingredients: Ingredients) -> Format:
    """Writes model_int8.onnx."""
    return quantise(ingredients, ingredients.folder / "model_int8.onnx")


def quantise(ingredients: Ingredients, file: Path) -> Format:
    """Static INT8 of the FP32 ONNX file, within the mAP budget if that can be."""
    from common.cli import log
    from phase4_deployment import int8_search

    fp32, val, budget = ingredients.onnx(), ingredients.val, ingredients.max_map_drop
    log.info("Quantising %s", file.name)
    result = int8_search.quantize_within_budget(
        fp32,
        file,
        ingredients.calibration,
        val.map_of,
        val.map_of(onnx_fp32.predictor(fp32)),
        budget,
    )
    log.info(
        "Static INT8: %d of %d layers became int8; in float: %s",
        result.int8_layers,
        result.layers,
        ", ".join(result.float_groups) or "none",
    )
    drop = f"mAP drop {result.map_drop:.4f} over the budget of {budget}"
    return Format(
        NAME,
        file,
        onnx_fp32.RUNTIME,
        onnx_fp32.predictor(file),
        same_runtime=onnx_fp32.NAME,
        max_map_drop=budget,
        status=OK if result.accepted else f"rejected: {drop}",
        extra={
            "quantized": {"int8": result.int8_layers, "all": result.layers},
            "float_groups": list(result.float_groups),
            "search": list(result.trials),
        },
    )


import_libraries = onnx_fp32.import_libraries


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model_int8.onnx."""
    return onnx_fp32.load(file, threads)
