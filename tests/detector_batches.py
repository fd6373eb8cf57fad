"""Detectors with frozen normalisation and small mixed batches, for tests of the training forward.

Frozen, because only then is an image's loss independent of the others in its batch.
"""

import copy
import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from common import models, training_losses
from tests.random_detectors import random_detector

MIN_SIZE, MAX_SIZE = 64, 96
SIZES = ((64, 96), (96, 64), (64, 80), (64, 64), (72, 64))  # none of which is resized


@dataclass(frozen=True)
class MixedBatch:
    """Images of several sizes, as torchvision takes them and as `training_losses` does."""

    images: list[Tensor]  # float32 [3, h, w] in [0, 1]
    pixels: Tensor  # float32 [B, 3, H, W], normalised and padded
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]]
    seeds: list[int]

    def part(self, start: int, stop: int) -> tuple:
        """Arguments of `training_losses`, for some of the images on the same canvas."""
        chosen = slice(start, stop)
        return self.pixels[chosen], self.sizes[chosen], self.targets[chosen], self.seeds[chosen]

    @property
    def whole(self) -> tuple:
        return self.part(0, len(self.images))


@functools.cache
def _detector(architecture: str) -> FasterRCNN:
    model = random_detector(
        architecture, num_classes=4, min_size=MIN_SIZE, max_size=MAX_SIZE, proposals=100
    )
    state = model.state_dict()
    models.freeze_norms(model, eps=1e-5)
    model.load_state_dict(state, strict=False)  # frozen norms do not count their batches
    for kind in (model.rpn._pre_nms_top_n, model.rpn._post_nms_top_n):
        kind["training"] = 150
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    model.rpn.fg_bg_sampler.batch_size_per_image = 64
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(not name.startswith(("body.conv1", "body.layer1")))
    return model.train()


def frozen_detector(architecture: str) -> FasterRCNN:
    """In training mode, its first stage not trained; every call gives a fresh copy."""
    return copy.deepcopy(_detector(architecture))


def mixed_batch(
    model: FasterRCNN, count: int, *, boxes: bool = True, dtype: torch.dtype = torch.float32
) -> MixedBatch:
    """`count` images (up to 5) of different sizes; the second one has no boxes."""
    generator = torch.Generator().manual_seed(11)
    sizes = list(SIZES[:count])
    images = [torch.rand(3, *size, generator=generator).to(dtype) for size in sizes]
    targets = []
    for index, (height, width) in enumerate(sizes):
        number = 0 if index == 1 or not boxes else index + 2
        corners = torch.rand(number, 2, generator=generator) * torch.tensor([width, height]) * 0.6
        sides = 8 + torch.rand(number, 2, generator=generator) * 30
        targets.append(
            {
                "boxes": torch.cat((corners, corners + sides), dim=1),
                "labels": torch.randint(1, 4, (number,), generator=generator),
            }
        )
    pixels = model.transform(images)[0].tensors
    return MixedBatch(images, pixels, sizes, targets, [100 + index for index in range(count)])


class KeyedSampler:
    """torchvision's sampler drawing as `training_losses` does, for a comparison with it."""

    def __init__(self, stock, generators: list[torch.Generator]):
        self.batch_size_per_image = stock.batch_size_per_image
        self.positive_fraction = stock.positive_fraction
        self.generators = generators

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = [], []
        for row, generator in zip(labels, self.generators, strict=True):
            keys = torch.rand(len(row), generator=generator)
            index, chosen = training_losses.sample_balanced(row[None], keys[None], self)
            mask = torch.zeros(len(row), dtype=torch.bool)
            mask[index[0][chosen[0]]] = True
            positive.append(mask & (row > 0))
            negative.append(mask & (row == 0))
        return positive, negative


def stock_losses(model: FasterRCNN, batch: MixedBatch) -> dict[str, Tensor]:
    """torchvision's own training forward, sampling by the batch's seeds."""
    stock = model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler
    generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
    model.rpn.fg_bg_sampler = KeyedSampler(stock[0], generators)
    model.roi_heads.fg_bg_sampler = KeyedSampler(stock[1], generators)
    try:
        return model(batch.images, batch.targets)
    finally:
        model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler = stock


def gradients(model: FasterRCNN, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the summed losses, by parameter name; leaves none behind."""
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor differs by at most `tolerance` times its largest value; 0 is bit for bit."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        difference = (found[name] - values).abs().max()
        assert difference <= tolerance * values.abs().max(), (name, difference, values.abs().max())
