"""What bounds the operators of a step: arithmetic, moving their data, or neither (roofline model).

An operator with F floating-point operations over B bytes has the intensity F / B. A machine that
makes P of them and moves W bytes a second needs at least F / P seconds for the arithmetic, and up
to B / W for the data: less where caches hold some of it. The intensity P / W, its balance, parts
operators that arithmetic holds up from those that memory may (Williams, Waterman & Patterson 2009,
https://doi.org/10.1145/1498765.1498785). P and W are measured here and now, W with tensors that no
cache holds; F and B follow from the shapes.
"""

import math
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from common import timing
from phase2_optimization.flops import fastest_s
from phase2_optimization.launches import OperatorMode, name_of_operator, tensors_in
from phase2_optimization.stages import StageClock

COUNTED = (
    "of the profiled step itself: floating-point operations of convolutions and matrix products, "
    "of a Winograd convolution those that it makes, transforms included; "
    "bytes of every tensor that an operator reads or writes, once each, from the shapes. Views and "
    "allocation move nothing; of a tensor that is indexed only what is picked counts. What an "
    "operator moves besides (scratch memory, another layout) is not seen, and caches may serve "
    "what is counted here as moved"
)
COPY_MIB, SMALLEST_COPY_MIB = 256, 16  # beyond the caches of most machines
MAJORITY = 0.5  # of the measured time: what takes more of it is called the bound
SLACK = 1.1  # times the measured time; an estimate beyond it is wrong, whichever part of it
LISTED = 8  # operators in the report

NO_TRAFFIC = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "resize_", "_unsafe_view")
)
OVERWRITING = frozenset({"aten::copy_", "aten::fill_", "aten::zero_"})  # without a look at it
PICKING = frozenset({"aten::index", "aten::index_select", "aten::gather"})
PLACING = frozenset(
    f"aten::{name}" for name in ("index_put_", "index_add_", "index_copy_", "scatter_add_")
)


class Call(NamedTuple):
    """One call of an operator."""

    operator: str
    flops: int
    moved_bytes: int


class OperatorTraffic(OperatorMode):
    """Notes arithmetic and traffic of every operator on a device inside a `with` block.

    Args:
        clock: tells the stage an operator belongs to.
        stages: those to look at; None for all.

    Attributes:
        calls: in the order in which they were made.
    """

    def __init__(
        self, device: torch.device, clock: StageClock, stages: Container[str | None] | None
    ) -> None:
        super().__init__(device)
        self.calls: list[Call] = []
        self._clock, self._stages = clock, stages

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if self._stages is not None and self._clock.stage_now not in self._stages:
            return
        moved = moved_bytes(func, args, kwargs, result)
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        if moved or flops:
            self.calls.append(Call(name_of_operator(func), int(flops), moved))


