"""A profile in words."""

from phase2_optimization.profile_report import speed_in_words

STOCK = "torchvision's own training step, float32"


def stock(**speedup):
    noise = {"ratio": 1.0, "ci95": (0.97, 1.04)}
    return {"description": STOCK, "speedup": {"ratio": 2.5, "noise": noise, **speedup}}


def test_a_speed_up_stands_beside_its_noise_and_its_verdict():
    words = speed_in_words(stock(ci95=(2.25, 2.75), verdict="faster"))
    assert words == (
        f"2.50x the speed of {STOCK} [2.25, 2.75], where two equal ones are [0.97, 1.04]: faster"
    )


def test_one_step_has_no_interval():
    words = speed_in_words(stock(ci95=None, noise=None, verdict="too few rounds to tell"))
    assert words == (
        f"2.50x the speed of {STOCK}; one step each has no interval and cannot tell speeds apart"
    )
