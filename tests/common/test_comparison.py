"""No winner among equal arms, whatever the noise; a real difference is found."""

import math

import numpy as np
import pytest

from common import timing
from common.comparison import (
    MIN_ROUNDS,
    NO_NOISE,
    TOO_FEW,
    block_length,
    compare,
    interval_text,
    median_interval,
    noise_between,
    ratio_interval,
)

SIMULATIONS = 100


def gaussian(random, arms, rounds):
    return random.normal(0, 0.03, (arms, rounds))


def log_normal(random, arms, rounds):
    return random.normal(0, 0.3, (arms, rounds))


def heavy_tailed(random, arms, rounds):
    return 0.02 * np.abs(random.standard_t(1.5, (arms, rounds)))


def drifting(random, arms, rounds):
    """The machine gets slower and faster for all arms alike."""
    return random.normal(0, 0.03, rounds).cumsum() + random.normal(0, 0.02, (arms, rounds))


def in_bursts(random, arms, rounds):
    """Another tenant takes half the machine for some ten calls in a row, whichever arm they hit."""
    return np.log(2) * _spells(random, arms, rounds, 0.02, 0.1) + gaussian(random, arms, rounds) / 2


def bimodal(random, arms, rounds):
    return np.log(1.4) * (random.random((arms, rounds)) < 0.5) + gaussian(random, arms, rounds) / 3


def autocorrelated(random, arms, rounds):
    """Each arm has a slow mood of its own, half of it left after one round."""
    values = np.empty((arms, rounds))
    values[:, 0] = random.normal(0, 1, arms)
    for index in range(1, rounds):
        values[:, index] = 0.5 * values[:, index - 1] + 0.87 * random.normal(0, 1, arms)
    return 0.03 * values


def _spells(random, arms, rounds, start, end):
    """bool [arms, rounds]: spells that last through calls in the order of the rounds."""
    active, calls = False, np.empty((rounds, arms))
    for index in range(rounds):
        for arm in random.permutation(arms):
            active = random.random() >= end if active else random.random() < start
            calls[index, arm] = active
    return calls.T


NOISES = [gaussian, log_normal, heavy_tailed, drifting, in_bursts, bimodal, autocorrelated]


def verdicts(noise, rounds, speedup=1.0):
    """Of one candidate in each of SIMULATIONS runs of baseline, its second self and candidate."""
    for seed in range(SIMULATIONS):
        times = 50 * np.exp(noise(np.random.default_rng(seed), 3, rounds))
        yield compare(times[0], times[2] / speedup, times[1]).verdict


@pytest.mark.parametrize("rounds", [7, 20, 60])
@pytest.mark.parametrize("noise", NOISES)
def test_equal_arms_have_no_winner(noise, rounds):
    assert list(verdicts(noise, rounds)).count("within noise") >= 95


def test_five_percent_are_found():
    def steady(random, arms, rounds):
        common = random.normal(0, 0.02, rounds).cumsum()
        return common + random.normal(0, 0.015, (arms, rounds))

    assert list(verdicts(steady, 60, speedup=1.05)).count("faster") >= 95
    assert list(verdicts(steady, 60, speedup=1 / 1.05)).count("slower") >= 95


@pytest.mark.parametrize("noise", [gaussian, drifting, autocorrelated])
def test_twice_the_speed_is_found_in_the_fewest_rounds(noise):
    assert list(verdicts(noise, MIN_ROUNDS, speedup=2)).count("faster") >= 95


def test_the_interval_covers_the_truth():
    hits = 0
    for seed in range(SIMULATIONS):
        times = np.exp(gaussian(np.random.default_rng(seed), 2, 20))
        low, high = ratio_interval(1.3 * times[0], times[1])[1]
        hits += low <= 1.3 <= high
    assert hits >= 93


