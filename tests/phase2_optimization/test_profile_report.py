"""A profile in words."""

import pytest

from phase2_optimization.profile_report import roofline_in_words, speed_in_words
from phase2_optimization.roofline import Call, roofline

STOCK = "torchvision's own training step, float32"


def stock(**speedup):
    noise = {"ratio": 1.0, "ci95": (0.97, 1.04)}
    return {"description": STOCK, "speedup": {"ratio": 2.5, "noise": noise, **speedup}}


def test_a_speed_up_stands_beside_its_noise_and_its_verdict():
    words = speed_in_words(stock(ci95=(2.25, 2.75), verdict="faster"))
    assert words == (
        f"2.50x [2.25, 2.75] the speed of {STOCK}, where two equal ones are 1.00x [0.97, 1.04]: "
        "faster"
    )


def test_one_step_has_no_interval():
    words = speed_in_words(stock(ci95=None, noise=None, verdict="too few rounds to tell"))
    assert words == (
        f"2.50x the speed of {STOCK}; fewer than 7 steps have no interval and cannot tell speeds "
        "apart"
    )


def test_an_interval_of_few_steps_is_no_interval():
    words = speed_in_words(stock(ci95=(2.25, 2.75), verdict="too few rounds to tell"))
    assert words == (
        f"2.50x the speed of {STOCK}; that cannot be told from chance: too few rounds to tell"
    )


@pytest.mark.parametrize(
    ("measured_ms", "words"),
    [
        (30.0, "of 30 ms arithmetic needs 20 and moving data up to 4: arithmetic bounds them"),
        (100.0, "of 100 ms arithmetic needs 20 and moving data up to 4: most of the time "),
        (20.0, "of 20 ms arithmetic needs 20 and moving data up to 4: what bounds them cannot be "),
    ],
)
def test_the_figures_of_the_roofline_are_told_before_what_they_say(measured_ms, words):
    """2 GFLOP over 0.1 GB are 20 ms at 100 GFLOP/s, above the balance of 4; 0.1 GB more 4 ms."""
    calls = [Call("convolution", 2 * 10**9, 10**8), Call("relu", 0, 10**8)]
    told = roofline_in_words(roofline(calls, 100.0, 25.0, measured_ms))
    balanced = "roofline: 10 FLOP per byte moved, where 100 GFLOP/s and 25.0 GB/s balance at 4; "
    assert told.startswith(balanced + words)
