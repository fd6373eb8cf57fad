"""What the benchmark may claim, tested with times that are planted instead of measured."""

import numpy as np
import pytest
import torch

from common.coco import load_split
from common.models import load_model
from phase2_optimization import measuring
from phase2_optimization.builders import Workshop
from phase2_optimization.conclusion import conclude, finalists
from phase2_optimization.inputs import timed_images
from phase2_optimization.variants import BASELINE

CPU = torch.device("cpu")


def rows(report: dict, variant: str) -> dict[int, dict]:
    return {r["batch_size"]: r for r in report["results"] if r["variant"] == variant}


@pytest.fixture
def benchmark(model_path, data_path, tmp_path, monkeypatch):
    """A benchmark whose times are planted instead of measured: milliseconds of a call, whatever
    its batch size, or `per_image`; and the machine `drifts` by this factor between batch sizes."""

    def build(
        milliseconds: dict[str, float],
        noise: float,
        rounds: int = 40,
        per_image: bool = False,
        drifts: float = 1.0,
    ):
        random = np.random.default_rng(0)

        def planted(arms, **_):
            for arm in arms.values():
                arm()
            drift[0] *= drifts  # from one set of rounds to the next
            return {
                name: milliseconds[name.split()[0]]
                * (int(name.split()[-1]) if per_image else 1)
                * drift[0]
                * np.exp(random.normal(0, noise, rounds))
                for name in arms
            }

        drift = [1.0]
        monkeypatch.setattr(measuring.timing, "warm_up", lambda *_: 0)
        monkeypatch.setattr(measuring.timing, "measure_interleaved", planted)
        model, split = load_model(model_path, CPU).model, load_split(data_path, "val")
        images = timed_images(split, 2, None)
        shop = Workshop(CPU, tmp_path, [], 1)
        made = measuring.Benchmark(model, shop, split, images, rounds, 1.0, 2, 0)
        made.check(list(milliseconds), [1, 2], {})
        for batch_size in (1, 2):
            made.time(batch_size)
        made.time_finalists(finalists(made, None))
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


def test_equal_throughput_prefers_the_smaller_batch(benchmark):
    times = {BASELINE: 10.0, "channels_last": 5.0}
    report = benchmark(times, noise=0.02, per_image=True)
    assert (report["fastest_variant"], report["optimal_batch_size"]) == ("channels_last", 1)
    assert {row["batch_size"] for row in report["timed_side_by_side"]} == {1, 2}


@pytest.mark.parametrize("drifts", [0.95, 1.05])
def test_a_drift_between_batch_sizes_decides_nothing(benchmark, drifts):
    """Batch size 2 would look 5% better or worse than it is, as it is timed later."""
    times = {BASELINE: 10.0, "channels_last": 5.0}
    report = benchmark(times, noise=0.005, per_image=True, drifts=drifts)
    speeds = [rows(report, "channels_last")[size]["throughput_img_s"] for size in (1, 2)]
    assert abs(speeds[1] / speeds[0] - 1) > 0.04
    assert report["optimal_batch_size"] == 1


def test_batch_sizes_far_apart_need_no_rounds_of_their_own(benchmark):
    report = benchmark({BASELINE: 10.0, "channels_last": 5.0}, noise=0.02)
    assert report["timed_side_by_side"] == []
