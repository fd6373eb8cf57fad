"""Arithmetic: what a step holds, and the most this very machine was seen to do in a second."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from common import timing
from common.winograd import STEP

COUNTED = (
    "convolutions and matrix products of one of torchvision's own steps, forward and backward, a "
    "multiplication and an addition being two; not element-wise work, normalisation, RoIAlign or "
    "NMS. A convolution counts the same however it is computed, so one that saves arithmetic "
    "can exceed the peak"
)
# Small to large, as long as a call takes less than LONG_S: the fastest differs between machines.
MATMUL_SIDES = (256, 512, 1024, 2048, 4096, 8192)
CONVOLUTIONS = (  # (images, channels, side of the map), 3x3
    *((1, 64, 72), (1, 256, 18), (4, 64, 72), (4, 256, 18)),
    *((16, 64, 200), (16, 256, 100), (32, 512, 50)),
)
LONG_S = 0.05
REPEATS = 5
CALLS = {"cpu": 1, "cuda": 10, "mps": 10}  # timed at once: a GPU is given its work ahead

Work = tuple[int, Callable[[], Callable[[], object]]]
"""Floating-point operations of a call, and what makes its inputs and returns the call."""


def count_flops(work: Callable[[], object]) -> dict[str, int]:
    """Floating-point operations by kind of operation, of COUNTED, over one call of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    counts = counter.get_flop_counts().get("Global", {})
    return {str(operation).removeprefix("aten."): flops for operation, flops in counts.items()}


@register_flop_formula(torch.ops.detection.winograd_conv2d)
def winograd_flops(x: Sequence[int], kernel: Sequence[int], bias: Sequence[int], **_: Any) -> int:
    """Of the matrix products that the operator of `common.winograd` makes: both transforms of the
    tiles and, at every place of a tile, the channels. The kernel was transformed before.

    Args:
        x, kernel, bias: shapes, [B, C, H, W], [36, C, C'] and [C'].
    """
    batch, channels, height, width = x
    places, channels_out = kernel[0], kernel[2]
    tiles = batch * -(-height // STEP) * -(-width // STEP)
    to_products = places * places * channels
    from_products = STEP * STEP * places * channels_out
    return 2 * tiles * (to_products + places * channels * channels_out + from_products)


@torch.no_grad()
def measure_peak(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The highest rates of matrix products and 3x3 convolutions measured here and now.

    Returns:
        `gflop_s`, the higher of `matmul_gflop_s` and `convolution_gflop_s`; 10**9 FLOP/s each.
    """
    products = _highest_rate(_matmuls(device, dtype), device)
    convolutions = _highest_rate(_convolutions(device, dtype), device)
    return {
        "gflop_s": max(products, convolutions),
        "matmul_gflop_s": products,
        "convolution_gflop_s": convolutions,
    }


def _matmuls(device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    def prepare(side: int) -> Callable[[], object]:
        factors = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        return partial(torch.matmul, *factors)

    for side in MATMUL_SIDES:
        yield 2 * side**3, partial(prepare, side)


def _convolutions(device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    def prepare(images: int, channels: int, side: int) -> Callable[[], object]:
        maps = torch.randn(images, channels, side, side, device=device, dtype=dtype)
        weights = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        maps, weights = (t.to(memory_format=torch.channels_last) for t in (maps, weights))
        return partial(F.conv2d, maps, weights, padding=1)

    for images, channels, side in CONVOLUTIONS:
        flops = 2 * images * channels**2 * 9 * side**2
        yield flops, partial(prepare, images, channels, side)


def _highest_rate(work: Iterable[Work], device: torch.device) -> float:
    """10**9 FLOP/s of the fastest repetition of any call: all that disturbs makes slower."""
    highest = 0.0
    for flops, prepare in work:
        if flops / 1e9 > highest * LONG_S > 0:
            break
        try:
            seconds = fastest_s(prepare(), device)
        except RuntimeError as error:
            if highest and timing.is_out_of_memory(error):
                break
            raise
        highest = max(highest, flops / 1e9 / seconds)
    return highest


def fastest_s(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call in the fastest of some repetitions."""
    call()  # chooses a kernel
    calls, fastest = CALLS[device.type], math.inf
    for _ in range(REPEATS):
        timing.synchronize(device)
        started = perf_counter()
        for _ in range(calls):
            call()
        timing.synchronize(device)
        fastest = min(fastest, (perf_counter() - started) / calls)
    return fastest
