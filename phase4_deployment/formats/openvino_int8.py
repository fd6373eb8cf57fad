"""OpenVINO in INT8, quantised by NNCF where the mAP budget holds (optional extras)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import log
from phase4_deployment.formats import openvino_fp32
from phase4_deployment.formats.base import OK, Format, Ingredients, missing, unavailable

if TYPE_CHECKING:
    from common.coco import ImageRecord
    from common.models import Predictor

NAME = "openvino_int8"
RUNTIME = openvino_fp32.RUNTIME


@dataclass(frozen=True)
class OpenVinoQuantiser:
    """See `int8_search.Quantiser`."""

    source: Path
    calibration: "Sequence[ImageRecord]"
    needs_fp32: bool  # what is not in INT8 must not be computed in bfloat16
    suffix: str = ".xml"
    estimators: tuple[str, ...] = ("NNCF's",)

    def groups(self) -> dict[str, list[str]]:
        from common import openvino_runtime
        from phase4_deployment import quantization

        layers = openvino_runtime.quantisable_layers(self.source)
        groups = quantization.layer_groups(self.source)
        quantised = {name: [n for n in nodes if n in layers] for name, nodes in groups.items()}
        return {name: nodes for name, nodes in quantised.items() if nodes}

    def write(self, target: Path, float_nodes: Sequence[str], estimator: str) -> None:
        from common import openvino_runtime
        from common.coco import read_image

        images = [read_image(one.path, (one.width, one.height)) for one in self.calibration]
        openvino_runtime.quantise(
            self.source, target, images, float_nodes, needs_fp32=self.needs_fp32
        )

    def predictor(self, file: Path) -> "Predictor":
        import torch

        return load(file, torch.get_num_threads())

    def count_int8_layers(self, file: Path) -> tuple[int, int]:
        from common import openvino_runtime

        return openvino_runtime.count_int8_layers(file)


def build(ingredients: Ingredients) -> Format:
    """Writes model_openvino_int8.xml with its .bin. Where the mAP budget does not hold with the
    rest in bfloat16, whatever is left in float, that is in FP32."""
    if package := missing("openvino", "nncf"):
        why = f"{package} is not installed, see requirements-extras.txt"
        return unavailable(NAME, RUNTIME, why)
    from common import openvino_runtime

    item = _within_budget(ingredients, needs_fp32=False)
    if item.status != OK and openvino_runtime.beside_int8() != "f32":
        log.info("Once more, with FP32 instead of bfloat16 beside INT8")
        item = _within_budget(ingredients, needs_fp32=True)
    return item


def _within_budget(ingredients: Ingredients, *, needs_fp32: bool) -> Format:
    from phase4_deployment.formats import int8_search

    file = ingredients.folder / "model_openvino_int8.xml"
    quantiser = OpenVinoQuantiser(ingredients.onnx(), ingredients.calibration, needs_fp32)
    runtimes = (RUNTIME, openvino_fp32.NAME)
    return int8_search.format_within_budget(NAME, *runtimes, ingredients, file, quantiser)


import_libraries = openvino_fp32.import_libraries


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model_openvino_int8.xml; what is not in INT8 is computed in
    bfloat16 where the processor has it, unless the file needs FP32."""
    from common import openvino_runtime

    model = openvino_runtime.read_model(file)
    needs_fp32 = openvino_runtime.needs_fp32(model)
    precision = "f32" if needs_fp32 else openvino_runtime.beside_int8()
    return openvino_runtime.openvino_predictor(model, precision, threads)
