"""AOTInductor: the inference graph compiled ahead of time into a library that PyTorch loads.

Compiled for one image size: with height and width left open the compiler needs many times as long.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phase4_deployment.formats.base import Format, Ingredients, unavailable

if TYPE_CHECKING:
    from common.models import Predictor

NAME = "aot_inductor"
RUNTIME = "pytorch"


def build(ingredients: Ingredients) -> Format:
    """Writes model_aoti.pt2 for the size of the val images, if they have but one."""
    import torch

    from common.cli import log
    from common.inference_graph import InferenceGraph

    sizes = {image.shape for image in ingredients.val.images}
    if len(sizes) > 1:
        what = f"compiled for one image size, and the val images have {len(sizes)}"
        return unavailable(NAME, RUNTIME, f"{what} – give val images of one size")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        why = f"no C++ compiler ({compiler}) – install one, or name it in CXX"
        return unavailable(NAME, RUNTIME, why)
    (height, width, _) = sizes.pop()
    file = ingredients.folder / "model_aoti.pt2"
    log.info("Compiling %s for images of %dx%d, which takes minutes", file.name, width, height)
    compile_program(InferenceGraph(ingredients.exported.model), (height, width), file)
    size, budget = {"image_size": [height, width]}, ingredients.fp32_map_drop
    predict = load(file, torch.get_num_threads())
    return Format(NAME, file, RUNTIME, predict, max_map_drop=budget, extra=size)


def compile_program(graph: Any, size: tuple[int, int], path: Path) -> None:
    """Compiles for batches of one image of size (height, width)."""
    import torch
    from torch._inductor.utils import fresh_cache

    from common import artifacts

    example = torch.zeros(1, *size, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.pt2"  # the compiler insists on the suffix
        # In a cache of its own: interrupted compilers leave broken libraries in a shared one
        with torch.no_grad(), fresh_cache(dir=folder):
            program = torch.export.export(graph, (example,))
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        with artifacts.atomic_path(path) as temporary:
            shutil.copyfile(package, temporary)


def import_libraries() -> None:
    import torch  # noqa: F401
    import torchvision  # noqa: F401  (the library calls its operators)

    from common import inference_graph  # noqa: F401


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model_aoti.pt2, one image after the other."""
    import torch

    from common import inference_graph

    torch.set_num_threads(threads)
    program = torch._inductor.aoti_load_package(str(file))
    predict = inference_graph.graph_predictor(program, torch.device("cpu"))
    return lambda images: [predict([image])[0] for image in images]
