"""What the benchmark may claim, tested with times that are planted instead of measured."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.coco import load_split
from common.models import load_model
from phase2_optimization import ladder_rows, measuring
from phase2_optimization.builders import Workshop
from phase2_optimization.conclusion import conclude, finalists
from phase2_optimization.inputs import timed_images
from phase2_optimization.variants import BASELINE

CPU = torch.device("cpu")
PERFECT = {"matched": 1.0, "max_box_error_px": 0.0, "max_score_error": 0.0}


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


@pytest.mark.parametrize("slower", [1.0, 4.0])
def test_a_search_is_not_misled_by_a_neighbour(
    model_path, data_path, tmp_path, monkeypatch, slower
):
    """A call takes 10 ms + 1 ms an image up to 8 images, 4 ms for each further one; from batch size
    4 on a neighbour takes its part. Timed apart, 4 images take 14 * 4 ms, and the search ends."""

    def planted(arms, **_):
        sizes = {name: int(name.split()[-1]) for name in arms}
        factor = slower if max(sizes.values()) >= 4 else 1.0
        return {
            name: np.full(7, factor * (10 + size + 3 * max(0, size - 8)))
            for name, size in sizes.items()
        }

    monkeypatch.setattr(measuring.timing, "warm_up", lambda *_: 0)
    monkeypatch.setattr(measuring.timing, "measure_interleaved", planted)
    monkeypatch.setattr(measuring.Benchmark, "_check_memory", lambda *_: None)
    monkeypatch.setattr(ladder_rows.Rows, "_parity", lambda *_: PERFECT)
    model, split = load_model(model_path, CPU).model, load_split(data_path, "val")
    shop = Workshop(CPU, tmp_path, [], 1)
    made = measuring.Benchmark(model, shop, split, timed_images(split, 2, None), 7, 1.0, 2, 0)
    made.check([BASELINE], [1], {})
    made.time(1)
    assert made.search(BASELINE, None) == [1, 2, 4, 6, 8, 12, 16]
    found = rows({"results": made.rows}, BASELINE)
    assert found[8]["drift_free_img_s"] == pytest.approx(8 / 18 * 1000)
    assert found[8]["throughput_img_s"] == pytest.approx(8 / 18 * 1000 / slower)


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


@pytest.mark.parametrize("drifts", [0.4, 2.5])
def test_a_neighbour_that_comes_or_goes_between_batch_sizes_decides_nothing(benchmark, drifts):
    """Twice the images in the same time; timed apart, batch size 2 seems 0.8 or 5 times as fast."""
    report = benchmark({BASELINE: 10.0, "channels_last": 5.0}, noise=0.02, drifts=drifts)
    first, second = (rows(report, "channels_last")[size] for size in (1, 2))
    apart = second["throughput_img_s"] / first["throughput_img_s"]
    assert apart == pytest.approx(2 / drifts, rel=0.05)
    assert second["drift_free_img_s"] / first["drift_free_img_s"] == pytest.approx(2, rel=0.05)
    assert first["drift_free_img_s"] == pytest.approx(first["throughput_img_s"], rel=0.05)
    assert (report["optimal_batch_size"], report["fastest_variant"]) == (2, "channels_last")
    assert report["optimal_batch_size_by_variant"] == {BASELINE: 2, "channels_last": 2}


def test_a_smaller_batch_is_not_called_the_fastest(benchmark):
    times = {BASELINE: 10.0, "channels_last": 5.0}
    report = benchmark(times, noise=0.02, per_image=True)
    finals = {row["batch_size"]: row for row in report["timed_side_by_side"]}
    (leading,) = (size for size, row in finals.items() if row["verdict"] == "fastest")
    if leading == 1:
        assert report["conclusion"].startswith("Fastest: channels_last at batch size 1, ")
        return
    assert report["conclusion"].startswith("Chosen: channels_last at batch size 1, ")
    assert report["conclusion"].endswith(
        "; the smallest batch size that cannot be told from the fastest, channels_last at batch "
        "size 2."
    )


def test_a_finalist_that_may_not_win_is_named():
    """Its own rounds were too noisy to tell it from the baseline; the final ones were not."""
    made = SimpleNamespace(rows=[], checks={}, noise={}, processor_shares={}, memory_kind="")
    made.times = {("winograd", size): np.full(9, 10.0) for size in (1, 2)}
    made.final = {("winograd", 1): np.full(9, 10.0), ("winograd", 2): np.full(9, 15.0)}
    for size, verdict, img_s in ((1, "faster", 100.0), (2, "within noise", 130.0)):
        row = {"variant": "winograd", "batch_size": size, "verdict": verdict, "status": "ok"}
        row |= {"throughput_img_s": img_s, "drift_free_img_s": img_s}
        made.rows.append(row | {"speedup": {"ratio": 1.5, "ci95": [1.4, 1.6]}})
    report = conclude(made, None, 0)
    assert report["conclusion"] == (
        "Fastest: winograd at batch size 1, 100.0 images/s, 1.50x [1.40, 1.60] eager_fp32 at that "
        "batch size; faster side by side, but not told from eager_fp32 at that batch size: "
        "winograd at batch size 2."
    )


def test_the_final_rounds_are_told_with_their_intervals(benchmark):
    times = {BASELINE: 10.0, "channels_last": 5.0}
    report = benchmark(times, noise=0.02, per_image=True)
    for row in report["timed_side_by_side"]:
        low, high = row["throughput_ci95"]
        assert low < row["throughput_img_s"] < high
        assert row["throughput_img_s"] == pytest.approx(200, rel=0.02)  # 5 ms an image
        assert row["latency_ms"]["p50"] == pytest.approx(5 * row["batch_size"], rel=0.02)
        is_fastest = row["verdict"] == "fastest"
        assert row["speedup"]["ratio"] == pytest.approx(1, abs=0.02)
        assert is_fastest == (row["speedup"]["ci95"] == [1.0, 1.0])
        assert is_fastest or row["verdict"] == "within noise"
    assert [row["batch_size"] for row in report["timed_side_by_side"]] == [1, 2]


def test_a_step_has_a_verdict_of_its_own(benchmark):
    """The second rung is faster than the baseline, and nothing by itself."""
    times = {BASELINE: 10.0, "channels_last": 5.0, "folded_norms": 5.0, "roi_pool": 8.0}
    report = benchmark(times, noise=0.02)
    found = {name: rows(report, name)[1] for name in times}
    assert [found[name]["verdict"] for name in list(times)[1:]] == ["faster"] * 3
    steps = {name: found[name]["step"] for name in list(times)[1:]}
    assert [step["verdict"] for step in steps.values()] == ["faster", "within noise", "slower"]
    assert [step["over"] for step in steps.values()] == list(times)[:3]


def test_batch_sizes_far_apart_need_no_rounds_of_their_own(benchmark):
    report = benchmark({BASELINE: 10.0, "channels_last": 5.0}, noise=0.02)
    assert report["timed_side_by_side"] == []
