"""The figures of a precision comparison: drawn from lists and from a report's own JSON."""

import json

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from common.comparison import median_interval
from phase2_optimization import amp_plot, mixed_precision

NAMES = ("fp32", "tf32", "amp_fp16", "amp_bf16", "amp_stock")


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure that would be saved: writing the PNG is what takes long."""
    figures = []
    monkeypatch.setattr(amp_plot, "_save", lambda figure, path: figures.append(figure.axes))
    yield figures
    plt.close("all")


def made_up_report(*, seeds_of_amp: int = 3, nan: bool = False) -> dict:
    random = np.random.default_rng(0)
    speedup = {"ratio": 1.5, "ci95": [1.4, 1.6], "noise": None, "verdict": "faster"}
    arms = []
    for place, name in enumerate(NAMES):
        seeds = 3 if name == "fp32" else seeds_of_amp
        losses = (1 + random.random((seeds, 12))).tolist()
        if nan and name == "amp_fp16":
            losses[0][4] = None
        values = (0.8 + random.random(seeds) / 10).tolist()
        arms.append(
            {
                "name": name,
                "status": "ok",
                "emulated": name == "amp_bf16",
                "step_times_ms": (100 + 200 * place + 9 * random.random(10)).tolist(),
                "speedup": speedup,
                "over_seeds": {"map_50": {"values": values}},
                "runs": [{"seed": seed, "loss": loss} for seed, loss in enumerate(losses)],
            }
        )
    return {
        "architecture": "demo",
        "batch_size": 4,
        "steps": 12,
        "warmup_steps": 2,
        "timed_steps": 10,
        "final_loss_is_the_mean_of_steps": 5,
        "seeds": [0, 1, 2],
        "evaluated_images": 24,
        "baseline": "fp32",
        "usual_amp": "amp_bf16",
        "arms": [*arms, {"name": "other", "step_times_ms": []}],
        "environment": {
            "device": "cuda:0",
            "device_name": "A GPU",
            "threads": 2,
            "packages": {"torch": "2.15.0"},
        },
    }


def test_the_specifications_function_writes_a_png(tmp_path):
    path = tmp_path / "new" / "picture.png"
    mixed_precision.plot_optimization_results([10.0, 11.0, 12.0], [5.0, 6.0], path)
    with Image.open(path) as picture:
        picture.load()
        assert picture.width > 2 * picture.height
    assert not plt.get_fignums()


def test_the_specifications_function_draws_its_three_panels(tmp_path, drawn):
    mixed_precision.plot_optimization_results([10.0, 11.0, 12.0], [5.0, 6.0], tmp_path / "p.png")
    spread, bars, course = drawn[0]
    assert [text.get_text() for text in spread.get_xticklabels()] == ["FP32", "AMP"]
    assert [patch.get_height() for patch in bars.patches] == [11.0, 5.5]
    assert bars.get_title() == "median of AMP: 2.00x the speed of FP32\n(not paired: no interval)"
    assert bars.get_ylabel() == "median step (ms)"
    assert [line.get_ydata().tolist() for line in course.lines] == [[10, 11, 12], [5, 6]]


@pytest.mark.parametrize(
    ("steps", "title"),
    [
        (1, "one timed step cannot tell AMP and FP32 apart"),
        (6, "6 timed steps cannot tell AMP and FP32 apart"),
        (7, "AMP is faster: 2.00x [2.00, 2.00] the speed of FP32"),
    ],
)
def test_no_ratio_and_no_interval_is_drawn_of_steps_that_carry_none(tmp_path, drawn, steps, title):
    times = [10.0 + number for number in range(steps)]
    half = [ms / 2 for ms in times]
    mixed_precision.plot_optimization_results(times, half, tmp_path / "p.png")
    bars = drawn[0][1]
    assert bars.get_title() == title
    assert ("interval" in bars.get_ylabel()) is (steps == 7)
    assert len(bars.containers) == (4 if steps == 7 else 2)  # two bars, and their intervals


def test_equal_lists_are_not_told_apart(tmp_path, drawn):
    times = [10.0, 11.0, 9.0, 10.0, 12.0, 10.0, 9.0]
    mixed_precision.plot_optimization_results(times, times, tmp_path / "p.png")
    title = "no difference between AMP and FP32 can be told\n(1.00x [1.00, 1.00])"
    assert drawn[0][1].get_title() == title


def test_intervals_of_the_medians_are_those_of_runs_of_steps(tmp_path, drawn):
    """Slow spells last for several steps, so single steps may not be resampled."""
    spells = 10 + 2 * np.sin(np.arange(48) * 2 * np.pi / 24)
    mixed_precision.plot_optimization_results(spells, [7.0], tmp_path / "p.png")
    bars = drawn[0][1]
    assert len(bars.containers) == 3  # two bars, and an interval where there is more than one step
    (segment,) = bars.containers[1].lines[2][0].get_segments()
    _, interval = median_interval(spells)
    assert segment[:, 1] == pytest.approx(interval)


def test_the_specifications_function_has_a_place_by_default(tmp_path, monkeypatch):
    """Called as the specification does, with two lists."""
    drawn = []
    monkeypatch.setattr(amp_plot, "draw_times", lambda times, path: drawn.append(path))
    mixed_precision.plot_optimization_results([1.0], [1.0])
    assert drawn[0].parts[-2:] == ("metrics", "optimization_comparison.png")


def test_a_report_is_drawn_with_every_arm_that_has_times(tmp_path, drawn):
    report = json.loads(json.dumps(made_up_report()))  # as it is read back
    amp_plot.draw(report, tmp_path / "picture.png")
    spread, bars, course, losses, scores = drawn[0]
    assert [text.get_text() for text in spread.get_xticklabels()] == list(NAMES)
    assert len(bars.patches) == len(course.lines) == 5
    assert course.get_yscale() == "log"  # from 100 to 900 ms
    labels = losses.get_legend_handles_labels()[1]
    assert labels[:2] == ["fp32, range of 3 seeds", "fp32, mean of 3 seeds"]
    assert len(scores.collections) == 5
    assert bars.get_title() == "amp_bf16 is faster: 1.50x [1.40, 1.60] the speed of fp32"
    assert scores.get_legend_handles_labels()[1] == ["range of fp32's seeds"]


def test_the_steps_of_the_final_loss_are_marked(tmp_path, drawn):
    amp_plot.draw(made_up_report(), tmp_path / "picture.png")
    losses = drawn[0][3]
    handles, labels = losses.get_legend_handles_labels()
    marked = handles[labels.index("final loss: mean of the last 5 steps")]
    # steps 8 to 12
    assert (marked.get_x(), marked.get_x() + marked.get_width()) == (7.5, 12.5)
    assert losses.get_xlabel() == "step; the first 2 to warm up, not timed"


def test_a_hair_of_a_difference_in_map_50_does_not_fill_the_picture(tmp_path, drawn):
    report = made_up_report()
    for arm in report["arms"][:-1]:
        arm["over_seeds"]["map_50"]["values"] = [0.9, 0.9001, 0.9002]
    amp_plot.draw(report, tmp_path / "picture.png")
    assert drawn[0][4].get_ylim() == pytest.approx((89.01, 91.01), abs=0.002)


def test_lines_of_the_losses_are_of_seeds_that_all_arms_have(tmp_path, drawn):
    report = made_up_report(seeds_of_amp=1)
    amp_plot.draw(report, tmp_path / "picture.png")
    losses = drawn[0][3]
    labels = losses.get_legend_handles_labels()[1]
    assert labels[:3] == ["fp32, range of 3 seeds", "fp32, seed 0", "tf32, seed 0"]
    assert losses.lines[0].get_ydata().tolist() == report["arms"][0]["runs"][0]["loss"]


def test_a_loss_that_is_no_number_is_a_gap(tmp_path, drawn):
    amp_plot.draw(made_up_report(nan=True), tmp_path / "picture.png")
    line = next(line for line in drawn[0][3].lines if line.get_label().startswith("amp_fp16"))
    assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [4]
