"""How a precision comparison is put into words, on reports made by hand."""

import logging

import pytest

from common.cli import log
from phase2_optimization.amp_inference import SHIPPED, STOCK, WAYS
from phase2_optimization.amp_reading import log_tables, read_result, speed_title

NOISE = {"ratio": 1.0, "ci95": [0.98, 1.02]}
FASTER = {"ratio": 1.4, "ci95": [1.3, 1.5], "noise": NOISE, "verdict": "faster"}
SLOWER = {"ratio": 0.7, "ci95": [0.6, 0.8], "noise": NOISE, "verdict": "slower"}
EQUAL = {"ratio": 1.01, "ci95": [0.97, 1.05], "noise": NOISE, "verdict": "within noise"}
UNTOLD = {"ratio": 1.2, "ci95": [0.5, 2.0], "noise": NOISE, "verdict": "too few rounds to tell"}
BASELINE = {"ratio": 1.0, "ci95": [1.0, 1.0], "noise": NOISE, "verdict": "baseline"}
NOT_COMPARED = {"ratio": None, "ci95": [None, None], "noise": None, "verdict": None}
OOM = {"status": "oom", "speedup": NOT_COMPARED, "step_ms": None, "runs": []}


def against(
    loss: float, map_50: float, coco_map: float = 0.001, *, seeds: int = 3, inside=True
) -> dict:
    """Intervals are +-0.01 and +-1 point, FP32's own spread 0.05, 3 points of map, 2 of map_50."""

    def entry(mean: float, half: float, spread: float) -> dict:
        return {
            "mean": mean,
            "ci95": [mean - half, mean + half] if seeds > 1 else None,
            "fp32_spread": None if inside is None else spread,
            "inside_fp32_spread": inside,
            "seeds": seeds,
        }

    return {
        "final_loss": entry(loss, 0.01, 0.05),
        "map": entry(coco_map, 0.01, 0.03),
        "map_50": entry(map_50, 0.01, 0.02),
    }


def arm(name: str, speedup: dict, **changes) -> dict:
    score = {"mean": 0.5, "min": 0.4, "max": 0.6}
    return {
        "name": name,
        "status": "ok",
        "emulated": False,
        "speedup": speedup,
        "step_ms": {"p50": 100.0, "p90": 110.0, "p99": 120.0},
        "peak_memory_mib": 1000.0 if name == "fp32" else 900.0,
        "against_fp32": None if name == "fp32" else against(0.002, -0.003),
        "over_seeds": {"final_loss": score, "map": score, "map_50": score},
        "skipped_steps": 0,
        "runs": [{"loss": [1.0] * 20}] * 3,
        **changes,
    }


def report(speedup: dict = FASTER, *others: dict, inference: tuple = (), **changes) -> dict:
    fp32 = arm("fp32", BASELINE)
    return {
        "arms": [fp32, *others, arm("amp_bf16", speedup, **changes)],
        "usual_amp": "amp_bf16",
        "timed_steps": 20,
        "warmup_steps": 2,
        "steps": 22,
        "final_loss_is_the_mean_of_steps": 5,
        "memory_kind": "peak of the CUDA allocator",
        "evaluated_images": 60,
        "inference": {"batch_size": 1, "ways": inference},
    }


@pytest.mark.parametrize(
    ("speedup", "words"),
    [
        pytest.param(FASTER, "amp_bf16 trains 1.40x [1.30, 1.50] as fast as fp32", id="faster"),
        pytest.param(
            SLOWER, "is slower than fp32 on this machine: 0.70x [0.60, 0.80]", id="slower"
        ),
        pytest.param(
            EQUAL,
            "no difference in training speed can be told between amp_bf16 and fp32: 1.01x "
            "[0.97, 1.05], where two equal fp32 arms give 1.00x [0.98, 1.02]",
            id="noise",
        ),
        pytest.param(
            {**EQUAL, "noise": None},
            "can be told between amp_bf16 and fp32: 1.01x [0.97, 1.05]; ",
            id="no second fp32 arm",
        ),
        pytest.param(UNTOLD, "20 timed steps cannot tell training speeds apart", id="few steps"),
    ],
)
def test_speed_is_told_as_far_as_the_interval_goes(speedup, words):
    reading = read_result(report(speedup))
    assert reading.startswith("Training: ")
    assert words in reading
    assert ("1.40x" in reading) is (speedup is FASTER)
    assert "its peak memory is -10% (peak of the CUDA allocator)" in reading


