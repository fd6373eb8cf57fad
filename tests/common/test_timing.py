"""Hand-computed statistics, simulated A/A and A/B comparisons, and a clock of plain numbers."""

import numpy as np
import pytest
import torch

from common import timing
from common.timing import MIN_ROUNDS, PeakMemory, measure_interleaved, ratio_with_ci, summarise

CPU = torch.device("cpu")


class FakeClock:
    """A clock that moves only when an arm says how long it took."""

    def __init__(self, monkeypatch):
        self.now_s = 100.0
        self.calls: list[str] = []
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now_s)

    def arm(self, name: str, seconds: float):
        def call():
            self.calls.append(name)
            self.now_s += seconds

        return call


@pytest.fixture
def clock(monkeypatch):
    return FakeClock(monkeypatch)


def test_summarise_matches_hand_computed_percentiles():
    # 1..11: rank of the p-th percentile is p/100 * 10, so p50 = 6, p90 = 10, p99 = 10.9
    summary = summarise(np.arange(1, 12))
    assert summary == pytest.approx({"p50": 6.0, "p90": 10.0, "p99": 10.9, "mean": 6.0})


def test_summarise_of_one_value_is_that_value():
    assert summarise(np.array([4.0])) == {"p50": 4.0, "p90": 4.0, "p99": 4.0, "mean": 4.0}


def test_each_arm_gets_its_own_time_once_a_round(clock):
    arms = {"a": clock.arm("a", 0.002), "b": clock.arm("b", 0.005)}
    times = measure_interleaved(arms, rounds=10, warmup=0, device=CPU)
    np.testing.assert_allclose(times["a"], np.full(10, 2.0))
    np.testing.assert_allclose(times["b"], np.full(10, 5.0))
    rounds = [set(clock.calls[i : i + 2]) for i in range(0, 20, 2)]
    assert rounds == [{"a", "b"}] * 10


def test_order_is_random_but_the_same_for_the_same_seed(clock):
    def order(seed: int) -> list[str]:
        clock.calls.clear()
        arms = {name: clock.arm(name, 0.001) for name in "abc"}
        measure_interleaved(arms, rounds=20, warmup=0, device=CPU, seed=seed)
        return list(clock.calls)

    first = order(1)
    assert first == order(1)
    assert first != order(2)
    assert len({tuple(first[i : i + 3]) for i in range(0, 60, 3)}) > 1


def test_warm_up_rounds_are_called_but_not_timed(clock):
    durations = iter([9.0, 9.0, 1.0, 1.0, 1.0])

    def call():
        clock.now_s += next(durations)

    times = measure_interleaved({"a": call}, rounds=3, warmup=2, device=CPU)
    np.testing.assert_allclose(times["a"], [1000.0] * 3)


@pytest.mark.parametrize(
    ("rounds", "budget_s", "made"),
    [
        (100, 20.0, 20),  # one second a round: stops when twenty are spent
        (100, 0.5, MIN_ROUNDS),  # a budget too small still gives enough for an interval
        (3, 0.5, 3),  # unless fewer were asked for
        (15, 1e9, 15),
        (15, None, 15),
    ],
)
def test_budget_stops_early_but_not_before_the_minimum(clock, rounds, budget_s, made):
    arms = {"a": clock.arm("a", 0.25), "b": clock.arm("b", 0.75)}
    times = measure_interleaved(arms, rounds=rounds, warmup=0, device=CPU, budget_s=budget_s)
    assert {name: len(values) for name, values in times.items()} == {"a": made, "b": made}


def test_an_error_in_an_arm_is_not_swallowed():
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        measure_interleaved({"a": fail}, rounds=1, warmup=0, device=CPU)


def test_ratio_is_the_ratio_of_the_medians():
    result = ratio_with_ci(np.array([10.0, 12.0, 14.0]), np.array([5.0, 6.0, 700.0]))
    assert result["ratio"] == pytest.approx(2.0)  # 12 / 6; the outlier of 700 does not count


