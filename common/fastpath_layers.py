"""What `common.fastpath.fast_training` puts in place of two of torchvision's layers.

Every function is a context manager that replaces methods of single instances, under torchvision's
own signatures, with ones that compute the same up to rounding.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.ops.poolers import _convert_to_roi_format, _filter_input, _setup_scales

from common.fastpath import frozen_norms_after_convolutions
from common.fastpath_boxes import replaced

GATHERING_DEVICES = ("cpu",)  # where `_gathered_roi_align` beats torchvision's kernel

# --- frozen normalisation ---------------------------------------------------------------------


@contextlib.contextmanager
def folded_norms(model: nn.Module) -> Iterator[None]:
    """Multiplies a frozen normalisation into the weights of the convolution before it.

    torchvision's layer passes twice over the feature map, and under autocast it turns the map
    back into FP32, which is then kept for the backward pass. Weights that train are scaled at
    every forward pass, so their gradients are those of the unfolded layers.
    """
    with contextlib.ExitStack() as stack:
        for _, _, conv, norm in frozen_norms_after_convolutions(model):
            stack.enter_context(replaced(conv, forward=_FoldedConvolution(conv, norm)))
            stack.enter_context(replaced(norm, forward=_identity))
        yield


def _identity(x: Tensor) -> Tensor:
    return x


class _FoldedConvolution:
    """The forward pass of a convolution and the frozen normalisation behind it."""

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm2d):
        self.conv = conv
        self.norm = norm
        self.affine = _Remembered(functools.partial(_affine, norm.eps))
        self.untrained = _Remembered(_folded)

    def __call__(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        scale, shift = self.affine(norm.weight, norm.bias, norm.running_mean, norm.running_var)
        sources = [scale, shift, *conv.parameters(recurse=False)]
        trains = any(source.requires_grad for source in sources)
        weight, bias = (_folded if trains else self.untrained)(*sources)
        return conv._conv_forward(x, weight, bias)


class _Remembered:
    """A function of tensors, computed again only after one was exchanged or written to."""

    def __init__(self, function: Callable[..., tuple[Tensor, Tensor]]):
        self.function = function
        self.key: tuple | None = None

    def __call__(self, *sources: Tensor) -> tuple[Tensor, Tensor]:
        # torch counts the writes to a tensor in `_version`
        key = tuple((id(source), source.data_ptr(), source._version) for source in sources)
        if key != self.key:
            with torch.inference_mode(False), torch.no_grad():  # usable in training, too
                self.result = self.function(*sources)
            self.sources = sources  # alive, so that no other tensor gets the id
            self.key = key
        return self.result


def _affine(
    eps: float, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor
) -> tuple[Tensor, Tensor]:
    """The normalisation as x * scale + shift."""
    scale = weight * (running_var + eps).rsqrt()
    return scale, bias - running_mean * scale


def _folded(
    scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that also normalises."""
    if bias is not None:
        shift = torch.addcmul(shift, bias, scale)
    return weight * scale[:, None, None, None], shift


# --- region pooling ---------------------------------------------------------------------------


@contextlib.contextmanager
def fast_roi_pool(pool: MultiScaleRoIAlign) -> Iterator[None]:
    """RoIAlign (He et al. 2017, https://arxiv.org/abs/1703.06870) with less overhead.

    On the CPU as a weighted sum of feature vectors (`_gathered_roi_align`); elsewhere with
    torchvision's kernel, and one wait for the device instead of one for every pyramid level.
    """

    def forward(
        x: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        features = _filter_input(x, pool.featmap_names)
        if pool.scales is None or pool.map_levels is None:
            pool.scales, pool.map_levels = _setup_scales(
                features, image_shapes, pool.canonical_scale, pool.canonical_level
            )
        rois, levels = _convert_to_roi_format(boxes), pool.map_levels(boxes)
        gathers = features[0].device.type in GATHERING_DEVICES and pool.sampling_ratio > 0
        align = _gathered_roi_align if gathers else _sorted_roi_align
        return align(features, rois, levels, pool.scales, pool.output_size, pool.sampling_ratio)

    with replaced(pool, forward=forward):
        yield


def _sorted_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """torchvision's kernel for each level, over regions sorted by level.

    Arguments are those of `_gathered_roi_align`.
    """
    order = levels.argsort(stable=True)
    counts = torch.bincount(levels, minlength=len(features)).tolist()  # waits for the device
    pooled = torch.cat(
        [
            roi_align(feature, part, output_size, scale, sampling_ratio)
            for feature, part, scale in zip(
                features, rois[order].split(counts), scales, strict=True
            )
        ]
    )
    return torch.empty_like(pooled).index_copy(0, order, pooled)


def _gathered_roi_align(
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
