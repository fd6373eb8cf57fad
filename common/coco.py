"""COCO-format data as torchvision detectors take it: checked splits, decoded images, a Dataset."""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.cli import UserError, log
from common.coco_files import MissingSplitError, find_annotations
from common.coco_format import CocoSplit, ImageRecord, parse_split

VAL_FRACTION = 0.1  # held out of the training images where there is no val file


def load_split(data_path: Path, split: str) -> CocoSplit:
    """Reads and checks the annotations of a split; images are not opened.

    Raises:
        UserError: a file is missing or malformed, or an annotation would crash or spoil a
            training; the first such problem is named and the number of others told.
    """
    parsed, problems = parse_split(Path(data_path), split)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors or parsed is None:
        others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        command = shlex.join(
            ["python", "phase1_training/check_data.py", "--data-path", str(data_path)]
        )
        raise UserError(
            find_annotations(Path(data_path), split),
            f"{errors[0].message}{others}",
            f"list all with: {command}",
        )
    return parsed


def load_train_and_val(data_path: Path) -> tuple[CocoSplit, CocoSplit]:
    """Both splits of a training, see `training_split`; their categories must be the same."""
    train, val = training_split(data_path, "train"), training_split(data_path, "val")
    if (train.category_ids, train.class_names) != (val.category_ids, val.class_names):
        raise UserError(
            val.annotation_file,
            f"its categories differ from those of {train.annotation_file.name}",
            'give both files the same "categories"',
        )
    if train.annotation_file == val.annotation_file:
        log.warning("No val annotations: %d training images held out", len(val.records))
    return train, val


def training_split(data_path: Path, split: str) -> CocoSplit:
    """`load_split`, but without a val file a tenth of the training images is the val split.

    The choice depends on the data alone: what a training holds out is held out in every
    evaluation of its model, whatever the seeds.
    """
    try:
        find_annotations(data_path, "val")
    except MissingSplitError:
        train, val = hold_out(load_split(data_path, "train"), VAL_FRACTION)
        return train if split == "train" else val
    return load_split(data_path, split)


def hold_out(split: CocoSplit, fraction: float) -> tuple[CocoSplit, CocoSplit]:
    """Splits off a random share of the images for validation, at least one on each side; the
    same share at every call."""
    if len(split.records) < 2:
        raise UserError(split.annotation_file, "one image only", "add images or a val file")
    order = np.random.default_rng(0).permutation(len(split.records))
    count = min(max(1, round(fraction * len(order))), len(order) - 1)
    held = set(order[:count].tolist())
    train = tuple(record for i, record in enumerate(split.records) if i not in held)
    val = tuple(record for i, record in enumerate(split.records) if i in held)
    return replace(split, records=train), replace(split, records=val)


# --- reading images ---------------------------------------------------------------------------


def read_image(path: Path, expected_size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes an image as uint8 RGB (height, width, 3).

    The EXIF orientation is applied, unless `expected_size` (width, height), the size the
    annotations were made for, is that of the stored pixels.

    Raises:
        UserError: the file is missing, damaged, too large, or of another size than expected.
    """
    from PIL import Image, ImageOps

    if not os.path.isfile(path):  # a folder, or a pipe that reading would wait for
        raise UserError(path, "no such image", "add it or remove it from the annotations")
    try:
        with Image.open(path) as image:  # refuses decompression bombs
            upright = ImageOps.exif_transpose(image)
            as_annotated = image if expected_size == image.size != upright.size else upright
            pixels = rgb_pixels(as_annotated)
    except PermissionError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "allow reading it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(path, f"cannot be decoded ({error})", "replace the image") from None
    if expected_size not in (None, (pixels.shape[1], pixels.shape[0])):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        what = f"is {found}, the annotations say {expected_size[0]}x{expected_size[1]}"
        raise UserError(path, what, "correct width and height in the annotations")
    return pixels


def rgb_pixels(image: Any) -> np.ndarray:
    """What an opened Pillow image holds, as it lies there: uint8 RGB (height, width, 3)."""
    return np.array(_to_8_bit(image).convert("RGB"))


def _to_8_bit(image: Any) -> Any:
    """16-bit grey images keep their upper byte; Pillow's own conversion would clip to white."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # older Pillows say I for 16 bits too
        from PIL import Image

        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image


class COCODataset:
    """Map-style dataset of (image, target) pairs as torchvision's detectors take them.

    `image` is a uint8 (3, H, W) tensor before `transform`, target holds `boxes` float32 (N, 4)
    xyxy pixels, `labels` int64 (N,) and `image_id`. Crowd regions are left out. Images without
    boxes stay: they teach the background.
    """

    def __init__(self, split: CocoSplit, transform: Callable | None = None):
        self.records: Sequence[ImageRecord] = split.records
        self.transform = transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int):
        import torch
        from torchvision import tv_tensors

        record = self.records[index]
        pixels = read_image(record.path, (record.width, record.height))
        image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
        single = ~record.is_crowd
        target = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(record.boxes_xyxy[single]),
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=(record.height, record.width),
            ),
            "labels": torch.from_numpy(record.labels[single]),
            "image_id": record.image_id,
        }
        return self.transform(image, target) if self.transform else (image, target)
