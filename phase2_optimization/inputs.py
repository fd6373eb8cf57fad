"""What the scripts of this phase begin with: device, output folder, batches, images to time."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from common import environment
from common.cli import UserError, log
from common.coco import CocoSplit, read_image

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


def at_most_all(batch_size: int, train: CocoSplit) -> int:
    """The batch size, or the number of training images where there are fewer."""
    if batch_size <= len(train.records):
        return batch_size
    log.info("The train split has %d images: one batch of all of them", len(train.records))
    return len(train.records)


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
