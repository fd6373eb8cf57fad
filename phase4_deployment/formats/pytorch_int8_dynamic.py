"""PyTorch's dynamic INT8, measured to show what it does: the Linear layers, and nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import UserError
from phase4_deployment.formats import pytorch_fp32
from phase4_deployment.formats.base import Format, Ingredients, unavailable

if TYPE_CHECKING:
    from common.models import Predictor

NAME = "pytorch_int8_dynamic"
RUNTIME = "pytorch"


def build(ingredients: Ingredients) -> Format:
    """For comparison only: written beside the package."""
    try:
        item = quantise(ingredients, ingredients.scratch / "model_int8_dynamic.pth")
    except UserError as error:
        item = unavailable(NAME, RUNTIME, f"{error.what} – {error.remedy}")
    item.is_shipped = False
    return item


def quantise(ingredients: Ingredients, file: Path) -> Format:
    """Quantises dynamically into `file` and takes the model that is read back from it."""
    from common import artifacts
    from common.cli import log
    from phase4_deployment import quantization

    loaded = ingredients.loaded
    model = quantization.quantize_dynamic(loaded.model)
    quantization.save_dynamic(file, model, artifacts.load_checkpoint(loaded.path))
    counts = quantization.count_quantized(model)
    log.info(
        "Dynamic INT8: %d of %d Linear and %d of %d Conv2d layers became int8",
        *(
            number
            for kind in ("Linear", "Conv2d")
            for number in (counts[kind]["int8"], sum(counts[kind].values()))
        ),
    )
    return Format(
        NAME,
        file,
        RUNTIME,
        _predictor(file),
        same_runtime=pytorch_fp32.NAME,
        max_map_drop=ingredients.max_map_drop,
        extra={"quantized": counts},
    )


import_libraries = pytorch_fp32.import_libraries


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over what `quantise` wrote."""
    import torch

    torch.set_num_threads(threads)
    return _predictor(file)


def _predictor(file: Path) -> "Predictor":
    import torch

    from common.models import stock_predictor
    from phase4_deployment import quantization

    return stock_predictor(quantization.load_dynamic(file), torch.device("cpu"))
