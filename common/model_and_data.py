"""What most scripts begin with: a trained model, and data of the same classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common import paths
from common.cli import UserError, log
from common.coco import CocoSplit, training_split
from common.models import LoadedModel, load_model

if TYPE_CHECKING:
    import torch


def load_model_and_data(
    model_path: Path | None,
    data_path: Path | None,
    device: "torch.device",
    split_names: Sequence[str] = ("train", "val"),
) -> tuple[LoadedModel, list[CocoSplit]]:
    """Loads a checkpoint and splits of a data set; None takes the newest model and the demo data.

    Raises:
        UserError: one of them is missing or damaged, or their classes differ.
    """
    if data_path is None:
        data_path = paths.DEMO
        log.info("Data:  %s", paths.display(data_path))
    loaded = load_model(model_path, device)
    splits = [training_split(data_path, name) for name in split_names]
    for split in splits:
        check_classes(loaded, split, "give the data the model was trained on")
    return loaded, splits


def check_classes(loaded: LoadedModel, split: CocoSplit, remedy: str) -> None:
    """Raises UserError where the model knows other classes than the data, or in another order."""
    if loaded.class_names != split.class_names:
        found, wanted = ", ".join(loaded.class_names), ", ".join(split.class_names)
        what = f"knows the classes {found:.80}, the data has {wanted:.80}"
        raise UserError(loaded.path, what, remedy)
