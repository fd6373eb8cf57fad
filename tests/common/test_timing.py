"""Hand-computed statistics, a clock of plain numbers, whole measurements on made-up machines."""

import math
import mmap

import numpy as np
import pytest
import torch

from common import timing
from common.comparison import MIN_ROUNDS, compare
from common.timing import (
    MAX_WARMUP,
    MIN_WARMUP,
    PeakMemory,
    measure_interleaved,
    summarise,
    warm_up,
)

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


def test_an_outlier_shows_in_p99_and_not_in_p50():
    # ranks as above; p99 lies nine tenths of the way from 10 to 1000
    summary = summarise([*range(1, 11), 1000])
    assert summary == pytest.approx({"p50": 6.0, "p90": 10.0, "p99": 901.0, "mean": 1055 / 11})


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


def test_ratio_is_the_median_of_the_rounds_ratios():
    result = compare(np.array([10.0, 12.0, 14.0]), np.array([5.0, 6.0, 700.0])).as_json()
    assert result["ratio"] == pytest.approx(2.0)  # the outlier of 700 does not count


def test_constant_times_give_an_interval_of_no_width():
    result = compare(np.full(9, 6.0), np.full(9, 4.0)).as_json()
    assert result == {"ratio": 1.5, "ci95": [1.5, 1.5]}


def test_one_round_gives_no_interval():
    result = compare(np.array([6.0]), np.array([4.0])).as_json()
    assert result == {"ratio": 1.5, "ci95": None}


def test_interval_repeats_with_its_seed_and_holds_the_ratio():
    random = np.random.default_rng(5)
    baseline, candidate = random.normal(10, 1, 30), random.normal(8, 1, 30)
    result = compare(baseline, candidate, seed=3).as_json()
    assert result == compare(baseline, candidate, seed=3).as_json()
    assert result["ci95"][0] <= result["ratio"] <= result["ci95"][1]


def test_slow_rounds_cancel():
    slow_rounds = np.where(np.arange(40) % 2 == 0, 1.0, 3.0)  # every second round 3x slower
    result = compare(11.0 * slow_rounds, 10.0 * slow_rounds).as_json()
    assert result["ci95"] == pytest.approx([1.1, 1.1])


# --- warm-up and clocks -----------------------------------------------------------------------


def lasting(clock, durations):
    """An arm whose calls take these seconds, the last one for ever."""
    left = list(durations)

    def call():
        clock.now_s += left.pop(0) if len(left) > 1 else left[0]

    return call


@pytest.mark.parametrize(
    ("durations", "rounds"),
    [
        ([1.0], MIN_WARMUP),
        ([9.0, 5.0, 3.0, 2.0, 1.95], 5),  # the fifth call is less than 5% faster
        ([9.0, 1.0, 3.0, 1.0], 3),  # a slow call in between is noise, not warm-up
    ],
)
def test_warm_up_ends_when_calls_stop_getting_faster(clock, durations, rounds):
    assert warm_up({"a": lasting(clock, durations)}, CPU, budget_s=100) == rounds


def test_warm_up_waits_for_the_slowest_arm_and_is_bounded(clock):
    cold = [0.9**n for n in range(MAX_WARMUP + 5)]
    arms = {"warm": lasting(clock, [1.0]), "cold": lasting(clock, cold)}
    assert warm_up(arms, CPU, budget_s=1000) == MAX_WARMUP
    assert warm_up({"slow": lasting(clock, [50.0, 40.0, 30.0])}, CPU, budget_s=30) == 1


def test_without_a_number_warm_up_lasts_until_stable(clock):
    times = measure_interleaved({"a": lasting(clock, [9.0, 5.0, 1.0, 1.0])}, rounds=4, device=CPU)
    np.testing.assert_allclose(times["a"], [1000.0] * 4)


def test_rounds_in_which_the_clock_goes_back_are_dropped_for_all_arms(clock, caplog):
    arms = {"a": lasting(clock, [1.0, 1.0, -5.0, 1.0]), "b": lasting(clock, [2.0])}
    times = measure_interleaved(arms, rounds=6, warmup=0, device=CPU)
    assert times["a"].tolist() == [1000.0] * 5
    assert times["b"].tolist() == [2000.0] * 5
    assert "1 of 6 rounds left out: the clock went back" in caplog.text


@pytest.mark.parametrize("place", [0, 1, 4, 8])
def test_a_round_in_which_the_machine_slept_is_dropped_for_all_arms(clock, caplog, place):
    slept = [1.0] * 9 + [1.0]
    slept[place] += 3600.0
    arms = {"a": lasting(clock, slept), "b": lasting(clock, np.arange(1.0, 11.0))}
    times = measure_interleaved(arms, rounds=9, warmup=0, device=CPU)
    assert times["a"].tolist() == [1000.0] * 8
    assert times["b"].tolist() == [1000.0 * (n + 1) for n in range(9) if n != place]
    assert "1 of 9 rounds left out" in caplog.text


