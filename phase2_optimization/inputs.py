"""What every script of this phase begins with: a trained model and data of the same classes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common import environment, paths
from common.cli import UserError, log
from common.coco import CocoSplit, training_split
from common.models import LoadedModel, load_model

if TYPE_CHECKING:
    import torch


def start(device_name: str, seed: int) -> "torch.device":
    """Chooses the device, seeds everything and makes FP32 strict: TF32, which keeps 10 of FP32's
    23 bits of mantissa and is partly on by default, is switched off."""
    import torch

    device = environment.select_device(device_name)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    environment.seed_everything(seed)
    log.info(environment.summary_line(str(device)))
    return device


def writable_folder(folder: Path) -> None:
    """Looks, before there is work to lose, whether files can be written into a folder, or into
    where it is to be made. Makes nothing.

    Raises:
        UserError: they cannot.
    """
    try:
        present = folder.absolute()
        while not present.exists():
            present = present.parent
        with tempfile.TemporaryFile(dir=present):  # permissions alone tell too little
            pass
    except OSError as error:
        what = f"cannot be written to ({error.strerror})"
        raise UserError(folder, what, "choose another --output") from None


def load_inputs(
    model_path: Path | None,
    data_path: Path | None,
    split_names: Sequence[str],
    device: "torch.device",
) -> tuple[LoadedModel, list[CocoSplit]]:
    """Loads a checkpoint and splits of a data set; None takes the newest model and the demo data.

    Raises:
        UserError: one of them is missing or damaged, their classes differ, or there is no image.
    """
    if data_path is None:
        data_path = paths.DEMO
        log.info("Data:  %s", paths.display(data_path))
    loaded = load_model(model_path, device)
    splits = [training_split(data_path, name) for name in split_names]
    for split in splits:
        if loaded.class_names != split.class_names:
            raise UserError(
                split.annotation_file,
                f"classes {_some(split.class_names)} differ from the model's "
                f"{_some(loaded.class_names)}",
                "give the data the model was trained on",
            )
        if not split.records:
            raise UserError(split.annotation_file, "no images", "give a split with images")
    return loaded, splits


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"({shown}, … {len(names)} in all)" if len(names) > 5 else f"({shown})"
