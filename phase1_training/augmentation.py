"""What happens to a training image on its way to the model; boxes move with it."""

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

SMALLEST_CROP = 0.6  # of the image's height and width
MIN_VISIBLE = 0.2  # boxes of which less is left inside a crop are dropped


class TrainTransform:
    """Crop, resize, flip and colour jitter of a sample of `COCODataset`.

    Args:
        crop_probability: how often a random part of the image is taken.
        color_jitter: largest relative change of brightness, contrast and saturation.
    """

    def __init__(self, crop_probability: float, color_jitter: float):
        self.random_part = RandomPart(crop_probability)
        flip = v2.RandomHorizontalFlip(0.5)
        colour = v2.ColorJitter(color_jitter, color_jitter, color_jitter)
        self.flip_and_colour = v2.Compose([flip, colour] if color_jitter else [flip])

    def __call__(
        self, image: tv_tensors.Image, target: dict[str, Any], size: tuple[int, int]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Draws from torch's global generator.

        Args:
            size: (height, width) the image, or the part taken of it, is resized to.

        Returns:
            Plain tensors: the image uint8 (3, *size), and `boxes` float32 (N, 4) xyxy inside it
            and `labels` int64 (N,).
        """
        image, target = self.random_part(image, target)
        image = v2.functional.resize(image, list(size), antialias=False)  # as the model does
        boxes = v2.functional.resize(target["boxes"], list(size))
        image, boxes = self.flip_and_colour(image, boxes)
        # In FP32, 38 * (366 / 38) is above 366, and the sides of a sliver become equal.
        boxes = v2.functional.clamp_bounding_boxes(boxes).as_subclass(torch.Tensor)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        target = {"boxes": boxes[kept], "labels": target["labels"][kept]}
        return image.as_subclass(torch.Tensor), target


class RandomPart(torch.nn.Module):
    """Sometimes cuts out a random part of the image, of the image's own aspect ratio.

    Objects come out larger and in other places, and cut off at the edges as they are when they
    enter a camera's view. Boxes are clipped to the part.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if torch.rand(()) >= self.probability:
            return image, target
        height, width = v2.functional.get_size(image)
        scale = SMALLEST_CROP + (1 - SMALLEST_CROP) * float(torch.rand(()))
        part_height, part_width = max(1, int(height * scale)), max(1, int(width * scale))
        top = int(torch.randint(height - part_height + 1, ()))
        left = int(torch.randint(width - part_width + 1, ()))
        part = (top, left, part_height, part_width)
        boxes = v2.functional.crop(target["boxes"], *part)
        boxes = v2.functional.clamp_bounding_boxes(boxes)
        kept = _areas(boxes) >= MIN_VISIBLE * _areas(target["boxes"])
        target = {**target, "boxes": boxes[kept], "labels": target["labels"][kept]}
        target["boxes"] = tv_tensors.wrap(target["boxes"], like=boxes)
        return v2.functional.crop(image, *part), target


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).as_subclass(torch.Tensor)
    return sides.prod(dim=1)
