"""The batches a precision comparison trains on: those of phase 1, without its augmentation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from common.coco import COCODataset, CocoSplit
from common.models import resized_size

STRIDE = 32  # sides of a canvas are multiples of it, as torchvision pads


class Batch(NamedTuple):
    """Images padded to one canvas and their ground truth, in three tensors.

    Attributes:
        images: uint8 [B, 3, H, W], channels last, zero right of and below each image.
        sizes: (height, width) of each image inside the canvas.
        boxes, labels: float32 [N, 4] xyxy pixels and int64 [N] from 1, of all images in turn.
        box_counts: how many boxes each image has.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    boxes: Tensor
    labels: Tensor
    box_counts: tuple[int, ...]

    @property
    def targets(self) -> list[dict[str, Tensor]]:
        """`boxes` and `labels` of each image: views."""
        boxes, labels = self.boxes.split(self.box_counts), self.labels.split(self.box_counts)
        return [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]

    def to(self, device: torch.device) -> "Batch":
        """On a device; from page-locked memory the host does not wait for the copies."""
        images, boxes, labels = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.images, self.boxes, self.labels)
        )
        return self._replace(images=images, boxes=boxes, labels=labels)

    def pin_memory(self) -> "Batch":
        return self._replace(
            images=self.images.pin_memory(),
            boxes=self.boxes.pin_memory(),
            labels=self.labels.pin_memory(),
        )


def training_batches(
    split: CocoSplit, batch_size: int, count: int, *, min_size: int, max_size: int, seed: int
) -> list[Batch]:
    """Seeded random batches in the host's memory; every image is used before one comes again.

    Args:
        min_size, max_size: of the resize, see `common.models.resized_size`.
    """
    images = COCODataset(split)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < batch_size * count:
        order += torch.randperm(len(images), generator=generator).tolist()
    return [
        _padded([_sample(images, i, min_size, max_size) for i in order[start : start + batch_size]])
        for start in range(0, batch_size * count, batch_size)
    ]


def _sample(
    images: COCODataset, index: int, min_size: int, max_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """An image uint8 [3, h, w] as it is trained on, its boxes [N, 4] and labels [N]."""
    image, target = images[index]
    height, width = image.shape[1:]
    size = list(resized_size(height, width, min_size, max_size))
    image = v2.functional.resize(image, size, antialias=False)  # as the model does
    boxes = v2.functional.clamp_bounding_boxes(v2.functional.resize(target["boxes"], size))
    boxes = boxes.as_subclass(Tensor)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # FP32 can round a sliver's sides together
    return image.as_subclass(Tensor), boxes[kept], target["labels"][kept]


def _padded(samples: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Batch:
    sizes = tuple((image.shape[1], image.shape[2]) for image, _, _ in samples)
    height, width = (-(-max(sides) // STRIDE) * STRIDE for sides in zip(*sizes, strict=True))
    shape = (len(samples), 3, height, width)
    canvas = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last).zero_()
    for place, (image, _, _) in zip(canvas, samples, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    boxes, labels = (torch.cat([sample[i] for sample in samples]) for i in (1, 2))
    return Batch(canvas, sizes, boxes, labels, tuple(len(sample[1]) for sample in samples))


def image_seeds(seed: int, step: int, count: int) -> list[int]:
    """The seeds that decide which proposals of each of `count` images are sampled at a step."""
    sequence = np.random.SeedSequence((seed % 2**64, step))
    return (sequence.generate_state(count, np.uint64) >> np.uint64(1)).tolist()
