"""Arithmetic of xyxy boxes on tensors of any leading shape, as torchvision's detectors do it."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT = -1.0  # score of a place that holds no box; real scores lie in [0, 1]
MAX_LOG_GROWTH = math.log(1000 / 16)  # torchvision's bound on how much a box may grow


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Moves and scales xyxy `boxes` [..., 4] by predicted `deltas` [..., 4]: Ren et al. 2015."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    center_x, center_y = boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height
    center_x = deltas[..., 0] / weights[0] * width + center_x
    center_y = deltas[..., 1] / weights[1] * height + center_y
    half_width = 0.5 * ((deltas[..., 2] / weights[2]).clamp(max=MAX_LOG_GROWTH).exp() * width)
    half_height = 0.5 * ((deltas[..., 3] / weights[3]).clamp(max=MAX_LOG_GROWTH).exp() * height)
    return torch.stack(
        (
            center_x - half_width,
            center_y - half_height,
            center_x + half_width,
            center_y + half_height,
        ),
        dim=-1,
    )


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Clips xyxy boxes [..., 4] to [0, limits], limits = (width, height, width, height)."""
    return torch.minimum(boxes.clamp(min=0), limits)


def has_sides(boxes: Tensor, min_side: float) -> Tensor:
    """True [...] where both sides of an xyxy box are at least `min_side` pixels."""
    return (boxes[..., 2] - boxes[..., 0] >= min_side) & (boxes[..., 3] - boxes[..., 1] >= min_side)


def by_class(boxes: Tensor, scores: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """boxes [B * P, C, 4] and scores [B * P, C] as [B, C, P, 4] and [B, C, P]."""
    boxes = boxes.reshape(batch, -1, *boxes.shape[1:])
    return boxes.transpose(1, 2), scores.reshape(batch, -1, scores.shape[1]).transpose(1, 2)


def take_best(scores: Tensor, boxes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best of scores [B, N] with boxes [B, N, 4], filled up with ABSENT if N is less.

    Returns:
        boxes [B, count, 4], scores [B, count] descending, index int64 [B, count] among the N.
    """
    best, index = F.pad(scores, (0, count), value=ABSENT).topk(count, dim=1)
    index = index.clamp(max=scores.shape[1] - 1)
    return boxes.gather(1, index[..., None].expand(-1, -1, 4)), best, index