def moved_bytes(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes an operator must read and write once, see COUNTED."""
    name = name_of_operator(func)
    if func.is_view or name in NO_TRAFFIC:
        return 0
    read: list[int] = []
    written: dict[int, int] = {}
    for argument, value in _arguments(func, args, kwargs):
        sizes = {id(tensor): held_bytes(tensor) for tensor in tensors_in(value)}
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written:
            written |= sizes
        if not (is_written and name in OVERWRITING):
            read += sizes.values()
    written |= {id(tensor): held_bytes(tensor) for tensor in tensors_in(result)}
    if name in PICKING:
        read[0] = min(read[0], sum(written.values()))
    if name in PLACING:  # the places that are written are read before
        placed = min(read[0], read[-1])
        return placed + sum(read[1:]) + placed
    return sum(read) + sum(written.values())


def held_bytes(tensor: Tensor) -> int:
    """Bytes of the elements of a tensor that differ in place: an expanded side is there once."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(side for side, stride in sides if stride or not side)


def _arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The arguments of the operator's schema with what they were given."""
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            yield argument, args[place]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


@torch.no_grad()
def measure_copy(device: torch.device, mib: int = COPY_MIB) -> float:
    """10**9 bytes/s, read and written, of the fastest of some copies of a large tensor.

    Args:
        mib: of the tensor; where two of them do not fit, smaller ones are taken.
    """
    while (seconds := _copy_s(device, mib)) is None:
        mib //= 4
    return 2 * mib * timing.MIB / seconds / 1e9


def _copy_s(device: torch.device, mib: int) -> float | None:
    """Seconds of the fastest copy; None where it does not fit and a smaller one may.

    A function of its own, so that nothing of a copy that failed is held during the next.
    """
    try:
        source = torch.zeros(mib * timing.MIB, dtype=torch.uint8, device=device)
        return fastest_s(partial(torch.empty_like(source).copy_, source), device)
    except RuntimeError as error:
        if mib > SMALLEST_COPY_MIB and timing.is_out_of_memory(error):
            return None
        raise


# --- the model ----------------------------------------------------------------------------------


def roofline(
    calls: Sequence[Call],
    peak_gflop_s: float,
    copy_gb_s: float,
    measured_ms: float,
    *,
    is_work: bool = True,
) -> dict[str, Any]:
    """The time operators need on a machine by its rates, against the time they took.

    Args:
        calls: what was done in the measured time.
        peak_gflop_s, copy_gb_s: measured on the machine, 10**9 FLOP/s and bytes/s.
        is_work: whether the device worked all of the measured time; else no bound is named.

    Returns:
        The three; `balance_flop_per_byte` of the machine; `gflop` and `gb` (10**9) of all calls and
        their `intensity_flop_per_byte`; `arithmetic_ms`, the least time of the operators above the
        balance, `memory_ms`, up to which those below need (caches are faster than the copy), and
        `rest_ms`, what is left of `measured_ms` (below 0: the estimate is too high); `bound`, see
        `what_bounds`; and the `operators` with most of this time, each with its `roof_ms`.
    """
    of_side: dict[str, float] = defaultdict(float)
    of_operator: dict[str, float] = defaultdict(float)
    by_operator: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        side, ms = _roof(call, peak_gflop_s, copy_gb_s)
        of_side[side] += ms
        of_operator[call.operator] += ms
        by_operator[call.operator].append(call)
    arithmetic_ms, memory_ms = of_side["arithmetic"], of_side["memory"]
    return {
        "peak_gflop_s": peak_gflop_s,
        "copy_gb_s": copy_gb_s,
        "balance_flop_per_byte": peak_gflop_s / copy_gb_s,
        **_totals(calls),
        "measured_ms": measured_ms,
        "arithmetic_ms": arithmetic_ms,
        "memory_ms": memory_ms,
        "rest_ms": measured_ms - arithmetic_ms - memory_ms,
        "bound": what_bounds(arithmetic_ms, memory_ms, measured_ms) if is_work else "unknown",
        "operators": [
            {
                "name": name,
                "calls": len(by_operator[name]),
                **_totals(by_operator[name]),
                "roof_ms": ms,
            }
            for name, ms in sorted(of_operator.items(), key=lambda item: -item[1])[:LISTED]
        ],
    }


def what_bounds(arithmetic_ms: float, memory_ms: float, measured_ms: float) -> str:
    """Which takes more than half of the measured time.

    Returns:
        "arithmetic": the operators above the balance cannot be faster on this machine than that;
        "memory": those below take up to that, if no cache serves them; "neither": most of the time
        is needed for neither; "both": only together they take more than half; "unknown": the
        estimate exceeds what was measured, so that it is wrong: caches served what was taken for
        moved, or the rate of arithmetic was measured at a slower moment.
    """
    arithmetic, memory = arithmetic_ms / measured_ms, memory_ms / measured_ms
    if arithmetic + memory > SLACK:  # as of arithmetic alone
        return "unknown"
    if arithmetic > MAJORITY:
        return "arithmetic"
    if memory > MAJORITY:
        return "memory"
    return "both" if arithmetic + memory > MAJORITY else "neither"


def _roof(call: Call, peak_gflop_s: float, copy_gb_s: float) -> tuple[str, float]:
    """The side of the balance a call is on, and its milliseconds at the rate of that side."""
    arithmetic_ms = call.flops / peak_gflop_s / 1e6
    memory_ms = call.moved_bytes / copy_gb_s / 1e6
    if arithmetic_ms > memory_ms:
        return "arithmetic", arithmetic_ms
    return "memory", memory_ms


def _totals(calls: Sequence[Call]) -> dict[str, float | None]:
    flops = sum(call.flops for call in calls)
    moved = sum(call.moved_bytes for call in calls)
    return {
        "gflop": flops / 1e9,
        "gb": moved / 1e9,
        "intensity_flop_per_byte": flops / moved if moved else None,
    }
