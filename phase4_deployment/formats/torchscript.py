"""TorchScript: the stock detector, scripted.

A trace cannot hold a detector: torchvision returns a list of dictionaries, which torch.jit.trace
refuses, and the branches taken for one image would be kept for all. Scripting compiles the Python
code itself, loops and branches included. What it returns is (losses, detections).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phase4_deployment.formats.base import Format, Ingredients

if TYPE_CHECKING:
    import numpy as np

    from common.models import Detections, Predictor

NAME = "torchscript"
RUNTIME = "pytorch"


def build(ingredients: Ingredients) -> Format:
    """Writes model_scripted.pt, and keeps what torch.jit.trace answers under `trace`."""
    import torch

    from common import artifacts

    model = ingredients.loaded.model
    file = ingredients.folder / "model_scripted.pt"
    trace = try_trace(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, in favour of torch.export
            scripted = torch.jit.script(model)
    except Exception as error:  # noqa: BLE001 (the compiler raises many kinds)
        why = f"unsupported: {str(error).strip().splitlines()[0]}"
        return Format(NAME, None, RUNTIME, None, status=why, extra={"trace": trace})
    with artifacts.atomic_path(file) as temporary:
        scripted.save(str(temporary))
    return Format(NAME, file, RUNTIME, _predictor(scripted), extra={"trace": trace})


def try_trace(model: Any) -> str:
    """What torch.jit.trace answers to a detector, in its own words."""
    import torch

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.jit.trace(model, ([torch.zeros(3, 64, 64)],))
    except RuntimeError as error:
        return f"unsupported: {str(error).strip().splitlines()[0]}"
    return "traced, for one image of one size"


def import_libraries() -> None:
    import torch  # noqa: F401
    import torchvision  # noqa: F401  (the file names its operators)

    from common import models  # noqa: F401


def load(file: Path, threads: int) -> "Predictor":
    """A Predictor over a shipped model_scripted.pt."""
    import torch

    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _predictor(torch.jit.load(str(file)))


def _predictor(scripted: Any) -> "Predictor":
    import torch

    from common.models import Detections

    def predict(images: "Sequence[np.ndarray]") -> "list[Detections]":
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # says at every first call that it is TorchScript
            tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
            _, found = scripted(tensors)
        return [
            Detections(*(one[key].numpy() for key in ("boxes", "scores", "labels")))
            for one in found
        ]

    return predict
