"""The stock torchvision model in FP32: the baseline, and the checkpoint that is shipped."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phase4_deployment.formats.base import Format, Ingredients

if TYPE_CHECKING:
    from common.models import LoadedModel, Predictor

NAME = "pytorch_fp32"
RUNTIME = "pytorch"


def build(ingredients: Ingredients) -> Format:
    """Writes model.pth; its `model_state_dict` loads into a model that torchvision itself built."""
    from common.models import save_model

    loaded, file = ingredients.loaded, ingredients.folder / "model.pth"
    description: dict[str, Any] = {
        "architecture": loaded.architecture,
        "class_names": list(loaded.class_names),
        "category_ids": list(loaded.category_ids),
    }
    save_model(file, loaded.model, summary=description, **description)
    return of_checkpoint(loaded, file)


def of_checkpoint(loaded: "LoadedModel", file: Path) -> Format:
    """The model as it was loaded."""
    import torch

    from common.models import stock_predictor

    return Format(NAME, file, RUNTIME, stock_predictor(loaded.model, torch.device("cpu")))


def import_libraries() -> None:
    import torch  # noqa: F401
    import torchvision  # noqa: F401

    from common import models  # noqa: F401


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model.pth."""
    import torch

    from common.models import load_model, stock_predictor

    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    return stock_predictor(load_model(file, cpu).model, cpu)