STEPS = (
    "after 22 equal steps (2 to warm up), with 3 seeds, against fp32 (loss: mean of the last 5 "
    "steps; map: on 60 images): "
)


def test_accuracy_inside_the_spread_of_the_seeds():
    assert (
        f"{STEPS}its final loss +0.002 [-0.008, +0.012] (inside fp32's spread of 0.050), its map "
        "+0.1 points [-0.9, +1.1] (inside fp32's spread of 3.0 points), its map_50 -0.3 points "
        "[-1.3, +0.7] (inside fp32's spread of 2.0 points); fp32's spread is how far its own seeds "
        "are apart." in read_result(report())
    )


@pytest.mark.parametrize("metric", ["map", "map_50"])
def test_accuracy_outside_the_spread_of_the_seeds(metric):
    """What is inside is called so beside it."""
    differences = against(0.002, -0.05, -0.05)
    differences[metric]["inside_fp32_spread"] = False
    reading = read_result(report(against_fp32=differences))
    spreads = {"map": "3.0", "map_50": "2.0"}
    for name, spread in spreads.items():
        place = "outside" if name == metric else "inside"
        words = f"its {name} -5.0 points [-6.0, -4.0] ({place} fp32's spread of {spread} points)"
        assert words in reading
    assert "(inside fp32's spread of 0.050)" in reading
    assert "chance" not in reading


@pytest.mark.parametrize("ci95", [[-0.11, 0.01], None])
def test_a_difference_that_can_be_chance_is_called_so(ci95):
    differences = against(0.002, -0.05)
    differences["map_50"].update(inside_fp32_spread=False, ci95=ci95)
    reading = read_result(report(against_fp32=differences))
    assert (
        "(outside fp32's spread of 2.0 points, which can be chance: 3 seeds cannot tell)" in reading
    )


def test_one_seed_tells_nothing_of_the_spread():
    reading = read_result(report(against_fp32=against(0.002, -0.003, seeds=1, inside=None)))
    assert "with 1 seed, against fp32 (loss: mean of the last 5 steps; map: on 60 ima" in reading
    assert "its final loss +0.002, its map +0.1 points, its map_50 -0.3 points; one" in reading
    assert "one seed cannot tell whether that is much" in reading
    assert "spread" not in reading


def test_a_difference_that_rounds_to_nothing_has_one_sign():
    reading = read_result(report(against_fp32=against(-0.0001, -0.0001, 0.0001)))
    assert "final loss +0.000 [" in reading
    assert "its map +0.0 points" in reading
    assert "its map_50 +0.0 points" in reading


@pytest.mark.parametrize(
    ("peak_mib", "kind", "words"),
    [
        (900.0, "peak resident set of the process", "its peak memory is -10% (peak resident set"),
        (1049.0, "peak resident set of the process", "no difference in peak memory can be told (+"),
        (999.0, "peak resident set of the process", "can be told (+0%, peak resident set of the"),
        (1049.0, "peak of the CUDA allocator", "its peak memory is +5% (peak of the CUDA alloc"),
    ],
)
def test_a_resident_set_tells_no_small_differences(peak_mib, kind, words):
    made = report(peak_memory_mib=peak_mib) | {"memory_kind": kind}
    assert words in read_result(made)


def test_a_map_without_value_is_left_out():
    differences = {**against(0.002, 0.0), "map_50": None}
    reading = read_result(report(against_fp32=differences))
    assert "final loss +0.002" in reading
    assert "its map +0.1 points" in reading
    assert "map_50" not in reading


@pytest.mark.parametrize(
    ("speedup", "words"),
    [
        (SLOWER, "its speed, because this CPU has no bfloat16 instructions and emulates them;"),
        (FASTER, "as fast as fp32 (this CPU has no bfloat16 instructions and emulates them);"),
        (EQUAL, "[0.98, 1.02] (this CPU has no bfloat16 instructions and emulates them);"),
    ],
)
def test_emulated_bfloat16_is_called_so(speedup, words):
    assert words in read_result(report(speedup, emulated=True))
    assert "emulates" not in read_result(report(speedup))


def test_a_loss_that_diverged_is_named_and_its_speed_disowned():
    status = "invalid: the loss was no finite number at 3 of 22 steps of seed 0, first at step 20"
    reading = read_result(report(FASTER, status=status))
    assert f"but that is worth nothing: it is {status}." in reading
    assert "peak memory" not in reading