class Clock:
    """perf_counter of a machine on which calls take what they are told to."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def test_the_whole_path_from_the_clock_to_the_verdict(monkeypatch):
    import torch

    clock, winners, found = Clock(), 0, 0
    monkeypatch.setattr(timing, "perf_counter", clock)
    for seed in range(SIMULATIONS):
        random = np.random.default_rng(seed)
        slow = [1.0]

        def call(ms, random=random, slow=slow):
            slow[0] *= math.exp(random.normal(0, 0.01))  # a drift that hits whichever arm runs
            clock.now_s += ms * slow[0] * math.exp(random.normal(0, 0.01)) / 1e3

        arms = {"a": lambda: call(50), "b": lambda: call(50), "c": lambda: call(40)}
        times = timing.measure_interleaved(
            arms, rounds=40, warmup=1, device=torch.device("cpu"), seed=seed
        )
        winners += compare(times["a"], times["b"], times["b"]).verdict != "within noise"
        found += compare(times["a"], times["c"], times["b"]).verdict == "faster"
    assert winners <= 5
    assert found >= 95


def test_numbers_by_hand():
    same = np.full(8, 20.0)
    result = compare(same, same / 4, same)
    assert result.as_dict() == {
        "ratio": 4.0,
        "ci95": (4.0, 4.0),
        "noise": {"ratio": 1.0, "ci95": (1.0, 1.0)},
        "verdict": "faster",
    }
    assert compare(same, same / 1.01, same).verdict == "within noise"  # below MIN_EFFECT
    assert compare(same[:6], same[:6] / 4, same[:6]).verdict == "too few rounds to tell"


def test_few_rounds_have_no_interval_and_no_winner():
    one = compare(np.array([9.0]), np.array([3.0]), np.array([9.0]))
    assert one.as_dict() == {"ratio": 3.0, "ci95": None, "noise": None, "verdict": TOO_FEW}
    assert ratio_interval(np.array([9.0]), np.array([3.0])) == (3.0, None)
    assert ratio_interval(np.full(6, 9.0), np.full(6, 3.0)) == (3.0, None)
    assert ratio_interval(np.full(7, 9.0), np.full(7, 3.0)) == (3.0, (3.0, 3.0))


def test_noise_of_other_equal_arms_must_be_beaten_too():
    slow, fast = np.full(9, 12.0), np.full(9, 10.0)
    assert compare(slow, fast, noise={"ratio": 1.0, "ci95": (0.9, 1.1)}).verdict == "faster"
    assert compare(slow, fast, noise={"ratio": 1.0, "ci95": (0.8, 1.1)}).verdict == "within noise"


def test_an_interval_in_words():
    assert interval_text(1.304, (1.2249, 1.3)) == "1.30 [1.22, 1.30]"
    assert interval_text(12.5, [12.0, 13.0], "x") == "12.50x [12.00, 13.00]"
    assert interval_text(1.3, None) == "1.30 [–]"


def test_noise_of_equal_arms_widens_what_must_be_beaten():
    slow, fast = np.full(9, 12.0), np.full(9, 10.0)
    assert compare(slow, fast).verdict == "faster"
    assert compare(slow, fast, again_ms=fast).verdict == "within noise"


@pytest.mark.parametrize(
    ("rounds", "equal", "word"),
    [(9, None, NO_NOISE), (9, 1.0, "faster"), (9, 3.0, "within noise"), (6, None, TOO_FEW)],
)
def test_beyond_the_noise_is_only_what_the_noise_is_known_of(rounds, equal, word):
    baseline, candidate = np.full(rounds, 10.0), np.full(rounds, 5.0)
    noise = equal and noise_between(baseline, baseline / equal)
    assert compare(baseline, candidate, noise=noise or None).beyond_noise == word


def test_two_equal_arms_by_hand():
    assert noise_between(np.full(9, 10.0), np.full(9, 8.0)) == {"ratio": 1.25, "ci95": (1.25, 1.25)}
    assert noise_between(np.array([10.0]), np.array([8.0])) is None  # one round has no spread


@pytest.mark.parametrize(("rounds", "length"), [(1, 1), (7, 2), (8, 2), (27, 3), (60, 4), (100, 5)])
def test_block_length_is_the_cube_root(rounds, length):
    assert block_length(rounds) == length


@pytest.mark.parametrize(
    ("baseline", "candidate", "message"),
    [
        ([], [], "at least one"),
        ([1.0, 2.0], [1.0], "same rounds"),
        ([1.0, math.nan], [1.0, 1.0], "finite"),
        ([1.0, 1.0], [0.0, 1.0], "above 0"),
        ([-1.0, 1.0], [1.0, 1.0], "above 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(baseline, candidate, message):
    with pytest.raises(ValueError, match=message):
        compare(np.array(baseline), np.array(candidate))


def test_a_median_among_slow_spells_is_less_certain_than_among_single_hiccups():
    """The same 48 times, in two waves and well mixed."""
    waves = 10 + 2 * np.sin(np.arange(48) * 2 * np.pi / 24)
    mixed = np.random.default_rng(0).permutation(waves)
    (median, (low, high)), (same, (mixed_low, mixed_high)) = map(median_interval, (waves, mixed))
    assert median == same == np.median(waves)
    assert low < mixed_low < median < mixed_high < high
    assert high - low > 1.3 * (mixed_high - mixed_low)
    assert ratio_interval(waves, np.ones(48)) == median_interval(waves)
