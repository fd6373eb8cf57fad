"""What is said of pruned models: no winner within the noise, none over the budget."""

import numpy as np
import pytest

from common.comparison import compare
from phase4_deployment.pruned.pruned_models import (
    REMOVED_CHANNELS,
    UNPRUNED,
    ZERO_CHANNELS,
    ZERO_WEIGHTS,
)
from phase4_deployment.pruned.pruning_measures import verdict
from phase4_deployment.pruned.pruning_report import best_and_ties, conclusion, table_lines

ROUNDS = 20
NOISE = {"ratio": 1.0, "ci95": (0.97, 1.03)}


def times_of(**ms: float) -> dict[str, np.ndarray]:
    """Milliseconds by name, as steady as can be but for a wobble all arms share."""
    wobble = 1 + 0.01 * np.sin(np.arange(ROUNDS))
    return {name: value * wobble for name, value in {UNPRUNED: 100.0, **ms}.items()}


def row_of(name: str, method: str, times, map_=0.5, status="ok", **more) -> dict:
    against = compare(times[UNPRUNED], times[name], noise=NOISE)
    return {
        "name": name,
        "method": method,
        "zero_share": 0.0,
        "removed_share": 0.0,
        "size_mib": 8.0,
        "size_zip_mib": 7.0,
        "gflops": 2.0,
        "latency_ms": {"p50": float(np.median(times[name]))},
        "map": map_,
        "map_before_finetuning": None,
        "status": status,
        "speedup": None if name == UNPRUNED else against.as_json(),
        "verdict": None if name == UNPRUNED else against.beyond_noise,
        **more,
    }


def read(times, *rows) -> list[str]:
    return conclusion([row_of(UNPRUNED, UNPRUNED, times), *rows], times, NOISE, seed=0)


def test_zeros_that_buy_nothing():
    times = times_of(a=99.0, b=101.0)
    sentences = read(
        times,
        row_of("a", ZERO_WEIGHTS, times, zero_share=0.9, size_zip_mib=1.0),
        row_of("b", ZERO_CHANNELS, times, zero_share=0.4),
    )
    assert sentences == [
        "Zeros in dense tensors buy no speed: with up to 90% of them, none of 2 models differs "
        "from the unpruned one beyond the noise.",
        "The file of a is as large as before (8.0 MiB); only zipped it shrinks, to 1.0 MiB "
        "(unpruned: 7.0 MiB).",
    ]


def test_zeros_that_change_the_speed_are_told():
    times = times_of(a=80.0)
    sentence = read(times, row_of("a", ZERO_WEIGHTS, times, zero_share=0.9))[0]
    assert "1 differ in speed beyond the noise (a 1.25x [1.25, 1.25])" in sentence


def test_too_few_rounds_tell_nothing_of_zeros():
    times = {name: ms[:3] for name, ms in times_of(a=80.0).items()}
    sentence = read(times, row_of("a", ZERO_WEIGHTS, times, zero_share=0.9))[0]
    assert sentence.endswith("cannot be told from these rounds.")


def test_the_fastest_within_the_budget_wins():
    times = times_of(mild=80.0, strong=50.0, ruined=20.0)
    (sentence,) = read(
        times,
        row_of("mild", REMOVED_CHANNELS, times, map_=0.49),
        row_of("strong", REMOVED_CHANNELS, times, map_=0.485, removed_share=0.4),
        row_of("ruined", REMOVED_CHANNELS, times, map_=0.0, status="rejected: mAP drop 0.5"),
    )
    assert sentence == (
        "Channels removed for good buy speed: strong is 2.00x [2.00, 2.00] as fast as the unpruned "
        "model, with mAP 0.4850 instead of 0.5000 and 40% fewer numbers."
    )


def test_of_equal_ones_the_more_accurate_is_named():
    times = times_of(mild=51.0, strong=50.0)
    rows = [
        row_of("mild", REMOVED_CHANNELS, times, map_=0.49),
        row_of("strong", REMOVED_CHANNELS, times, map_=0.485),
    ]
    best, ties = best_and_ties(rows, times, NOISE, seed=0)
    assert (best["name"], [row["name"] for row in ties]) == ("mild", ["strong"])
    (sentence,) = read(times, *rows)
    assert sentence.endswith("strong cannot be told from it in speed.")


def test_faster_but_ruined():
    times = times_of(ruined=20.0)
    row = row_of("ruined", REMOVED_CHANNELS, times, map_=0.01, status="rejected: mAP drop 0.49")
    (sentence,) = read(times, row)
    assert sentence.startswith("Faster are only models that lose too much: ruined 5.00x")
    assert "mAP 0.0100 instead of 0.5000" in sentence


def test_removal_within_the_noise_wins_nothing():
    times = times_of(a=98.0)
    assert read(times, row_of("a", REMOVED_CHANNELS, times)) == [
        "No model with channels removed is faster beyond the noise."
    ]


def test_the_table_has_a_line_for_each_and_says_what_was_not_measured():
    times = times_of(a=50.0)
    header, first, second = table_lines(
        [row_of(UNPRUNED, UNPRUNED, times), row_of("a", REMOVED_CHANNELS, times, map_=None)]
    )
    (trained,) = table_lines([row_of("a", REMOVED_CHANNELS, times, map_before_finetuning=0.25)])[1:]
    assert trained.endswith(" 0.5000 ok; 0.2500 before training")
    assert header.split() == [
        *("zeros", "fewer", "MiB", "zip", "MiB", "GFLOP", "p50", "ms", "speed-up", "mAP")
    ]
    assert "1 (baseline)" in first
    assert second.split() == [
        *("a", "0.0%", "0.0%", "8.00", "7.00", "2.00", "50.0"),
        *("2.00", "[2.00,", "2.00]", "faster", "–", "ok"),
    ]


@pytest.mark.parametrize(
    ("fault", "own", "baseline", "status"),
    [
        ("", 0.48, 0.5, "ok"),
        ("", 0.6, 0.5, "ok"),
        ("", None, None, "ok"),
        ("", 0.45, 0.5, "rejected: mAP drop 0.0500 over the budget of 0.03"),
        (
            "removal changed the outputs by 1",
            0.5,
            0.5,
            "rejected: removal changed the outputs by 1",
        ),
    ],
)
def test_the_budget(fault, own, baseline, status):
    assert verdict(fault, own, baseline, 0.03) == status
