"""OpenVINO in INT8, quantised by NNCF (optional extras)."""

from pathlib import Path
from typing import TYPE_CHECKING

from phase4_deployment.formats import openvino_fp32
from phase4_deployment.formats.base import Format, Ingredients, missing, unavailable

if TYPE_CHECKING:
    from common.models import Predictor

NAME = "openvino_int8"


def build(ingredients: Ingredients) -> Format:
    """Writes model_openvino_int8.xml with its .bin."""
    if package := missing("openvino", "nncf"):
        why = f"{package} is not installed, see requirements-extras.txt"
        return unavailable(NAME, openvino_fp32.RUNTIME, why)
    from common import openvino_runtime
    from common.cli import log
    from common.coco import read_image

    file = ingredients.folder / "model_openvino_int8.xml"
    log.info("Quantising %s", file.name)
    images = [read_image(one.path, (one.width, one.height)) for one in ingredients.calibration]
    openvino_runtime.quantise(ingredients.onnx(), file, images)
    return Format(
        NAME,
        file,
        openvino_fp32.RUNTIME,
        openvino_fp32.predictor(file),
        same_runtime=openvino_fp32.NAME,
        max_map_drop=ingredients.max_map_drop,
    )


import_libraries = openvino_fp32.import_libraries


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model_openvino_int8.xml."""
    return openvino_fp32.load(file, threads)
