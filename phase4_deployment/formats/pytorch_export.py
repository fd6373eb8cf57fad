"""torch.export: the inference graph as a program that PyTorch can compile and move."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phase4_deployment.formats.base import Format, Ingredients

if TYPE_CHECKING:
    from common.inference_graph import InferenceGraph
    from common.models import Predictor

NAME = "pytorch_export"
RUNTIME = "pytorch"


def build(ingredients: Ingredients) -> Format:
    """Writes model.pt2."""
    import torch

    from common.cli import log
    from common.inference_graph import InferenceGraph, graph_predictor

    file = ingredients.folder / "model.pt2"
    log.info("Exporting %s", file.name)
    program = export_program(InferenceGraph(ingredients.exported.model), file)
    predict = graph_predictor(program, torch.device("cpu"))
    return Format(NAME, file, RUNTIME, predict, max_map_drop=ingredients.fp32_map_drop)


def export_program(graph: "InferenceGraph", path: Path) -> Any:
    """Saves a torch.export program with dynamic batch, height and width; returns its module.

    The guards that the export derives refuse feature maps of one row or column, on which the
    program is right all the same; they are left out here and when loading.
    """
    import torch

    from common import artifacts

    dynamic = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(
            graph, (example,), dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},)
        )
    with artifacts.atomic_path(path) as temporary:
        torch.export.save(program, temporary)
    return program.module(check_guards=False)


def import_libraries() -> None:
    import torch  # noqa: F401
    import torchvision  # noqa: F401  (the file names its operators)

    from common import inference_graph  # noqa: F401


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model.pt2."""
    import torch

    from common.inference_graph import graph_predictor

    torch.set_num_threads(threads)
    program = torch.export.load(file).module(check_guards=False)
    return graph_predictor(program, torch.device("cpu"))