def test_fp32_that_diverged_leaves_nothing_to_compare():
    made = report()
    made["arms"][0]["status"] = "invalid: the loss was no finite number at step 1"
    reading = read_result(made)
    assert reading.startswith("Training: fp32 itself is invalid")
    assert "lower --learning-rate" in reading
    assert "1.40x" not in reading


def test_steps_without_a_time_are_not_compared():
    assert "fp32: no step has a time to be believed." in read_result(report(NOT_COMPARED))


def test_an_arm_that_was_not_measured_says_why():
    assert read_result(report(NOT_COMPARED, status="oom")) == (
        "Training: amp_bf16 was not compared with fp32: oom."
    )


def test_memory_that_ran_out_later_is_told():
    reading = read_result(report(FASTER, status="oom"))
    assert reading == (
        "Training: amp_bf16 trains 1.40x [1.30, 1.50] as fast as fp32, until it ran out of memory."
    )


@pytest.mark.parametrize(("skipped", "told"), [(6, False), (7, True)])
def test_many_skipped_steps_are_told(skipped, told):
    """Of 3 seeds of 20 steps; a tenth is what loss scaling takes to find its scale."""
    words = f"{skipped} of its steps were skipped: gradients overflowed"
    assert (words in read_result(report(skipped_steps=skipped))) is told


def test_tf32_is_told_where_it_was_timed():
    assert "TF32: without AMP it trains 1.40x [1.30, 1.50] as fast as fp32." in read_result(
        report(FASTER, arm("tf32", FASTER))
    )
    assert "as fast as fp32, within the noise." in read_result(report(FASTER, arm("tf32", EQUAL)))
    unavailable = arm("tf32", NOT_COMPARED, status="unavailable: needs a CUDA GPU")
    assert "TF32" not in read_result(report(FASTER, unavailable))


def test_autocast_around_everything_is_told_where_it_does_harm():
    harmful = arm("amp_stock", SLOWER, against_fp32=against(0.2, -0.04, -0.03, inside=False))
    assert (
        "Autocast around the whole model: amp_stock is further from fp32 than fp32's own seeds "
        "differ: final loss +0.200 [+0.190, +0.210] and map -3.0 points [-4.0, -2.0] and map_50 "
        "-4.0 points [-5.0, -3.0]." in read_result(report(FASTER, harmful))
    )
    assert "amp_stock" not in read_result(report(FASTER, arm("amp_stock", SLOWER)))
    chance = against(0.002, -0.003, seeds=1, inside=False)
    assert "amp_stock" not in read_result(
        report(FASTER, arm("amp_stock", SLOWER, against_fp32=chance))
    )
    diverged = arm("amp_stock", SLOWER, status="invalid: the loss was no finite number")
    assert "amp_stock is invalid" in read_result(report(FASTER, diverged))


def way(name: str, speedup: dict | None, **changes) -> dict:
    return {
        "name": name,
        "description": WAYS[name],
        "precision": "bfloat16",
        "emulated": False,
        "status": "ok",
        "speedup": speedup,
        **changes,
    }


@pytest.mark.parametrize(
    ("speedup", "shipped", "stock"),
    [
        pytest.param(
            FASTER,
            "the inference graph of the video pipeline is 1.40x [1.30, 1.50] as fast in bfloat16 "
            "as in FP32",
            "torchvision's own forward pass is 1.40x [1.30, 1.50] as fast under autocast to "
            "bfloat16 as in FP32",
            id="faster",
        ),
        pytest.param(
            SLOWER,
            "the inference graph of the video pipeline is slower in bfloat16 than in FP32: 0.70x "
            "[0.60, 0.80] its speed",
            "torchvision's own forward pass is slower under autocast to bfloat16 than in FP32: "
            "0.70x [0.60, 0.80] its speed",
            id="slower",
        ),
        pytest.param(
            EQUAL,
            "no difference can be told between the inference graph of the video pipeline in "
            "bfloat16 and in FP32: 1.01x [0.97, 1.05], where two equal FP32 arms give 1.00x "
            "[0.98, 1.02]",
            "no difference can be told between torchvision's own forward pass under autocast to "
            "bfloat16 and in FP32: 1.01x [0.97, 1.05], where two equal FP32 arms give 1.00x "
            "[0.98, 1.02]",
            id="noise",
        ),
        pytest.param(
            UNTOLD,
            "the inference graph of the video pipeline in bfloat16 was timed too few times to "
            "compare it with FP32",
            "torchvision's own forward pass under autocast to bfloat16 was timed too few times to "
            "compare it with FP32",
            id="few rounds",
        ),
    ],
)
def test_each_way_of_inference_is_read_like_training(speedup, shipped, stock):
    ways = way(SHIPPED, speedup), way(STOCK, SLOWER)
    reading = read_result(report(inference=ways))
    assert f"Inference, one image at a time: {shipped}; torchvision's own" in reading
    reading = read_result(report(inference=(way(STOCK, speedup),)))
    assert reading.endswith(f"Inference, one image at a time: {stock}.")