@pytest.mark.parametrize(
    ("usual_s", "slow_s", "kept"),
    [
        (0.001, 59.0, 9),  # a minute of swapping: 59000 times the usual, and it happened
        (0.001, 61.0, 8),
        (30.0, 300.0, 9),  # ten times the usual
        (30.0, 301.0, 8),
    ],
)
def test_slow_calls_stay_unless_nothing_but_sleep_explains_them(clock, usual_s, slow_s, kept):
    times = measure_interleaved(
        {"a": lasting(clock, [usual_s, slow_s, usual_s])}, rounds=9, warmup=0, device=CPU
    )
    assert len(times["a"]) == kept
    assert summarise(times["a"])["p50"] == pytest.approx(1000 * usual_s)


def test_of_two_rounds_the_one_with_the_sleep_is_dropped(clock):
    arms = {"a": lasting(clock, [3600.0, 1.0])}
    assert measure_interleaved(arms, rounds=2, warmup=0, device=CPU)["a"].tolist() == [1000.0]


def test_dropped_rounds_take_nothing_from_the_budget_nor_from_its_least_rounds(clock):
    slept = lasting(clock, [1.0, 3600.0, -2.0, 1.0])
    times = measure_interleaved({"a": slept}, rounds=99, warmup=0, device=CPU, budget_s=20.0)
    assert times["a"].tolist() == [1000.0] * 20
    slept = lasting(clock, [1.0, 3600.0, -2.0, 1.0])
    times = measure_interleaved({"a": slept}, rounds=99, warmup=0, device=CPU, budget_s=0.5)
    assert times["a"].tolist() == [1000.0] * MIN_ROUNDS


def test_a_clock_that_only_goes_back_leaves_no_times(clock):
    times = measure_interleaved({"a": lasting(clock, [-1.0])}, rounds=3, warmup=0, device=CPU)
    assert len(times["a"]) == 0


# --- the whole path: clock, rounds, verdict ---------------------------------------------------


def busy_spells(random):
    """Another tenant doubles the time of some ten calls in a row, whichever arms they are of."""
    busy = False
    while True:
        busy = random.random() >= 0.1 if busy else random.random() < 0.02
        yield math.log(2) * busy


def wandering_speed(random):
    level = 0.0
    while True:
        level += random.normal(0, 0.01)
        yield level


def steps_of_speed(random):
    """A governor that changes the speed by up to 30% now and then."""
    level = 0.0
    while True:
        level = random.uniform(-0.3, 0.0) if random.random() < 0.03 else level
        yield level


MACHINES = [busy_spells, wandering_speed, steps_of_speed]


def verdict_on(clock, machine, seed, rounds, speedup=1.0):
    """Of a candidate beside the baseline and its second self, through `measure_interleaved`."""
    random = np.random.default_rng(seed)
    speed = machine(random)

    def arm(seconds):
        def call():
            clock.now_s += seconds * math.exp(next(speed) + random.normal(0, 0.02))

        return call

    arms = {"baseline": arm(0.05), "again": arm(0.05), "candidate": arm(0.05 / speedup)}
    times = measure_interleaved(arms, rounds=rounds, warmup=1, device=CPU, seed=seed)
    return compare(times["baseline"], times["candidate"], times["again"]).verdict


@pytest.mark.parametrize("rounds", [7, 20, 60])
@pytest.mark.parametrize("machine", MACHINES)
def test_equal_arms_have_no_winner_on_a_machine_that_changes_from_call_to_call(
    clock, machine, rounds
):
    found = [verdict_on(clock, machine, seed, rounds) for seed in range(100)]
    assert found.count("within noise") >= 95


@pytest.mark.parametrize("machine", MACHINES)
def test_five_percent_are_found_on_it(clock, machine):
    found = [verdict_on(clock, machine, seed, 60, speedup=1.05) for seed in range(100)]
    assert found.count("faster") >= 95


# --- memory -----------------------------------------------------------------------------------


def touch_64_mib() -> None:
    """From the system itself: an allocator may hand out, and keep, what others have left."""
    with mmap.mmap(-1, 64 * 2**20) as block:
        block.write(b"1" * len(block))


def test_peak_memory_sees_a_block_that_is_gone_at_the_end():
    with PeakMemory(CPU) as small:
        pass
    with PeakMemory(CPU) as big:
        touch_64_mib()
    assert "resident set" in big.kind
    assert small.mib is not None
    assert big.mib is not None
    assert big.mib >= small.mib + 60


@pytest.mark.skipif(not timing.PROC_CLEAR_REFS.exists(), reason="only Linux can reset the peak")
def test_peak_memory_starts_anew_each_time():
    with PeakMemory(CPU) as big:
        touch_64_mib()
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


class FailError(Exception):
    """ONNX Runtime's exceptions have no common base but Exception."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (FailError("bfc_arena.cc: Failed to allocate memory for requested buffer of size 9"), True),
        (FailError("Got invalid dimensions for input: images"), False),
        (RuntimeError("expected scalar type Float"), False),
        (ValueError("a picture of a machine that is out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_known_whoever_tells_it(error, expected):
    assert timing.is_out_of_memory(error) is expected
