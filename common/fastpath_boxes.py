"""What `common.fastpath.fast_training` puts in place of torchvision's box arithmetic.

Every function is a context manager that replaces methods of one instance, under torchvision's own
signatures, with ones that compute the same.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

ANCHOR_SETS = 32  # image sizes whose anchors are kept: 4 MiB each at 800x1333 px


@contextlib.contextmanager
def replaced(instance: object, **attributes: Any) -> Iterator[None]:
    """Sets attributes of one instance and takes them back, also from a nested use."""
    own = vars(instance)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(before)


@contextlib.contextmanager
def cached_anchors(generator: AnchorGenerator) -> Iterator[None]:
    """The anchors of an image size are computed once, and in FP32 whatever the features are.

    torchvision computes them anew for every batch, concatenates them once per image, and rounds
    them to the features' precision.
    """
    stock = generator.forward

    @functools.lru_cache(ANCHOR_SETS)
    def anchors(
        image_size: tuple[int, int], grids: tuple[tuple[int, int], ...], device: torch.device
    ) -> Tensor:
        with torch.inference_mode(False):  # usable in training whoever asks for them first
            blank = torch.zeros((), dtype=torch.float32, device=device)
            maps = [blank.expand(1, 1, *grid) for grid in grids]
            return stock(ImageList(blank.expand(1, 3, *image_size), [image_size]), maps)[0]

    def forward(images: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        grids = tuple(tuple(level.shape[-2:]) for level in feature_maps)
        shared = anchors(tuple(images.tensors.shape[-2:]), grids, feature_maps[0].device)
        return [shared] * len(images.image_sizes)

    with replaced(generator, forward=forward):
        yield
