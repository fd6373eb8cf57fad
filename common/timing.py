"""Timing that can be believed: interleaved arms, percentiles, ratios with an interval, peak memory.

Two arms timed one after the other mostly measure how the machine changed in between (clock speed,
neighbours, temperature). Here every round times each arm once, in a random order, so a drift hits
all arms alike; common/comparison.py tells from the rounds which arm is faster. A single slow call
moves a mean but hardly a median, so medians stand for the arms and high percentiles for bad days.
A time that no call can have taken, from a clock that went back or a machine that slept, takes its
whole round along: what remains at one index still comes from one round.
"""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from common.cli import log
from common.comparison import MIN_ROUNDS
from common.errors import is_out_of_memory as is_out_of_memory  # a result of measuring, too

if TYPE_CHECKING:
    import torch

MIN_WARMUP, MAX_WARMUP = 2, 20  # rounds
WARM_GAIN = 0.05  # an arm whose calls still get this much faster is not warm
SLEPT_MS, SLEPT_FACTOR = 60e3, 10.0  # a call over both this and so many usual ones: suspended
PROC_MEMINFO = Path("/proc/meminfo")
PROC_STATUS = Path("/proc/self/status")
PROC_CLEAR_REFS = Path("/proc/self/clear_refs")
MIB = 2**20


def synchronize(device: "torch.device") -> None:
    """Waits until the device has done all work given to it; CPU work is done already."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    elif device.type == "mps":
        import torch

        torch.mps.synchronize()


def warm_up(
    arms: Mapping[str, Callable[[], object]], device: "torch.device", budget_s: float = 30.0
) -> int:
    """Runs all arms until none of them gets faster any more; returns how many rounds it took.

    First calls allocate memory, choose kernels, compile and fill caches. An arm is warm when its
    last call was not WARM_GAIN faster than the best one before, which takes MIN_WARMUP rounds to
    tell. No further round is begun after MAX_WARMUP of them or after `budget_s`.
    """
    best = dict.fromkeys(arms, float("inf"))
    started = perf_counter()
    for made in range(1, MAX_WARMUP + 1):
        is_warm = made >= MIN_WARMUP
        for name, call in arms.items():
            elapsed_ms = _timed_ms(call, device)
            is_warm &= elapsed_ms > best[name] * (1 - WARM_GAIN)
            best[name] = min(best[name], elapsed_ms)
        if is_warm or perf_counter() - started > budget_s:
            break
    return made


def measure_interleaved(
    arms: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int | None = None,
    device: "torch.device",
    seed: int = 0,
    budget_s: float | None = None,
) -> dict[str, np.ndarray]:
    """Times every arm once per round, in a seeded random order, on the wall clock.

    The device is synchronised before the clock starts and before it stops, so a call is charged
    for all the work it queued. Values at the same index come from the same round. A round in which
    the clock went back or the machine slept is dropped for all arms, with a warning.

    Args:
        arms: name -> call to time; its result is dropped.
        rounds: rounds to time, at least 1.
        warmup: untimed rounds before them; None for as many as `warm_up` takes.
        device: the device the arms work on.
        seed: of the order of the arms.
        budget_s: stop after this many seconds of kept rounds, but never before MIN_ROUNDS of
            them (or `rounds` made), since fewer cannot carry a 95% interval.

    Returns:
        name -> milliseconds per call, shape (rounds kept,).
    """
    names = list(arms)
    order = np.random.default_rng(seed)
    if warmup is None:
        warm_up(arms, device)
    for _ in range(warmup or 0):
        for name in names:
            arms[name]()
    made = np.empty((0, len(names)))
    for _ in range(rounds):
        if budget_s is not None:
            kept = made[_believable(made)]
            if len(kept) >= MIN_ROUNDS and kept.sum() >= budget_s * 1e3:
                break
        row = np.empty(len(names))
        for index in order.permutation(len(names)):
            row[index] = _timed_ms(arms[names[index]], device)
        made = np.vstack((made, row))
    kept = made[_believable(made)]
    if dropped := len(made) - len(kept):
        log.warning(
            "warning: %d of %d rounds left out: the clock went back or the machine slept",
            *(dropped, len(made)),
        )
    return dict(zip(names, kept.T, strict=True))


def _believable(rounds_ms: np.ndarray) -> np.ndarray:
    """bool [rounds] of milliseconds [rounds, arms]: no call of the round took a time it cannot have
    taken. Any hiccup can be; nothing at all, or over a minute and ten times the usual, cannot."""
    forward = np.all(rounds_ms > 0, axis=1)
    if not forward.any():
        return forward
    usual = np.quantile(rounds_ms[forward], 0.5, axis=0, method="lower")  # one of the times
    longest = np.maximum(SLEPT_FACTOR * usual, SLEPT_MS)
    return forward & np.all(rounds_ms <= longest, axis=1)


def _timed_ms(call: Callable[[], object], device: "torch.device") -> float:
    synchronize(device)
    started = perf_counter()
    call()
    synchronize(device)
    return (perf_counter() - started) * 1e3


def summarise(ms: np.ndarray | Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 (linear between order statistics) and mean of milliseconds, shape (n,)."""
    p50, p90, p99 = np.percentile(ms, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "mean": float(np.mean(ms))}


def release_free_memory(device: "torch.device") -> None:
    """Gives memory back that is free but still held, so that a peak counts what comes next only.

    Python's and PyTorch's caches are emptied; on the CPU the C library is asked to return its
    free pages (glibc only), which otherwise stay in the resident set.
    """
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


class PeakMemory:
    """Context manager: `mib` is the highest memory in use inside the `with` block, in MiB.

    CUDA: the peak of PyTorch's allocator on that device (no driver or context overhead).
    Elsewhere: the peak resident set of the whole process, libraries included. Linux can reset
    that peak; where it cannot be reset it is the peak since the process began, and `kind` says so.
    """

    def __init__(self, device: "torch.device"):
        self._device = device
        self.mib: float | None = None  # stays None only where the system tells nothing (Windows)
        self.kind = ""

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            import torch

            synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self.kind = "peak of the CUDA allocator"
        elif _reset_resident_peak():
            self.kind = "peak resident set of the process"
        else:
            self.kind = "peak resident set since the process began"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            import torch

            synchronize(self._device)
            self.mib = torch.cuda.max_memory_allocated(self._device) / MIB
        else:
            self.mib = resident_peak_mib()


def _reset_resident_peak() -> bool:
    """Sets the kernel's high-water mark of this process to its present resident set."""
    try:
        PROC_CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:  # not Linux, or /proc is read-only
        return False
    return True


def resident_peak_mib() -> float | None:
    """The process's peak resident set in MiB, None where the system does not tell it."""
    peak = proc_status_mib("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024  # bytes there, KiB here


def resident_mib() -> float | None:
    """The process's present resident set in MiB, None where /proc does not tell it."""
    return proc_status_mib("VmRSS")


def available_mib() -> float | None:
    """What the system could still give to processes, in MiB; None without /proc."""
    if PROC_MEMINFO.exists():
        for line in PROC_MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return None


def proc_status_mib(field: str) -> float | None:
    """A size from /proc/self/status ("VmRSS", "VmHWM", "VmData") in MiB; None without /proc."""
    if PROC_STATUS.exists():
        for line in PROC_STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return None
