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
    speedup = {"ratio": 1.5, "ci95": [1.4, 1.6]}
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
    assert bars.get_title() == "Speed-up of AMP: 2.00x"  # no rounds to pair, so no interval
    assert [line.get_ydata().tolist() for line in course.lines] == [[10, 11, 12], [5, 6]]


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