def test_inference_that_was_not_measured_says_why_or_nothing():
    ways = way(SHIPPED, None, status="unavailable: made for cpu"), way(STOCK, None, status="oom")
    assert read_result(report(inference=ways)).endswith(
        "Inference, one image at a time: the inference graph of the video pipeline in bfloat16 is "
        "unavailable: made for cpu; torchvision's own forward pass under autocast to bfloat16 is "
        "oom."
    )
    assert "Inference" not in read_result(report())


def test_inference_in_emulated_bfloat16_is_no_way_of_the_videos():
    ways = way(SHIPPED, SLOWER, emulated=True), way(STOCK, SLOWER, emulated=True)
    shipped, stock = (
        read_result(report(inference=ways)).split("image at a time: ")[1].split("; tor")
    )
    emulated = "(this CPU has no bfloat16 instructions and emulates them"
    assert shipped.endswith(f"its speed {emulated}; videos are detected in FP32 here)")
    assert stock.endswith(f"its speed {emulated}).")


def test_tables_name_every_arm_with_its_noise_or_its_reason(caplog):
    caplog.set_level(logging.INFO, logger=log.name)
    log_tables(report(EQUAL, {**arm("tf32", NOT_COMPARED), **OOM}))
    lines = caplog.text.splitlines()
    assert any("amp_bf16" in line and "1.00x [0.98, 1.02]" in line for line in lines)
    assert any("within noise" in line for line in lines)
    assert any(line.split()[-2:] == ["tf32", "oom"] for line in lines)
    assert any("0.5000 [0.4000, 0.6000]" in line for line in lines)


def test_few_rounds_have_no_interval_in_the_table(caplog):
    caplog.set_level(logging.INFO, logger=log.name)
    log_tables(report(UNTOLD) | {"timed_steps": 6})
    rows = [line.split() for line in caplog.messages if "100.0" in line]
    assert rows[0] == ["fp32", "100.0", "110.0", "120.0", "1000", "1.00x", "1.00x", "baseline"]
    assert rows[1][5:] == ["1.20x", "1.00x", "too", "few", "rounds", "to", "tell"]


def test_a_single_round_without_interval_is_a_row(caplog):
    caplog.set_level(logging.INFO, logger=log.name)
    alone = {**UNTOLD, "ci95": None, "noise": None}
    log_tables(report(alone))
    assert "1.20x" in caplog.text
    assert "20 timed steps cannot tell training speeds apart" in read_result(report(alone))


def test_what_was_learnt_says_in_how_many_steps_and_what_the_final_loss_is(caplog):
    caplog.set_level(logging.INFO, logger=log.name)
    log_tables(report())
    lines = caplog.text.splitlines()
    words = "Learnt in 22 steps, 2 to warm up and 20 timed; the loss is the mean of the last 5"
    assert words in lines
    head = next(line for line in lines if "map_50 [range]" in line)
    assert "final loss [range]" in head
    assert "  map [range]" in head


@pytest.mark.parametrize(
    ("speedup", "title"),
    [
        (FASTER, "amp_bf16 is faster: 1.40x [1.30, 1.50] the speed of fp32"),
        (SLOWER, "amp_bf16 is slower: 0.70x [0.60, 0.80] the speed of fp32"),
        (
            EQUAL,
            "no difference between amp_bf16 and fp32 can be told\n(1.01x [0.97, 1.05], two equal "
            "arms: 1.00x [0.98, 1.02])",
        ),
        (UNTOLD, "20 timed steps cannot tell amp_bf16 and fp32 apart"),
        (NOT_COMPARED, ""),
    ],
)
def test_a_title_has_the_verdict_of_the_reading(speedup, title):
    assert speed_title(report(speedup)) == title


@pytest.mark.parametrize("place", [0, 1])
def test_a_title_has_no_speed_where_the_reading_disowns_it(place):
    made = report(FASTER)
    made["arms"][place]["status"] = "invalid: the loss was no finite number"
    name = made["arms"][place]["name"]
    assert speed_title(made) == f"{name} is invalid: speeds are worth nothing"
