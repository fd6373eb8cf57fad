"""Is a quantity of one run another one in the second run? Where that is known, and where not.

A difference is outside the noise when the 95% intervals of both runs lie apart, further than two
equal arms did within either run (`noise`) and than common.comparison.MIN_EFFECT. That asks for more
than a test of the difference would, which needs both runs in the same rounds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.comparison import MIN_EFFECT, MIN_ROUNDS, median_interval
from common.reporting.blocks import NOTHING, dig, finite, number

MIN_SEEDS = 3  # fewer have no range worth the name
SHARE_DIGITS = 3  # what is told so exactly is a share of 1, like mAP, and changes by points of 1
UNKNOWN, WITHIN, SAME = "noise not known", "within the noise", "the same"
OUTSIDE, BETTER, WORSE = "OUTSIDE THE NOISE", "B is better", "B is worse"


@dataclass(frozen=True)
class Value:
    """What one run has measured: a value, and its 95% interval or range over seeds if there is
    one; `noise` is the largest factor that two equal arms of that run differed by."""

    value: float | None
    low: float | None = None
    high: float | None = None
    noise: float = 1.0

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class Quantity:
    """The same quantity of both runs.

    Attributes:
        better: "higher" or "lower".
        is_exact: counted, like the size of a file: any difference is one.
    """

    name: str
    first: Value
    second: Value
    better: str = "higher"
    digits: int = 3
    is_exact: bool = False

    @property
    def is_measured(self) -> bool:
        return self.first.value is not None or self.second.value is not None

    def cells(self) -> tuple[str, ...]:
        """Name, both values, the change, and what it means."""
        shown = (self._shown(self.first), self._shown(self.second))
        return (self.name, *shown, self._change(), self.verdict())

    def _shown(self, one: Value) -> str:
        words = number(one.value, self.digits)
        if not one.has_interval:
            return words
        return f"{words} ({number(one.low, self.digits)} to {number(one.high, self.digits)})"

    def _change(self) -> str:
        first, second = self.first.value, self.second.value
        if first is None or second is None:
            return NOTHING
        if not first or self.digits >= SHARE_DIGITS:
            return number(second - first, self.digits, sign=True)
        return f"{100 * (second / first - 1):+.1f}%"

    def shade(self) -> float:
        """Of the table's cell: above 0 if B is better outside the noise, below 0 if it is worse."""
        if not self.verdict().startswith(OUTSIDE):
            return 0.0
        return 0.6 if self.verdict().endswith(BETTER) else -0.6

    def verdict(self) -> str:
        """What can be said of the difference, in words."""
        first, second = self.first, self.second
        if first.value is None or second.value is None:
            return NOTHING
        if self.is_exact or first == second:
            return self._towards("") if first.value != second.value else SAME
        if not first.has_interval or not second.has_interval:
            return UNKNOWN
        return self._towards(f"{OUTSIDE}: ") if lie_apart(first, second) else WITHIN

    def _towards(self, prefix: str) -> str:
        rises = (self.second.value or 0) > (self.first.value or 0)
        return prefix + (BETTER if rises == (self.better == "higher") else WORSE)


def lie_apart(first: Value, second: Value) -> bool:
    """Whether the intervals lie apart by more than the noise."""
    lower, upper = sorted((first, second), key=lambda one: one.value or 0.0)
    if lower.high is None or upper.low is None or lower.high >= upper.low:
        return False
    margin = max(math.exp(MIN_EFFECT), first.noise, second.noise)
    return lower.high <= 0 or upper.low / lower.high > margin


def single(report: Any, *keys: str | int) -> Value:
    """A value without an interval."""
    return Value(finite(dig(report, *keys)))


def of_ratio(ratio: Any, noise: Any = None) -> Value:
    """Of {"ratio": …, "ci95": [low, high]} and the noise of its run, of the same form."""
    low, high = (finite(dig(ratio, "ci95", bound)) for bound in (0, 1))
    return Value(finite(dig(ratio, "ratio")), low, high, _largest_factor(noise))


def _largest_factor(noise: Any) -> float:
    bounds = [finite(dig(noise, "ci95", bound)) for bound in (0, 1)]
    factors = [max(bound, 1 / bound) for bound in bounds if bound is not None and bound > 0]
    return max([1.0, *factors])


def of_rounds(values: Any, noise: Any = None) -> Value | None:
    """The median of values in order of the rounds; None where they are too few for an interval."""
    if not isinstance(values, list) or len(values) < MIN_ROUNDS:
        return None
    checked = [value for each in values if (value := finite(each)) is not None]
    if len(checked) < len(values):
        return None
    median, interval = median_interval(np.array(checked))
    if interval is None:
        return None
    return Value(median, *interval, _largest_factor(noise))


def of_seeds(told: Any) -> Value:
    """Mean and range over seeds, of {"mean": …, "min": …, "max": …, "values": […]}."""
    values = dig(told, "values")
    enough = isinstance(values, list) and len(values) >= MIN_SEEDS
    low, high = (finite(dig(told, key)) if enough else None for key in ("min", "max"))
    return Value(finite(dig(told, "mean")), low, high)


def by_name(rows: Any, key: str) -> Mapping[str, Any]:
    """The objects of a list by one of their values; of equal ones the first."""
    found: dict[str, Any] = {}
    for row in rows if isinstance(rows, list) else ():
        if dig(row, key) is not None:
            found.setdefault(str(dig(row, key)), row)
    return found
