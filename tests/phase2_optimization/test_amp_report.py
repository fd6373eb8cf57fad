"""Differences to FP32 over the seeds, against figures worked out by hand."""

import pytest
import torch

from phase2_optimization import amp_report
from phase2_optimization.amp_arm import Precision
from phase2_optimization.amp_comparison import ArmRecord
from phase2_optimization.amp_report import difference


def runs(*values: float | None) -> list[dict]:
    return [{"seed": seed, "map_50": value} for seed, value in enumerate(values)]


def test_difference_over_three_seeds():
    """Differences 1, 2, 3: mean 2, deviation 1, Student's t for 2 degrees of freedom 4.3027, so
    the interval is 2 +- 4.3027 / sqrt(3). FP32 itself spans 10 to 14."""
    found = difference(runs(10.0, 12.0, 14.0), runs(11.0, 14.0, 17.0), "map_50")
    assert found["mean"] == pytest.approx(2)
    assert found["ci95"] == pytest.approx([2 - 2.48414, 2 + 2.48414], abs=1e-4)
    assert found["fp32_spread"] == pytest.approx(4)
    assert found["inside_fp32_spread"] is True
    assert found["seeds"] == 3


@pytest.mark.parametrize(
    ("change", "inside"), [(4.0, True), (-4.0, True), (4.1, False), (-4.1, False)]
)
def test_a_difference_is_inside_when_fp32_spans_as_much(change, inside):
    other = runs(*(value + change for value in (10.0, 12.0, 14.0)))
    found = difference(runs(10.0, 12.0, 14.0), other, "map_50")
    assert found["inside_fp32_spread"] is inside
    assert found["ci95"] == pytest.approx([change, change])


def test_an_arm_of_one_seed_is_compared_with_that_seed_and_the_spread_of_all():
    found = difference(runs(10.0, 12.0, 14.0), runs(11.0), "map_50")
    assert (found["mean"], found["ci95"], found["seeds"]) == (1.0, None, 1)
    assert found["inside_fp32_spread"] is True


def test_one_seed_of_fp32_has_no_spread():
    found = difference(runs(10.0), runs(11.0), "map_50")
    assert found["fp32_spread"] is found["inside_fp32_spread"] is None


@pytest.mark.parametrize(
    ("fp32", "other"), [([], []), ([1.0], []), ([None, 1.0], [1.0, 1.0]), ([1.0], [None])]
)
def test_what_has_no_value_has_no_difference(fp32, other):
    assert difference(runs(*fp32), runs(*other), "map_50") is None


def record(*losses: list[float | None], failure: str = "") -> ArmRecord:
    made = [{"seed": seed, "loss": loss} for seed, loss in enumerate(losses)]
    return ArmRecord(Precision("", torch.float16), failure, runs=made)


@pytest.mark.parametrize(
    ("of", "status"),
    [
        pytest.param(record([1.0, 2.0]), "ok", id="finite"),
        pytest.param(
            record([1.0, 2.0], [1.0, None, None]),
            "invalid: the loss was no finite number at 2 of 3 steps of seed 1, first at step 2",
            id="not a number",
        ),
        pytest.param(record(failure="unavailable: why"), "unavailable: why", id="unavailable"),
        pytest.param(record([None], failure="oom"), "oom", id="out of memory"),
        pytest.param(record(), "stopped: the run ended before its result was known", id="stopped"),
    ],
)
def test_status(of, status):
    assert amp_report._status(of) == status


def test_mean_and_range_need_a_value_of_every_seed():
    assert amp_report._over_seeds(runs(1.0, 3.0), "map_50") == {
        "mean": 2.0,
        "min": 1.0,
        "max": 3.0,
        "values": [1.0, 3.0],
    }
    assert amp_report._over_seeds(runs(1.0, None), "map_50") is None
    assert amp_report._over_seeds([], "map_50") is None
