"""What the benchmark may claim, tested with times that are planted instead of measured."""

import numpy as np
import pytest
import torch

from common.coco import load_split
from common.models import load_model
from phase2_optimization import benchmark_inference, conclusion, measuring
from phase2_optimization.builders import Workshop
from phase2_optimization.conclusion import conclude
from phase2_optimization.variants import BASELINE

CPU = torch.device("cpu")


def rows(report: dict, variant: str) -> dict[int, dict]:
    return {r["batch_size"]: r for r in report["results"] if r["variant"] == variant}


@pytest.fixture
def benchmark(model_path, data_path, tmp_path, monkeypatch):
    """A benchmark whose times are planted instead of measured."""

    def build(milliseconds: dict[str, float], noise: float, rounds: int = 40):
        random = np.random.default_rng(0)

        def planted(arms, **_):
            for arm in arms.values():
                arm()
            return {
                name: milliseconds[name.removesuffix(" (again)")]
                * np.exp(random.normal(0, noise, rounds))
                for name in arms
            }

        monkeypatch.setattr(measuring.timing, "measure_interleaved", planted)
        model, split = load_model(model_path, CPU).model, load_split(data_path, "val")
        images = benchmark_inference.timed_images(split, 2, None)
        shop = Workshop(CPU, tmp_path, [], 1)
        made = measuring.Benchmark(model, shop, split, images, rounds, 1.0, 2, 0)
        made.check(list(milliseconds), [1, 2], {})
        for batch_size in (1, 2):
            made.time(batch_size)
        return conclude(made, None, 0)

    return build


def test_a_clear_speed_up_wins_at_the_batch_size_of_its_best_throughput(benchmark):
    report = benchmark({BASELINE: 10.0, "channels_last": 5.0}, noise=0.02)
    assert report["fastest_variant"] == "channels_last"
    assert report["optimal_batch_size"] == 2  # the same time for twice the images
    assert "channels_last at batch size 2" in report["conclusion"]


def test_no_winner_inside_the_noise(benchmark):
    report = benchmark({BASELINE: 10.0, "channels_last": 9.9}, noise=0.2)
    assert report["fastest_variant"] is None
    assert report["conclusion"].startswith("No winner")
    assert report["optimal_batch_size"] == 2  # of the baseline
    assert rows(report, "channels_last")[1]["verdict"] == "within noise"


def test_a_slower_variant_is_called_slower_and_equals_are_named_together(benchmark):
    times = {BASELINE: 10.0, "channels_last": 20.0, "inference_graph": 5.0}
    report = benchmark({**times, "winograd": 5.0}, noise=0.03)
    assert rows(report, "channels_last")[1]["verdict"] == "slower"
    first, _, tied = report["conclusion"].partition("not told apart from it: ")
    assert {first.split()[1], tied.rstrip(".")} == {"inference_graph", "winograd"}


def test_equal_throughput_prefers_the_smaller_batch():
    made = measuring.Benchmark.__new__(measuring.Benchmark)
    made.checks = {BASELINE: measuring.Check()}
    random = np.random.default_rng(1)
    made.times = {(BASELINE, s): s * 10 * np.exp(random.normal(0, 0.05, 40)) for s in (1, 2)}
    made.rows = [
        {
            "variant": BASELINE,
            "batch_size": s,
            "status": "ok",
            "throughput_img_s": s / np.median(made.times[BASELINE, s]),
        }
        for s in (1, 2)
    ]
    assert conclusion._best_rows(made, 0)[BASELINE]["batch_size"] == 1
