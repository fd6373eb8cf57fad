"""What `common.fastpath.fast_training` puts in place of two of torchvision's layers.

Every function is a context manager that replaces methods of single instances, under torchvision's
own signatures, with ones that compute the same up to rounding.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.ops.poolers import _convert_to_roi_format, _filter_input, _setup_scales

from common.fastpath import frozen_norms_after_convolutions
from common.fastpath_boxes import replaced
from common.roi_align import gathered_roi_align, gathers

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

    On the CPU as a weighted sum of feature vectors (`gathered_roi_align`); elsewhere with
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
        align = gathered_roi_align if gathers(features, pool.sampling_ratio) else _sorted_roi_align
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

    Arguments are those of `gathered_roi_align`.
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
