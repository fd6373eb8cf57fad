"""Timing that can be believed: interleaved arms, percentiles, ratios with an interval, peak memory.

Two arms timed one after the other mostly measure how the machine changed in between (clock speed,
neighbours, temperature). Here every round times each arm once, in a random order, so a drift hits
all arms alike, and a speed-up is a ratio of medians with a bootstrap interval.
"""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

BOOTSTRAP_RESAMPLES = 2000
MIN_ROUNDS = 7  # the range of n values misses the true median once in 2**(n-1) runs: 1.6% at 7
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


def measure_interleaved(
    arms: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    device: "torch.device",
    seed: int = 0,
    budget_s: float | None = None,
) -> dict[str, np.ndarray]:
    """Times every arm once per round, in a seeded random order, on the wall clock.

    The device is synchronised before the clock starts and before it stops, so a call is charged
    for all the work it queued. Values at the same index come from the same round.

    Args:
        arms: name -> call to time; its result is dropped.
        rounds: rounds to time, at least 1.
        warmup: untimed rounds before them (allocator, caches, kernel selection).
        device: the device the arms work on.
        seed: of the order of the arms.
        budget_s: stop after this many seconds of timed rounds, but never before MIN_ROUNDS of
            them (or `rounds` when that is fewer), since fewer cannot carry a 95% interval.

    Returns:
        name -> milliseconds per call, shape (rounds made,).
    """
    names = list(arms)
    order = np.random.default_rng(seed)
    for _ in range(warmup):
        for name in names:
            arms[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    spent_s = 0.0
    for made in range(rounds):
        if budget_s is not None and spent_s >= budget_s and made >= MIN_ROUNDS:
            break
        for index in order.permutation(len(names)):
            name = names[index]
            synchronize(device)
            started = perf_counter()
            arms[name]()
            synchronize(device)
            elapsed_s = perf_counter() - started
            times[name].append(elapsed_s * 1e3)
            spent_s += elapsed_s
    return {name: np.asarray(values) for name, values in times.items()}


def summarise(ms: np.ndarray | Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 (linear between order statistics) and mean of milliseconds, shape (n,)."""
    p50, p90, p99 = np.percentile(ms, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "mean": float(np.mean(ms))}


def ratio_with_ci(
    baseline_ms: np.ndarray, candidate_ms: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """How many times as fast as the baseline the candidate is: median(baseline)/median(candidate).

    The 95% interval is the percentile bootstrap (Efron & Tibshirani 1993, ch. 13). Arms of equal
    length come from the same rounds, so whole rounds are resampled: what slows both arms of a
    round cancels. Arms of unequal length are resampled independently.

    Args:
        baseline_ms, candidate_ms: milliseconds, shapes (n,) and (m,), both at least one value.
        seed: of the resampling.

    Returns:
        {"ratio": float, "ci95": [low, high]}; a ratio above 1 means the candidate is faster.
    """
    baseline, candidate = np.asarray(baseline_ms, float), np.asarray(candidate_ms, float)
    if not len(baseline) or not len(candidate):
        raise ValueError("ratio_with_ci needs at least one time per arm")
    random = np.random.default_rng(seed)
    picks = random.integers(len(baseline), size=(BOOTSTRAP_RESAMPLES, len(baseline)))
    paired = len(baseline) == len(candidate)
    candidate_picks = (
        picks
        if paired
        else random.integers(len(candidate), size=(BOOTSTRAP_RESAMPLES, len(candidate)))
    )
    resampled = np.median(baseline[picks], axis=1) / np.median(candidate[candidate_picks], axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    ratio = float(np.median(baseline) / np.median(candidate))
    return {"ratio": ratio, "ci95": [float(low), float(high)]}


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device or the host has no memory left. cuDNN, cuBLAS,
    MPS and the CPU's allocator say so in the text of an ordinary RuntimeError."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    signs = ("ALLOC_FAILED", "out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


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
