"""What a training step takes: images padded to one canvas, and their ground truth packed."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Batch:
    """Images padded to one canvas and their ground truth, in three tensors. It may be empty.

    Attributes:
        images: uint8 (B, 3, H, W), channels last, zero right of and below each image.
        sizes: (height, width) of each image inside the canvas.
        boxes, labels: of all images one after the other, see `targets`.
        box_counts: how many boxes each image has.
        image_ids: as in the annotations.
        paths: the files, for messages.
        seeds: for proposal sampling, one per image, 0 <= seed < 2**63.
    """

    def __init__(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]],
        image_ids: Sequence[int],
        paths: Sequence[str],
        seeds: Sequence[int],
    ):
        self.images = images
        self.sizes = tuple(sizes)
        self.boxes = torch.cat([t["boxes"] for t in targets]) if targets else torch.zeros(0, 4)
        self.labels = (
            torch.cat([t["labels"] for t in targets])
            if targets
            else torch.zeros(0, dtype=torch.int64)
        )
        self.box_counts = tuple(len(target["boxes"]) for target in targets)
        self.image_ids = tuple(image_ids)
        self.paths = tuple(paths)
        self.seeds = tuple(seeds)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def targets(self) -> list[dict[str, Tensor]]:
        """`boxes` float32 (N, 4), xyxy pixels, and `labels` int64 (N,), from 1, of each image:
        views of the packed tensors."""
        boxes, labels = self.boxes.split(self.box_counts), self.labels.split(self.box_counts)
        return [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]

    def to(self, device: torch.device) -> "Batch":
        """On a device: three copies, which the host does not wait for if the memory is pinned."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """In page-locked memory; DataLoader calls it in a thread of its own."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        batch = copy.copy(self)
        batch.images, batch.boxes = change(self.images), change(self.boxes)
        batch.labels = change(self.labels)
        return batch

    def part(self, start: int, stop: int) -> "Batch":
        """Images `start` to `stop` on the same canvas, as views: a micro-batch."""
        boxes = slice(sum(self.box_counts[:start]), sum(self.box_counts[:stop]))
        part = copy.copy(self)
        part.boxes, part.labels = self.boxes[boxes], self.labels[boxes]
        for name in ("images", "sizes", "box_counts", "image_ids", "paths", "seeds"):
            setattr(part, name, getattr(self, name)[start:stop])
        return part
