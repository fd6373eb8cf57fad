"""When is one arm faster than another? Statistics that hold on a noisy machine.

Four things make equal programs look different. Single calls scatter, so a median is taken, and an
interval says how far it may be off. The machine drifts, so it is the median of the ratios within
each round: what slows a whole round cancels. Slow spells last longer than a round, so the interval
comes from resampling runs of consecutive rounds, not single ones (moving blocks, Künsch 1989). And
arms can be lucky for a whole run (where their memory lies), so the baseline is measured twice: how
far these two equal arms seem to be apart is the noise, and what does not reach beyond it is not
called a difference.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
MIN_ROUNDS = 7  # fewer rounds hold too few runs to resample
TOO_FEW = "too few rounds to tell"
NO_NOISE = "noise unknown"  # the second self is missing: what equal arms differ by is not known
MIN_EFFECT = 0.02  # smaller differences are never called: luck with the memory reaches as far


@dataclass(frozen=True)
class Comparison:
    """How many times as fast as a baseline something is.

    Attributes:
        ratio: median over the rounds of baseline / candidate; above 1 the candidate is faster.
        ci95: 95% interval of the ratio; None for fewer than MIN_ROUNDS rounds.
        noise: the same two for the baseline against its second self; None where there is none, or
            no interval.
        verdict: "faster", "slower", "within noise" or TOO_FEW.
    """

    ratio: float
    ci95: tuple[float, float] | None
    noise: dict[str, Any] | None
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_json(self) -> dict[str, Any]:
        """The ratio and its interval, as reports hold them."""
        return {"ratio": self.ratio, "ci95": self.ci95 and list(self.ci95)}

    @property
    def beyond_noise(self) -> str:
        """The verdict for arms that need a noise figure: NO_NOISE where there is none."""
        return self.verdict if self.noise or self.verdict == TOO_FEW else NO_NOISE


def compare(
    baseline_ms: np.ndarray,
    candidate_ms: np.ndarray,
    again_ms: np.ndarray | None = None,
    seed: int = 0,
    noise: dict[str, Any] | None = None,
) -> Comparison:
    """Compares arms that were timed in the same rounds.

    Args:
        baseline_ms, candidate_ms: milliseconds in order of the rounds, shape (n,).
        again_ms: of the baseline as an arm of its own, shape (n,).
        seed: of the resampling.
        noise: of another baseline in the same rounds, for arms without a second self. Without
            either there is no noise figure, and the verdict rests on the interval alone.
    """
    ratio, interval = ratio_interval(baseline_ms, candidate_ms, seed)
    if again_ms is not None:
        noise = noise_between(baseline_ms, again_ms, seed)
    margin = MIN_EFFECT
    if noise is not None:
        margin = max(margin, *(abs(math.log(bound)) for bound in noise["ci95"]))
    if interval is None or len(baseline_ms) < MIN_ROUNDS:
        verdict = TOO_FEW
    elif math.log(interval[0]) > margin:
        verdict = "faster"
    elif math.log(interval[1]) < -margin:
        verdict = "slower"
    else:
        verdict = "within noise"
    return Comparison(ratio, interval, noise, verdict)


def noise_between(
    first_ms: np.ndarray, again_ms: np.ndarray, seed: int = 0
) -> dict[str, Any] | None:
    """What two equal arms differ by in these rounds, as `compare` takes it; None without an
    interval."""
    ratio, interval = ratio_interval(first_ms, again_ms, seed)
    return interval and {"ratio": ratio, "ci95": interval}


def ratio_interval(
    baseline_ms: np.ndarray, candidate_ms: np.ndarray, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """The median ratio and its 95% interval, see `median_interval`.

    Raises:
        ValueError: there is no round, or a time is not a finite number above 0.
    """
    baseline, candidate = np.asarray(baseline_ms, float), np.asarray(candidate_ms, float)
    if not len(baseline) or baseline.shape != candidate.shape:
        raise ValueError("compared arms need the same rounds, at least one")
    if not (np.isfinite(baseline).all() and np.isfinite(candidate).all()):
        raise ValueError("times must be finite numbers")
    if min(baseline.min(), candidate.min()) <= 0:
        raise ValueError("times must be above 0")
    return median_interval(baseline / candidate, seed)


def interval_text(ratio: float, ci95: Sequence[float] | None, unit: str = "") -> str:
    """1.30 [1.22, 1.37] as tables show it, or 1.30x [1.22, 1.37]; without an interval 1.30 [–]."""
    bounds = "–" if ci95 is None else ", ".join(f"{bound:.2f}" for bound in ci95)
    return f"{ratio:.2f}{unit} [{bounds}]"


def median_interval(values: np.ndarray, seed: int = 0) -> tuple[float, tuple[float, float] | None]:
    """The median of values in order of the rounds, shape (n,), and its 95% interval by the
    moving-block bootstrap; None for fewer than MIN_ROUNDS values, which cover less than they claim.

    Few blocks scatter less than the population does, so the percentiles are widened as Hesterberg
    2015 (The American Statistician 69(4), section 4) does for small samples.
    """
    count = len(values)
    if count < MIN_ROUNDS:
        return float(np.median(values)), None
    length = block_length(count)
    resampled = np.sort(values[_rounds_resampled(count, length, seed)], axis=1)  # 4x np.median
    medians = resampled[:, (count - 1) // 2 : count // 2 + 1].mean(axis=1)
    tail = _widened_tail(count / length)
    low, high = np.percentile(medians, [100 * tail, 100 * (1 - tail)])
    return float(np.median(values)), (float(low), float(high))


def block_length(rounds: int) -> int:
    """Rounds of one block: the cube root, which balances bias and spread (Hall et al. 1995)."""
    return math.ceil(round(rounds ** (1 / 3), 9))


@functools.lru_cache(maxsize=4)
def _rounds_resampled(count: int, length: int, seed: int) -> np.ndarray:
    """int [RESAMPLES, count]: rounds in blocks of `length` that start anywhere and wrap around."""
    random = np.random.default_rng(seed)
    starts = random.integers(count, size=(RESAMPLES, -(-count // length)))
    rounds = (starts[:, :, None] + np.arange(length)) % count
    return rounds.reshape(RESAMPLES, -1)[:, :count].astype(np.int32)


def _widened_tail(blocks: float) -> float:
    """The share to leave out at each end so that 95% remain covered with this many blocks."""
    from scipy import stats  # half a second to import: not for a --help

    reach = stats.t.ppf(0.975, blocks - 1) * math.sqrt(blocks / (blocks - 1))
    return float(stats.norm.cdf(-reach))
