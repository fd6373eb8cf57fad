"""What every script of this phase begins with: a trained model and data of the same classes."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common import environment, paths
from common.cli import UserError, log
from common.coco import CocoSplit, read_image, training_split
from common.models import LoadedModel, load_model

if TYPE_CHECKING:
    import numpy as np
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


def most_common_size(split: CocoSplit) -> tuple[int, int]:
    """(width, height) of most images; of sizes that are equally common, the widest."""
    sizes = Counter((record.width, record.height) for record in split.records)
    return max(sizes, key=lambda size: (sizes[size], size))


def timed_images(
    split: CocoSplit, largest_batch: int, size: tuple[int, int] | None
) -> "list[np.ndarray]":
    """Images of one size to make batches of: those of the most common size of the split.

    Args:
        largest_batch: at most this many, and at least 16 if there are as many, are returned.
        size: (width, height) to resize all to instead; then the first images are taken.
    """
    import numpy as np
    from PIL import Image

    records = split.records
    if size is None:
        common = most_common_size(split)
        records = tuple(r for r in records if (r.width, r.height) == common)
    images = [read_image(r.path, (r.width, r.height)) for r in records[: max(largest_batch, 16)]]
    if size is not None:
        images = [np.array(Image.fromarray(image).resize(size)) for image in images]
    return images


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"({shown}, … {len(names)} in all)" if len(names) > 5 else f"({shown})"
