"""The two steps of inference that a traced graph cannot express, as custom operators.

Each has a real implementation for eager mode, a shape-only one for torch.compile and torch.export,
and a translation to ONNX operators in common/onnx_graph.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.models import resized_size

# Candidates suppressed in one call. More are cheaper to split by group, as the work grows with
# the square; fewer are cheaper together, as every call costs a launch (and on CUDA a sync).
NMS_CALL_LIMIT = {"cpu": 500, "cuda": 20_000}


@torch.library.custom_op("detection::preprocess", mutates_args=())
def preprocess(
    images: Tensor, mean: Tensor, std: Tensor, min_size: int, max_size: int, divisor: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises, resizes and pads a batch as torchvision's GeneralizedRCNNTransform does.

    Args:
        images: uint8 [B, H, W, 3] RGB.
        mean, std: float32 [3], of pixels in [0, 1].
        min_size, max_size: the resize rule, see `common.models.resized_size`.
        divisor: height and width are padded with zeros to multiples of this.

    Returns:
        pixels float32 [B, 3, H', W']; limits float32 [4], the resized (w, h, w, h) that boxes are
        clipped to; scale float32 [4], what takes resized xyxy boxes to original pixels.
    """
    height, width = images.shape[1:3]
    new_height, new_width = resized_size(height, width, min_size, max_size)
    limits, original = _sides(new_width, new_height, mean), _sides(width, height, mean)
    pixels = images.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
    pixels.sub_(mean[:, None, None]).div_(std[:, None, None])
    pixels = F.interpolate(pixels, (new_height, new_width), mode="bilinear", align_corners=False)
    padding = (0, -new_width % divisor, 0, -new_height % divisor)
    return F.pad(pixels, padding).contiguous(), limits, original / limits


def _sides(width: int, height: int, like: Tensor) -> Tensor:
    """float32 [4] (w, h, w, h), written on the device: a copy from the host would wait for it."""
    sides = like.new_empty(4)
    sides[0::2], sides[1::2] = width, height
    return sides


@preprocess.register_fake
def _(images, mean, std, min_size, max_size, divisor):
    height, width = images.shape[1:3]
    if isinstance(height, int) and isinstance(width, int):
        resized = resized_size(height, width, min_size, max_size)
        padded = [side + -side % divisor for side in resized]
    else:
        # Unknown multiples of the divisor: as expressions of the image's height and width the
        # sizes of all feature maps would nest minima and divisions, which take long to simplify.
        context = torch.library.get_ctx()
        padded = [context.new_dynamic_size(min=1) * divisor for _ in range(2)]
    pixels = images.new_empty((images.shape[0], 3, *padded), dtype=torch.float32)
    return pixels, mean.new_empty(4), mean.new_empty(4)


@torch.library.custom_op("detection::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each group of each batch element.

    Args:
        boxes: float32 [B, N, 4] xyxy, shared by the groups.
        scores: float32 [B, G, N]; those not above `score_threshold` are no candidates.
        iou_threshold: a box overlapping a kept box of its group by more than this goes.

    Returns:
        bool [B, G, N], True where the box is kept in the group.
    """
    groups, box_count = scores.shape[1:]
    candidates = torch.nonzero((scores > score_threshold).reshape(-1))[:, 0]  # sorted by group
    group = torch.div(candidates, box_count, rounding_mode="floor")
    row = torch.div(group, groups, rounding_mode="floor") * box_count + candidates % box_count
    kept = grouped_nms(
        boxes.reshape(-1, 4)[row], scores.reshape(-1)[candidates], group, iou_threshold
    )
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[candidates[kept]] = True
    return mask.reshape(scores.shape)


@nms_mask.register_fake
def _(boxes, scores, iou_threshold, score_threshold):
    return scores.new_empty(scores.shape, dtype=torch.bool)


def grouped_nms(boxes: Tensor, scores: Tensor, group: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the kept boxes; boxes of different groups never suppress each other.

    Args:
        boxes: float32 [N, 4] xyxy; scores: float32 [N]; group: int64 [N], ascending.

    Several groups go through one call by moving each to its own place. The offsets are whole
    numbers and the sums are float64, so that moving changes no overlap.
    """
    if len(boxes) == 0:
        return group
    offset_dtype = torch.float32 if boxes.device.type == "mps" else torch.float64
    apart = boxes.detach().abs().amax().ceil().to(offset_dtype) * 2 + 1
    kept = []
    for start, end, single_group in _calls(group, NMS_CALL_LIMIT.get(boxes.device.type, 1000)):
        placed = boxes[start:end]
        if not single_group:
            placed = placed.to(offset_dtype) + (group[start:end] * apart)[:, None]
        selected = torch.ops.torchvision.nms(
            placed, scores[start:end].to(placed.dtype), iou_threshold
        )
        kept.append(selected + start)
    return torch.cat(kept)


def _calls(group: Tensor, limit: int) -> list[tuple[int, int, bool]]:
    """Splits sorted group numbers into ranges (start, end, one group only) of up to `limit`.

    A group larger than the limit gets a range of its own.
    """
    if len(group) <= limit:
        return [(0, len(group), False)]
    ranges: list[tuple[int, int, bool]] = []
    start = end = 0
    for size in torch.unique_consecutive(group, return_counts=True)[1].tolist():
        if end > start and end + size - start > limit:
            ranges.append((start, end, False))
            start = end
        end += size
        if end - start == size > limit // 2:  # large enough alone: spares the offsets
            ranges.append((start, end, True))
            start = end
    if end > start:
        ranges.append((start, end, False))
    return ranges
