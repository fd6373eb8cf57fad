"""ONNX in FP32, for ONNX Runtime: what the package runs by default."""

from pathlib import Path
from typing import TYPE_CHECKING

from phase4_deployment.formats.base import Format, Ingredients

if TYPE_CHECKING:
    from common.models import Predictor

NAME = "onnx_fp32"
RUNTIME = "onnxruntime"


def build(ingredients: Ingredients) -> Format:
    """Writes model.onnx, unless another format has asked for it before."""
    file = ingredients.onnx()
    extra = {"export_gate": ingredients.onnx_parity}
    budget = ingredients.fp32_map_drop
    return Format(NAME, file, RUNTIME, predictor(file), max_map_drop=budget, extra=extra)


def predictor(file: Path) -> "Predictor":
    """A Predictor over an ONNX detector on the CPU, with as many threads as PyTorch uses."""
    import torch

    return load(file, torch.get_num_threads())


def import_libraries() -> None:
    import onnxruntime  # noqa: F401

    from common import onnx_detector, predictors  # noqa: F401


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped .onnx, by the detector that the package itself runs."""
    from common.onnx_detector import OnnxDetector
    from common.predictors import onnx_predictor

    return onnx_predictor(OnnxDetector(file, "cpu", threads))
