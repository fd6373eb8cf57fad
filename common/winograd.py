"""3x3 convolutions on a CPU with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Lavin & Gray 2016 (https://arxiv.org/abs/1509.09308): 4x4 outputs come from a 6x6 tile of inputs
by a transform, 36 products instead of 144, and a transform back. GPU libraries do this by
themselves; PyTorch's CPU library does not. It is FP32 arithmetic in another order: rounding errors
are some ten times those of the direct sum, which move boxes by parts of a pixel.
"""

import math
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE, STEP = 6, 4  # pixels along a tile, and how far the next one is: they overlap by the kernel
MIN_CHANNELS = 128  # with fewer the transforms cost more than the products save
BAND_TILES = 256  # transformed at a time, so that a band stays in the processor's cache

# Transforms of an input tile, the kernel and the products, for the points 0, 3/4, -3/4, 3/2, -3/2
# and infinity. With the usual 0, 1, -1, 2, -2 the largest rounding errors are four times as large
# (Barabasz et al. 2020, https://arxiv.org/abs/1803.10986, on the choice of points).
INPUT_TRANSFORM = (
    (81 / 64, 0, -45 / 16, 0, 1, 0),
    (0, -27 / 16, -9 / 4, 3 / 4, 1, 0),
    (0, 27 / 16, -9 / 4, -3 / 4, 1, 0),
    (0, -27 / 32, -9 / 16, 3 / 2, 1, 0),
    (0, 27 / 32, -9 / 16, -3 / 2, 1, 0),
    (0, 81 / 64, 0, -45 / 16, 0, 1),
)
KERNEL_TRANSFORM = (
    (64 / 81, 0, 0),
    (-128 / 243, -32 / 81, -8 / 27),
    (-128 / 243, 32 / 81, -8 / 27),
    (32 / 243, 16 / 81, 8 / 27),
    (32 / 243, -16 / 81, 8 / 27),
    (0, 0, 1),
)
OUTPUT_TRANSFORM = (
    (1, 1, 1, 1, 1, 0),
    (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2, 0),
    (0, 9 / 16, 9 / 16, 9 / 4, 9 / 4, 0),
    (0, 27 / 64, -27 / 64, 27 / 8, -27 / 8, 1),
)


class WinogradConv2d(nn.Module):
    """Does what a 3x3 `nn.Conv2d` of stride 1 and padding 1 does, for inference on a CPU.

    Args:
        convolution: one that `is_eligible`; its weight is transformed once, its bias shared.
    """

    kernel: Tensor  # [36, channels in, channels out]

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        weight = convolution.weight.detach()
        transform = weight.new_tensor(KERNEL_TRANSFORM, dtype=torch.float64)
        kernel = torch.einsum("ai,ocij,bj->abco", transform, weight.double(), transform)
        self.register_buffer("kernel", kernel.flatten(0, 1).to(weight.dtype).contiguous())
        bias = convolution.bias
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [B, C, H, W] -> [B, C', H, W] in channels_last memory."""
        return winograd_conv2d(x, self.kernel, self.bias)


def is_eligible(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `WinogradConv2d` can take a layer's place and is worth it."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.padding in ((1, 1), "same")
        and module.padding_mode == "zeros"
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= MIN_CHANNELS
    )


def use_winograd(model: nn.Module) -> int:
    """Replaces every eligible convolution of a model in place; returns how many there were.

    For inference only: the replaced layers' parameters are gone from the state_dict.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if is_eligible(child):
                setattr(parent, name, WinogradConv2d(child))
                replaced += 1
    return replaced


@torch.library.custom_op("detection::winograd_conv2d", mutates_args=(), device_types="cpu")
def winograd_conv2d(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """The convolution of `WinogradConv2d`, one operator to torch.compile.

    Args:
        x: float32 [B, C, H, W], best in channels_last memory.
        kernel: float32 [36, C, C'], transformed.
        bias: float32 [C'].

    Returns:
        float32 [B, C', H, W] in channels_last memory.
    """
    batch, channels, height, width = x.shape
    down, across = -(-height // STEP), -(-width // STEP)  # tiles
    padding = (0, 0, 1, across * STEP - width + 1, 1, down * STEP - height + 1)
    padded = F.pad(x.permute(0, 2, 3, 1), padding).contiguous()
    tiles = padded.unfold(1, TILE, STEP).unfold(2, TILE, STEP).permute(0, 4, 5, 1, 2, 3)
    output = x.new_empty(batch, down, STEP, across, STEP, kernel.shape[2])
    to_products, from_products = _tile_transforms(x)
    rows = max(1, min(down, BAND_TILES // across))
    # Memory of one band, used again by the next: it stays in the cache.
    tile, transformed = x.new_empty(2, TILE * TILE * rows * across * channels)
    products = x.new_empty(TILE * TILE * rows * across * kernel.shape[2])
    result = x.new_empty(STEP * STEP * rows * across * kernel.shape[2])
    for image in range(batch):
        for top in range(0, down, rows):
            source = tiles[image, :, :, top : top + rows]
            count = source.shape[2] * across
            inputs = _front(tile, *source.shape).copy_(source).view(TILE * TILE, -1)
            moved = torch.mm(to_products, inputs, out=_front(transformed, *inputs.shape))
            summed = _front(products, TILE * TILE, count, kernel.shape[2])
            torch.bmm(moved.view(TILE * TILE, count, channels), kernel, out=summed)
            outputs = _front(result, STEP * STEP, count * kernel.shape[2])
            torch.mm(from_products, summed.view(TILE * TILE, -1), out=outputs)
            band = output[image, top : top + rows].permute(1, 3, 0, 2, 4)
            torch.add(outputs.view(band.shape), bias, out=band)
    pixels = output.view(batch, down * STEP, across * STEP, -1)[:, :height, :width]
    return pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


@winograd_conv2d.register_fake
def _(x, kernel, bias):
    batch, _, height, width = x.shape
    pixels = x.new_empty(batch, height, width, kernel.shape[2])
    return pixels.permute(0, 3, 1, 2)


def _front(buffer: Tensor, *shape: int) -> Tensor:
    """The beginning of a flat buffer as a tensor of this shape."""
    return buffer[: math.prod(shape)].view(shape)


def _tile_transforms(like: Tensor) -> tuple[Tensor, Tensor]:
    """[36, 36] and [16, 36]: the one-dimensional transforms along both axes of a tile at once."""
    inputs, outputs = like.new_tensor(INPUT_TRANSFORM), like.new_tensor(OUTPUT_TRANSFORM)
    return torch.kron(inputs, inputs), torch.kron(outputs, outputs)
