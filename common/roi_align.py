"""Region pooling on a CPU as weighted sums of feature vectors, in training and in inference."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

GATHERING_DEVICES = ("cpu",)  # where `gathered_roi_align` beats torchvision's kernel


def gathers(features: Sequence[Tensor], sampling_ratio: int) -> bool:
    """Whether `gathered_roi_align` can pool these features and is the faster way to."""
    return features[0].device.type in GATHERING_DEVICES and sampling_ratio > 0


def gathered_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """RoIAlign as one weighted sum of feature vectors for each output cell.

    A cell averages sampling points, and a point is interpolated from the four pixels around it.
    torchvision's CPU kernel walks through the channels one after the other in scattered memory;
    here the channels of a pixel lie together and are added as one vector, forward and backward.

    Args:
        features: pyramid levels [B, C, H, W], best in channels_last memory.
        rois: float32 [R, 5], image index and xyxy box in pixels of the image.
        levels: int64 [R], the pyramid level of each region.
        scales: of each level, feature pixels per image pixel.
        output_size: cells (height, width) of a region.
        sampling_ratio: sampling points along each side of a cell.

    Returns:
        [R, C, *output_size].
    """
    batch, channels = features[0].shape[:2]
    sides = torch.tensor([level.shape[-2:] for level in features])
    first_row = (batch * sides.prod(1)).cumsum(0) - batch * sides.prod(1)
    height, width = sides[levels].unbind(1)
    boxes = rois[:, 1:] * rois.new_tensor(scales)[levels][:, None]

    y, weight_y = _sampling_points(boxes[:, 1], boxes[:, 3], height, output_size[0], sampling_ratio)
    x, weight_x = _sampling_points(boxes[:, 0], boxes[:, 2], width, output_size[1], sampling_ratio)
    image_row = first_row[levels] + rois[:, 0].long() * height * width
    row = image_row[:, None, None] + y * width[:, None, None]
    # [R, cell rows, cell columns, entries along y, entries along x]
    index = row[:, :, None, :, None] + x[:, None, :, None, :]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]

    vectors = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in features])
    cells = F.embedding_bag(
        index.flatten(0, 2).flatten(1),
        vectors,
        mode="sum",
        per_sample_weights=weight.flatten(0, 2).flatten(1).to(vectors.dtype),
    )
    return cells.view(len(rois), *output_size, channels).permute(0, 3, 1, 2)


def _sampling_points(
    start: Tensor, end: Tensor, size: Tensor, cells: int, points: int
) -> tuple[Tensor, Tensor]:
    """Pixels and weights along one axis: each cell has `points` points between two pixels each.

    Args:
        start, end: float32 [R], the regions' extent in feature pixels.
        size: int64 [R], pixels of the feature map along the axis.

    Returns:
        index int64 and weight float32, both [R, cells, 2 * points].
    """
    cell = ((end - start).clamp(min=1) / cells)[:, None]
    number = torch.arange(cells * points)
    place = start[:, None] + (number // points) * cell + (number % points + 0.5) * cell / points
    last = (size - 1)[:, None]
    inside = (place >= -1) & (place <= last + 1)
    place = place.clamp(min=0)
    low = place.long().clamp(min=0).minimum(last)  # also of a NaN: an index out of range crashes
    high = (low + 1).minimum(last)
    fraction = torch.where(low < last, place - low, 0.0)
    weight = torch.stack((1 - fraction, fraction), dim=-1) * (inside / points)[..., None]
    index = torch.stack((low, high), dim=-1)
    return index.reshape(-1, cells, 2 * points), weight.reshape(-1, cells, 2 * points)


class ChannelsLastMLPHead(nn.Module):
    """torchvision's TwoMLPHead for regions whose channels lie together in memory.

    That is how `gathered_roi_align` leaves them. The stock head flattens them channel by channel,
    which copies every region. Here the columns of the first layer's weight are in that other order,
    once.

    Args:
        head: keeps its weights; the second layer is shared with it.
        output_size: cells (height, width) of a region.
    """

    def __init__(self, head: TwoMLPHead, output_size: tuple[int, int]):
        super().__init__()
        weight = head.fc6.weight.detach()
        by_channel = weight.reshape(len(weight), -1, *output_size)
        self.fc6 = nn.Linear(weight.shape[1], len(weight), device=weight.device, dtype=weight.dtype)
        self.fc6.weight = nn.Parameter(by_channel.permute(0, 2, 3, 1).flatten(1).contiguous())
        self.fc6.bias = head.fc6.bias
        self.fc7 = head.fc7

    def forward(self, x: Tensor) -> Tensor:
        """Regions [R, C, *output_size] -> features [R, F]."""
        return F.relu(self.fc7(F.relu(self.fc6(x.permute(0, 2, 3, 1).flatten(1)))))
