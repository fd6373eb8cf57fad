"""OpenVINO in FP32: the exported graph in OpenVINO's own files (an optional extra)."""

from pathlib import Path
from typing import TYPE_CHECKING

from phase4_deployment.formats.base import Format, Ingredients, missing, unavailable

if TYPE_CHECKING:
    from common.models import Predictor

NAME = "openvino_fp32"
RUNTIME = "openvino"


def build(ingredients: Ingredients) -> Format:
    """Writes model_openvino.xml with its .bin."""
    if package := missing("openvino"):
        return unavailable(
            NAME, RUNTIME, f"{package} is not installed, see requirements-extras.txt"
        )
    from common import openvino_runtime

    file = ingredients.folder / "model_openvino.xml"
    openvino_runtime.convert(ingredients.onnx(), file)
    budget = ingredients.fp32_map_drop
    return Format(NAME, file, RUNTIME, predictor(file), max_map_drop=budget)


def predictor(file: Path) -> "Predictor":
    """With as many threads as PyTorch uses."""
    import torch

    return load(file, torch.get_num_threads())


def import_libraries() -> None:
    import openvino  # noqa: F401

    from common import openvino_runtime  # noqa: F401


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped .xml; what is in FP32 is computed in FP32, also on processors
    where OpenVINO would take bfloat16."""
    from common import openvino_runtime

    return openvino_runtime.openvino_predictor(openvino_runtime.read_model(file), "f32", threads)
