"""The inference benchmark on a tiny model: its report, its guards and how it fails."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from common import processor_share
from common.cli import UserError
from common.coco import load_split
from common.model_and_data import load_model_and_data
from phase2_optimization import batch_search, benchmark_inference, measuring
from phase2_optimization.inputs import timed_images
from phase2_optimization.variants import BASELINE, VARIANTS, VariantUnavailableError
from tests.phase2_runs import altered, rows_of

CPU = torch.device("cpu")
EXACT_ON_CPU = [
    "eager_fp32",
    "channels_last",
    "folded_norms",
    "cached_anchors",
    "roi_pool",
    "selected_first",
    "batched_transform",
    "inference_graph",
    "winograd",
]
LEFT_OUT_ON_CPU = {"compiled": "add --compile", "bf16_compiled": "add --compile"}


# --- the report -------------------------------------------------------------------------------


@pytest.fixture
def no_runtimes(replace_variant):
    """Exporting takes long and has tests of its own."""

    def absent(model, workshop):
        raise VariantUnavailableError("left out of this test")

    for name, variant in VARIANTS.items():
        if CPU.type in variant.devices and name not in EXACT_ON_CPU:
            replace_variant(name, absent)


@pytest.mark.slow
def test_every_variant_gets_a_row_with_the_keys_of_the_contract(run, no_runtimes, tmp_path):
    status, report = run("--num-iterations", "7")
    assert status == 0
    assert report["schema"] == "inference_benchmark/1"
    assert report["complete"] is True
    assert report["image_size"] == [64, 48]  # the most common size of the val split
    on_cpu = [name for name, variant in VARIANTS.items() if "cpu" in variant.devices]
    assert [(r["variant"], r["batch_size"]) for r in report["results"]] == [
        (name, size) for size in (1, 2) for name in on_cpu
    ]
    for name, reason in LEFT_OUT_ON_CPU.items():
        assert reason in rows_of(report, name)[1]["status"]
    for row in (row for row in report["results"] if row["variant"] in EXACT_ON_CPU):
        assert row["iterations"] == 7
        assert set(row["latency_ms"]) == {"p50", "p90", "p99", "mean"}
        expected = row["batch_size"] / row["latency_ms"]["p50"] * 1000
        assert row["throughput_img_s"] == pytest.approx(expected)
        low, high = row["speedup"]["ci95"]
        assert low <= row["speedup"]["ratio"] <= high
        assert row["parity"]["matched"] >= 0.99
        assert row["parity"]["max_box_error_px"] < 1e-2
        assert 0 <= row["map"] <= row["map_50"] <= 1
        assert row["peak_memory_mib"] > 10
        assert row["status"] == "ok"
    assert rows_of(report, BASELINE)[1]["speedup"] == {"ratio": 1.0, "ci95": [1.0, 1.0]}
    below = {name: rows_of(report, name)[1]["step"]["over"] for name in EXACT_ON_CPU[1:]}
    assert below == dict(zip(EXACT_ON_CPU[1:], EXACT_ON_CPU, strict=False))  # a ladder
    assert set(report["noise"]) == {"1", "2"}
    assert report["optimal_batch_size"] in (1, 2)
    assert set(report["optimal_batch_size_by_variant"]) == set(EXACT_ON_CPU)
    assert report["latency_budget_ms"] is report["best_within_latency_budget"] is None
    assert all(report["variants"][name]["build_s"] > 0 for name in EXACT_ON_CPU)
    with Image.open(tmp_path / "inference_benchmark.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 1000


# --- batch sizes ------------------------------------------------------------------------------


def test_the_best_batch_size_is_looked_for(run, monkeypatch, capsys):
    monkeypatch.setattr(batch_search, "MAX_BATCH_SIZE", 4)
    monkeypatch.setattr(batch_search.search, "__defaults__", (None, 4))
    status, report = run("--variants", BASELINE, "--batch-sizes", "auto", "--num-iterations", "7")
    assert status == 0
    tried = sorted(rows_of(report, BASELINE))
    assert tried[0] == 1
    assert tried[-1] <= 4
    assert len(tried) > 1
    assert report["optimal_batch_size"] in tried
    printed = capsys.readouterr().out
    assert printed.count("\nbatch size 1 ") == 1  # not again after the search
    assert {f"batch size {size}" for size in tried} <= set(report["processor_share"])
    finals = report["timed_side_by_side"]
    assert ("side by side" in report["processor_share"]) == bool(finals)
    assert ("against the fastest" in printed) == bool(finals)
    for row in finals:
        low, high = row["throughput_ci95"]
        assert low <= row["throughput_img_s"] <= high
        assert f"{row['throughput_img_s']:.2f} [{low:.2f}, {high:.2f}]" in printed


def test_a_batch_size_that_does_not_fit_ends_the_search(run, replace_variant):
    def fail(images, found):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    replace_variant(BASELINE, altered(fail))
    status, report = run("--variants", BASELINE, "--batch-sizes", "auto", "--num-iterations", "7")
    assert status == 0
    found = rows_of(report, BASELINE)
    assert {size: row["status"] for size, row in found.items() if size > 2} in (
        {3: "oom", 4: "oom"},
        {4: "oom"},
        {},  # two images were not faster than one by themselves
    )


@pytest.mark.parametrize(("budget", "is_met"), [("1000000", True), ("0.001", False)])
def test_the_best_within_a_latency_budget(run, budget, is_met):
    _, report = run("--variants", BASELINE, "--latency-budget-ms", budget)
    best = report["best_within_latency_budget"]
    assert report["latency_budget_ms"] == float(budget)
    if is_met:
        row = rows_of(report, BASELINE)[best["batch_size"]]
        assert best["p90_ms"] == row["latency_ms"]["p90"]
        final = {r["batch_size"]: r["throughput_img_s"] for r in report["timed_side_by_side"]}
        expected = final.get(best["batch_size"], row["throughput_img_s"])
        assert best["throughput_img_s"] == pytest.approx(expected)
        highest = max(r["drift_free_img_s"] for r in report["results"])
        assert highest == row["drift_free_img_s"] or best["batch_size"] in final  # decided there
        several = len({r["batch_size"] for r in report["results"]}) > 1
        assert several == bool(final), "the best few meet in the end"
    else:
        assert best is None


def test_the_time_budget_stops_early_and_the_iterations_made_are_told(run):
    _, report = run("--variants", BASELINE, "--num-iterations", "500", "--time-budget-s", "0.001")
    assert {row["iterations"] for row in report["results"]} == {7}


@pytest.mark.parametrize(("size", "expected"), [("80x40", [80, 40]), ("64", [64, 64])])
def test_images_can_be_resized(run, size, expected):
    _, report = run("--variants", BASELINE, "--image-size", size)
    assert report["image_size"] == expected


def test_help_says_what_a_single_size_is(capsys):
    with pytest.raises(SystemExit):
        benchmark_inference.main(["--help"])
    assert "one number is a square: 640 is 640x640" in " ".join(capsys.readouterr().out.split())


def test_a_shared_processor_is_told_once_with_the_worst_share():
    shares = {"batch size 1": 0.97, "batch size 2": 0.8, "side by side": 0.52}
    (warning,) = benchmark_inference.waiting_warnings(shares)
    assert warning.startswith("side by side: the main thread ran 52% of the time")
    assert "Less so during: batch size 2." in warning
    assert "batch size 1" not in warning
    assert "may have misled the search" in warning
    (alone,) = benchmark_inference.waiting_warnings({"batch size 1": 0.5})
    assert "Less so" not in alone
    assert "search" not in alone
    assert benchmark_inference.waiting_warnings({"batch size 1": 0.9}) == []


def test_a_shared_processor_is_warned_of(run, monkeypatch, capsys):
    monkeypatch.setattr(processor_share, "thread_time", lambda: 0.0)
    _, report = run("--variants", BASELINE, "--batch-sizes", "1")
    assert report["processor_share"] == {"batch size 1": 0.0}
    (warning,) = [text for text in report["warnings"] if text.startswith("batch size 1: ")]
    assert f"warning: {warning}" in capsys.readouterr().out


def test_timed_images_have_one_size_and_are_as_many_as_needed(data_path):
    split = load_split(data_path, "val")
    assert [i.shape for i in timed_images(split, 2, None)] == [(48, 64, 3)] * 3
    resized = timed_images(split, 2, (32, 24))
    assert [image.shape for image in resized] == [(24, 32, 3)] * 4


# --- variants that cannot run, runs that are stopped ---------------------------------------------


def test_a_variant_that_cannot_run_says_why(run, replace_variant):
    def refuse(model, workshop):
        raise VariantUnavailableError("no compiler found")

    replace_variant("channels_last", refuse)
    status, report = run("--variants", "channels_last")
    assert status == 0
    assert rows_of(report, "channels_last")[1]["status"] == "unavailable: no compiler found"


def test_float16_on_a_cpu_is_unavailable(run):
    _, report = run("--variants", "fp16")
    assert rows_of(report, "fp16")[1]["status"] == "unavailable: made for cuda, not cpu"


def test_an_interrupted_run_keeps_its_rows_and_says_so(run, monkeypatch):
    measured = measuring.Benchmark.time

    def interrupted(self, batch_size):
        if batch_size == 2:
            raise KeyboardInterrupt
        measured(self, batch_size)

    monkeypatch.setattr(measuring.Benchmark, "time", interrupted)
    status, report = run("--variants", BASELINE)
    assert status == 130
    assert report["complete"] is False
    assert [row["batch_size"] for row in report["results"]] == [1]
    assert report["conclusion"].startswith("So far, as it was stopped: ")


# --- what the user can get wrong --------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch-sizes", "0"],
        ["--batch-sizes", "-1"],
        ["--batch-sizes", "a"],
        ["--batch-sizes", ""],
        ["--batch-sizes", "1,,2"],
        ["--batch-sizes", "best"],
        ["--latency-budget-ms", "0"],
        ["--num-iterations", "0"],
        ["--time-budget-s", "nan"],
        ["--image-size", "0"],
        ["--image-size", "640x"],
        ["--image-size", "1000000"],
        ["--variants", ","],
        ["--batchsizes", "1"],
    ],
    ids=" ".join,
)
def test_bad_options_end_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark_inference.main(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_an_unknown_variant_is_refused_with_the_known_ones(run, capsys):
    assert run("--variants", "warp_drive") == (2, None)
    error = capsys.readouterr().err
    assert error.startswith("error: --variants: 'warp_drive' is unknown – choose from eager_fp32, ")
    assert "inference_graph" in error


def test_a_misspelt_variant_is_answered_with_the_nearest(run, capsys):
    assert run("--variants", "channels_last,inferense_graph") == (2, None)
    error = capsys.readouterr().err
    assert "'inferense_graph' is unknown – did you mean inference_graph? choose from" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_refused(run, capsys):
    assert run("--device", "cuda") == (2, None)
    assert "no CUDA device found" in capsys.readouterr().err


def test_a_missing_model_is_refused(run, tmp_path, capsys):
    assert run("--model-path", str(tmp_path / "none.pth")) == (2, None)
    assert "no such file" in capsys.readouterr().err


def test_data_of_other_classes_is_refused(data_path, model_path, tmp_path):
    copy = Path(shutil.copytree(data_path, tmp_path / "coco"))
    (file,) = (copy / "annotations").glob("*val*")
    file.write_text(file.read_text(encoding="utf-8").replace('"disc"', '"ball"'), encoding="utf-8")
    with pytest.raises(UserError, match="knows the classes disc, box, the data has ball, box"):
        load_model_and_data(model_path, copy, CPU, ["val"])
