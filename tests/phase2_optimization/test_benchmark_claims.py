"""What the benchmark may claim, tested with times that are planted instead of measured."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.coco import load_split
from common.comparison import NO_NOISE
from common.models import load_model
from phase2_optimization import ladder_rows, measuring
from phase2_optimization.arms import ArmFailedError, Timed, second_self
from phase2_optimization.builders import Workshop
from phase2_optimization.conclusion import conclude
from phase2_optimization.contest import close_rows, finalists
from phase2_optimization.inputs import timed_images
from phase2_optimization.ladder_rows import Check, Rows
from phase2_optimization.variants import BASELINE

CPU = torch.device("cpu")
EQUAL = {"ratio": 1.0, "ci95": (1.0, 1.0)}
PERFECT = {"matched": 1.0, "max_box_error_px": 0.0, "max_score_error": 0.0}


def rows(report: dict, variant: str) -> dict[int, dict]:
    return {r["batch_size"]: r for r in report["results"] if r["variant"] == variant}


def by_hand(rows: list[dict], **more) -> SimpleNamespace:
    """A benchmark with these rows."""
    rest = {"checks": {}, "noise": {}, "times": {}, "final": {}, "final_noise": EQUAL}
    return SimpleNamespace(rows=rows, processor_shares={}, memory_kind="", **{**rest, **more})


def row(variant: str, batch_size: int, img_s: float, verdict: str = "faster", **more) -> dict:
    """A valid row that is 1.5 times as fast as the baseline."""
    return {
        **{"variant": variant, "batch_size": batch_size, "verdict": verdict, "status": "ok"},
        **{"throughput_img_s": img_s, "drift_free_img_s": img_s, "rounds_id": batch_size},
        **{"speedup": {"ratio": 1.5, "ci95": [1.4, 1.6]}, **more},
    }


def ms_of(**calls: float) -> dict:
    """Nine rounds of winograd: (variant, batch size) -> milliseconds of a call; of_1=10."""
    return {("winograd", int(name[3:])): np.full(9, ms) for name, ms in calls.items()}


@pytest.fixture
def benchmark(model_path, data_path, tmp_path, monkeypatch):
    """A benchmark whose times are planted instead of measured: milliseconds of a call, whatever
    its batch size, or `per_image`, and then this many times `at_2`; the machine `drifts` by this
    factor between batch sizes. `lacks`: arms that run out of memory, once these others are beside
    them."""

    def build(
        milliseconds: dict[str, float],
        noise: float,
        rounds: int = 40,
        per_image: bool = False,
        drifts: float = 1.0,
        at_2: float = 1.0,
        lacks: dict[str, str] | None = None,
    ):
        random = np.random.default_rng(0)

        def planted(arms, **_):
            for name, arm in arms.items():
                if (lacks or {}).get(name) in arms:
                    failed, size = name.rsplit(maxsplit=1)
                    raise ArmFailedError((failed, int(size)), torch.OutOfMemoryError())
                arm()
            drift[0] *= drifts  # from one set of rounds to the next
            return {
                name: milliseconds[name.split()[0]]
                * ((1, 2 * at_2)[int(name.split()[-1]) - 1] if per_image else 1)
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
    """Batch size 2 is 1% faster, which is less than is ever called a difference."""
    times = {BASELINE: 10.0, "channels_last": 5.0}
    report = benchmark(times, noise=0.005, per_image=True, at_2=0.99)
    verdicts = {row["batch_size"]: row["verdict"] for row in report["timed_side_by_side"]}
    assert verdicts == {1: "within noise", 2: "fastest"}
    assert report["conclusion"].startswith("Chosen: channels_last at batch size 1, ")
    assert report["conclusion"].endswith(
        "; the smallest batch size that cannot be told from the fastest, channels_last at batch "
        "size 2."
    )


def test_a_finalist_that_may_not_win_is_named():
    """Its own rounds were too noisy to tell it from the baseline; the final ones were not."""
    found = [row("winograd", 1, 100.0), row("winograd", 2, 130.0, "within noise")]
    times, final = ms_of(of_1=10, of_2=10), ms_of(of_1=10, of_2=15)
    report = conclude(by_hand(found, times=times, final=final), None, 0)
    assert report["conclusion"] == (
        "Fastest: winograd at batch size 1, 100.0 images/s, 1.50x [1.40, 1.60] eager_fp32 at that "
        "batch size; faster side by side, but not told from eager_fp32 at that batch size: "
        "winograd at batch size 2."
    )


def test_a_finalist_that_is_faster_by_no_more_than_the_noise_is_not_named():
    found = [row("winograd", 1, 100.0), row("winograd", 2, 130.0, "within noise")]
    final, noise = ms_of(of_1=10, of_2=15), {"ratio": 1.0, "ci95": (0.7, 1.1)}
    made = by_hand(found, times=ms_of(of_1=10), final=final, final_noise=noise)
    assert "side by side" not in conclude(made, None, 0)["conclusion"]


@pytest.mark.parametrize(("apart", "verdict", "chosen"), [(1.01, "slower", 2), (1.1, None, 1)])
def test_the_final_rounds_tell_apart_what_is_beyond_their_noise(apart, verdict, chosen):
    """Batch size 2 is 1.05 times as fast; equal arms are that far apart, or further."""
    found = [row("winograd", 1, 100.0), row("winograd", 2, 105.0)]
    final, noise = ms_of(of_1=10.5, of_2=20), {"ratio": 1.0, "ci95": (1 / apart, apart)}
    made = by_hand(found, times=ms_of(of_1=10, of_2=19), final=final, final_noise=noise)
    report = conclude(made, None, 0)
    told = {each["batch_size"]: each["verdict"] for each in report["timed_side_by_side"]}
    assert told == {1: verdict or "within noise", 2: "fastest"}
    assert report["optimal_batch_size"] == chosen
    assert report["side_by_side_noise"] == noise


def test_the_sentence_tells_apart_no_more_than_a_step_does():
    """Equal arms are 1.25 apart, these 1.2."""
    anchor, names = (BASELINE, 1), (BASELINE, "channels_last", "folded_norms")
    checks = {name: Check(accuracy={"map": 0.5, "map_50": 0.8}) for name in names}
    made = Rows(checks, CPU, 0)
    calls = {anchor: 12, second_self(anchor): 15, (names[1], 1): 6, (names[2], 1): 5}
    ms = {pair: np.full(9, float(value)) for pair, value in calls.items()}
    for name in names:
        made.append(name, 1, Timed({pair: {} for pair in ms}, ms))
    report = conclude(by_hand(made.rows, times=made.times, noise=made.noise), None, 0)
    assert made.rows[2]["step"]["verdict"] == "within noise"
    assert report["fastest_variant"] == "folded_norms"
    assert report["conclusion"].endswith("; not told apart from it: channels_last.")


@pytest.mark.parametrize(("rounds_id", "is_compared"), [(7, True), (8, False)])
def test_times_of_other_rounds_are_no_ties(rounds_id, is_compared):
    """As many rounds, and as long; but of a variant that was timed alone."""
    found = [row("winograd", 1, 100.0, rounds_id=7), row("compiled", 1, 99.0, rounds_id=rounds_id)]
    times = {(one["variant"], 1): np.full(9, 10.0) for one in found}
    report = conclude(by_hand(found, times=times, noise={1: EQUAL}), None, 0)
    assert report["fastest_variant"] == "winograd"
    assert ("not told apart from it: compiled" in report["conclusion"]) == is_compared


def test_a_finalist_out_of_memory_loses_nothing_by_it(benchmark):
    """It was 4% faster before; alone, the slower one would be called the fastest."""
    report = benchmark(
        {BASELINE: 10.0, "channels_last": 5.0},
        noise=0.005,
        per_image=True,
        at_2=0.96,
        lacks={"channels_last 2": "channels_last 1"},
    )
    assert report["timed_side_by_side"] == []
    assert (report["fastest_variant"], report["optimal_batch_size"]) == ("channels_last", 2)
    assert report["conclusion"].startswith("Fastest: channels_last at batch size 2, ")
    assert report["conclusion"].endswith(
        "; not timed side by side, so judged by rounds timed apart: channels_last at batch size 1, "
        "channels_last at batch size 2."
    )


@pytest.mark.parametrize(("img_s", "chosen"), [(110.0, 4), (104.0, 2)])
def test_the_final_rounds_decide_between_those_that_are_in_them(img_s, chosen):
    """Batch size 4 is missing: it wins where it led before, and else it does not."""
    found = [row("winograd", 1, 100.0), row("winograd", 2, 105.0), row("winograd", 4, img_s)]
    times = ms_of(of_1=10, of_2=19, of_4=38)
    report = conclude(by_hand(found, times=times, final=ms_of(of_1=10, of_2=19)), None, 0)
    assert report["optimal_batch_size"] == chosen
    assert report["conclusion"].startswith(f"Fastest: winograd at batch size {chosen}, ")
    missing = "; not timed side by side, so judged by rounds timed apart: winograd at batch size 4."
    assert report["conclusion"].endswith(missing)


def test_a_second_self_out_of_memory_leaves_the_finalists_untold(benchmark):
    report = benchmark(
        {BASELINE: 10.0, "channels_last": 5.0},
        noise=0.005,
        per_image=True,
        at_2=0.95,
        lacks={"channels_last (again) 1": "channels_last 1"},
    )
    verdicts = {row["batch_size"]: row["verdict"] for row in report["timed_side_by_side"]}
    assert verdicts == {1: NO_NOISE, 2: "fastest"}
    assert report["side_by_side_noise"] is None
    assert report["optimal_batch_size"] == 1
    assert report["conclusion"].endswith("; the noise could not be measured side by side.")


@pytest.mark.parametrize(
    ("lacking", "start", "end"),
    [
        ((1, 2), "No winner: the noise ", f"1, 2, so no variant can be told from {BASELINE}."),
        (
            (2,),
            "Fastest: folded_norms at batch size 1, ",
            "; the noise could not be measured at batch size 2.",
        ),
    ],
)
def test_a_second_baseline_out_of_memory_is_told(benchmark, lacking, start, end):
    lacks = {f"{BASELINE} (again) {size}": f"{BASELINE} {size}" for size in lacking}
    times = {BASELINE: 10.0, "channels_last": 5.0, "folded_norms": 2.0}
    report = benchmark(times, noise=0.02, per_image=True, lacks=lacks)
    assert report["conclusion"].startswith(start)
    assert report["conclusion"].endswith(end)
    assert "beyond the noise" not in report["conclusion"]
    for size in lacking:
        for name in ("channels_last", "folded_norms"):
            found = rows(report, name)[size]
            assert found["verdict"] == found["step"]["verdict"] == NO_NOISE


def test_nothing_faster_where_the_noise_is_known_is_not_all_that_is_told(benchmark):
    lacks = {f"{BASELINE} (again) 2": f"{BASELINE} 2"}
    report = benchmark({BASELINE: 10.0, "channels_last": 10.0}, noise=0.02, lacks=lacks)
    assert report["conclusion"] == (
        f"No winner: no valid variant is faster than {BASELINE} beyond the noise; the noise could "
        "not be measured at batch size 2."
    )


def test_figures_are_those_of_the_final_rounds():
    """The machine was half as fast when batch size 2 was timed by itself."""
    p90 = {"latency_ms": {"p90": 40.0}}
    found = [row("winograd", 1, 90.0, **p90), row("winograd", 2, 55.0, drift_free_img_s=98, **p90)]
    made = by_hand(found, times=ms_of(of_1=11, of_2=36), final=ms_of(of_1=11, of_2=20))
    report = conclude(made, 50.0, 0)
    assert "winograd at batch size 2, 100.0 images/s" in report["conclusion"]
    assert report["best_within_latency_budget"] == {
        **{"variant": "winograd", "batch_size": 2},
        **{"throughput_img_s": pytest.approx(100), "p90_ms": 40.0},
    }


def test_the_winners_batch_size_is_the_one_to_use():
    """Timed apart, batch size 2 seemed 5% faster; side by side it is not."""
    found = [row("winograd", 1, 100.0), row("winograd", 2, 105.0)]
    times, final = ms_of(of_1=10, of_2=19), ms_of(of_1=10, of_2=20)
    made = by_hand(found, times=times, final=final, checks={"winograd": Check()})
    report = conclude(made, None, 0)
    assert report["optimal_batch_size"] == 1
    assert report["optimal_batch_size_by_variant"] == {"winograd": 1}


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


def test_batch_sizes_far_apart_meet_as_well_if_they_are_the_best_few(benchmark):
    """How far apart they seem may be due to a neighbour that came in between."""
    report = benchmark({BASELINE: 10.0, "channels_last": 5.0}, noise=0.02)
    assert [row["batch_size"] for row in report["timed_side_by_side"]] == [1, 2]


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({1: 10.0, 2: 20.0, 4: 30.0, 8: 40.0}, {2, 4, 8}),
        ({1: 39.0, 2: 20.0, 4: 37.0, 8: 40.0, 16: 38.0, 32: 35.9}, {1, 4, 8, 16}),
        ({1: 10.0}, {1}),
    ],
)
def test_the_best_three_and_all_that_are_close_are_timed_once_more(speeds, expected):
    rows = [
        {"batch_size": size, "speedup": None, "drift_free_img_s": img_s}
        for size, img_s in speeds.items()
    ]
    assert {row["batch_size"] for row in close_rows(rows)} == expected
