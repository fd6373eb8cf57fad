"""The best batch size of a detector: doubling until it no longer pays, then bisection.

Memory may run out on the way; that ends the doubling and is no error.
"""

from collections.abc import Callable
from dataclasses import dataclass

MAX_BATCH_SIZE = 1024
MIN_GAIN = 1.02  # a doubling that brings less than 2% more images per second ends the search


@dataclass(frozen=True)
class Measured:
    """What was measured at a batch size: images per second, and milliseconds that 90% of the calls
    stay below."""

    throughput_img_s: float
    p90_ms: float


Measure = Callable[[int], Measured | None]
"""Measures a batch size once; None when it does not fit into memory."""


def search(
    measure: Measure, latency_budget_ms: float | None = None, max_batch_size: int = MAX_BATCH_SIZE
) -> dict[int, Measured | None]:
    """Measures batch sizes from 1 until the best is surrounded.

    Without a budget the doubling ends when the throughput stops rising or memory runs out; then
    the sizes halfway to the neighbours of the best one are tried. With a budget it ends when p90
    leaves it, too; then the largest size within it is found by bisection.

    Returns:
        What was measured, by batch size; None where memory ran out.
    """
    measured: dict[int, Measured | None] = {}

    def fits(size: int) -> bool:
        if size not in measured:
            measured[size] = measure(size)
        found = measured[size]
        within = latency_budget_ms is None or (
            found is not None and found.p90_ms <= latency_budget_ms
        )
        return found is not None and within

    size, best_img_s = 1, 0.0
    while size <= max_batch_size and fits(size):
        now_img_s = measured[size].throughput_img_s  # type: ignore[union-attr]
        if now_img_s < best_img_s * MIN_GAIN:
            break
        best_img_s = max(best_img_s, now_img_s)
        size *= 2
    if size <= max_batch_size and not fits(size):
        _bisect(size // 2, size, fits)
    _surround(best(measured, latency_budget_ms), measured, fits)
    return dict(sorted(measured.items()))


def _bisect(fitting: int, too_large: int, fits: Callable[[int], bool]) -> None:
    """Closes in on the largest size that fits, to an eighth of its value."""
    while fitting and too_large - fitting > max(1, fitting // 8):
        middle = (fitting + too_large) // 2
        if fits(middle):
            fitting = middle
        else:
            too_large = middle


def _surround(
    size: int | None, measured: dict[int, Measured | None], fits: Callable[[int], bool]
) -> None:
    """Measures the sizes halfway between the best one and its neighbours."""
    if size is None:
        return
    sizes = sorted(measured)
    place = sizes.index(size)
    for neighbour in sizes[max(0, place - 1) : place] + sizes[place + 1 : place + 2]:
        middle = (size + neighbour) // 2
        if middle not in measured and middle > 0:
            fits(middle)


def best(
    measured: dict[int, Measured | None], latency_budget_ms: float | None = None
) -> int | None:
    """The size with the highest throughput, within the budget if there is one; None without any."""
    sizes = [
        size
        for size, found in measured.items()
        if found and (latency_budget_ms is None or found.p90_ms <= latency_budget_ms)
    ]
    return max(sizes, key=lambda s: measured[s].throughput_img_s, default=None)  # type: ignore[union-attr]
