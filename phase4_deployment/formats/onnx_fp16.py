"""ONNX whose networks hold and compute FP16; pixels, boxes and suppression stay in FP32.

Half the size. It pays on GPUs with FP16 units; a CPU without them converts at every layer.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from phase4_deployment.formats import onnx_fp32
from phase4_deployment.formats.base import Format, Ingredients

if TYPE_CHECKING:
    from common.models import Predictor

NAME = "onnx_fp16"
RUNTIME = onnx_fp32.RUNTIME


def build(ingredients: Ingredients) -> Format:
    """Writes model_fp16.onnx. The graph itself is wired so that no coordinate is ever in FP16,
    which cannot tell 2049 from 2048; converters of finished files know no such border."""
    import torch

    from common.cli import log
    from common.inference_graph import InferenceGraph
    from common.low_precision import InPrecision, replace_heavy_modules
    from common.onnx_graph import write_onnx
    from phase4_deployment.export_onnx import metadata

    file = ingredients.folder / "model_fp16.onnx"
    log.info("Exporting %s", file.name)
    graph = InferenceGraph(copy.deepcopy(ingredients.exported.model))
    replace_heavy_modules(graph, lambda module: InPrecision(module, torch.float16))
    write_onnx(graph, file, metadata(ingredients.exported, graph))
    return Format(
        NAME,
        file,
        RUNTIME,
        onnx_fp32.predictor(file),
        same_runtime=onnx_fp32.NAME,
        max_map_drop=ingredients.max_map_drop,
    )


import_libraries = onnx_fp32.import_libraries


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model_fp16.onnx."""
    return onnx_fp32.load(file, threads)