def test_constant_times_give_an_interval_of_no_width():
    result = ratio_with_ci(np.full(9, 6.0), np.full(9, 4.0))
    assert result == {"ratio": 1.5, "ci95": [1.5, 1.5]}


def test_arms_of_unequal_length_are_compared_too():
    result = ratio_with_ci(np.full(9, 6.0), np.full(4, 4.0))
    assert result == {"ratio": 1.5, "ci95": [1.5, 1.5]}


def test_interval_repeats_with_its_seed_and_holds_the_ratio():
    random = np.random.default_rng(5)
    baseline, candidate = random.normal(10, 1, 30), random.normal(8, 1, 30)
    result = ratio_with_ci(baseline, candidate, seed=3)
    assert result == ratio_with_ci(baseline, candidate, seed=3)
    assert result["ci95"][0] <= result["ratio"] <= result["ci95"][1]


def test_slow_rounds_cancel_because_whole_rounds_are_resampled():
    slow_rounds = np.where(np.arange(40) % 2 == 0, 1.0, 3.0)  # every second round 3x slower
    together = ratio_with_ci(11.0 * slow_rounds, 10.0 * slow_rounds)
    apart = ratio_with_ci(11.0 * slow_rounds, 10.0 * slow_rounds[:-1])
    assert together["ci95"] == pytest.approx([1.1, 1.1])
    assert apart["ci95"][1] - apart["ci95"][0] > 0.5


def test_no_times_is_an_error():
    with pytest.raises(ValueError, match="at least one time"):
        ratio_with_ci(np.array([]), np.array([1.0]))


def _simulated_arms(seed: int, speedup: float) -> tuple[np.ndarray, np.ndarray]:
    """60 rounds on a bad machine: 4% noise, a drifting clock, every twentieth call 1.5x slower."""
    random = np.random.default_rng(seed)
    drift = np.exp(np.cumsum(random.normal(0, 0.01, 60)))

    def arm(ms: float) -> np.ndarray:
        hiccups = np.where(random.random(60) < 0.05, 1.5, 1.0)
        return ms * drift * np.exp(random.normal(0, 0.04, 60)) * hiccups

    return arm(10.0), arm(10.0 / speedup)


def test_equal_arms_are_called_equal_in_at_least_90_of_100_simulations():
    intervals = [ratio_with_ci(*_simulated_arms(s, 1.0), seed=s)["ci95"] for s in range(100)]
    assert sum(low <= 1 <= high for low, high in intervals) >= 90


def test_a_planted_five_percent_is_found_in_at_least_95_of_100_simulations():
    intervals = [ratio_with_ci(*_simulated_arms(s, 1.05), seed=s)["ci95"] for s in range(100)]
    assert sum(low > 1 for low, _ in intervals) >= 95


def test_peak_memory_sees_a_block_that_is_gone_at_the_end():
    with PeakMemory(CPU) as small:
        pass
    with PeakMemory(CPU) as big:
        block = np.ones(64 * 2**20, dtype=np.uint8)  # 64 MiB, touched
        del block
    assert "resident set" in big.kind
    assert small.mib is not None
    assert big.mib is not None
    assert big.mib >= small.mib + 60


@pytest.mark.skipif(not timing.PROC_CLEAR_REFS.exists(), reason="only Linux can reset the peak")
def test_peak_memory_starts_anew_each_time():
    with PeakMemory(CPU) as big:
        block = np.ones(64 * 2**20, dtype=np.uint8)
        del block
    with PeakMemory(CPU) as small:
        pass
    assert small.mib < big.mib - 60


def test_a_peak_that_cannot_be_reset_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "PROC_CLEAR_REFS", tmp_path)  # a folder: cannot be written
    monkeypatch.setattr(timing, "PROC_STATUS", tmp_path / "absent")
    with PeakMemory(CPU) as peak:
        pass
    assert peak.kind == "peak resident set since the process began"
    assert peak.mib is not None
    assert peak.mib > 10
