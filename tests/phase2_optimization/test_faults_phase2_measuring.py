"""Every known way of a run of phase 2 to fail, by the number of its case: while it measures.

Arms that fail or find something else, clocks that mislead, a GPU that is disturbed.
"""

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from common import gpu_state, timing
from common.models import Detections
from phase2_optimization import amp_comparison, gpu_profiler
from phase2_optimization.amp_arm import TrainingArm
from phase2_optimization.gpu_profiler import GPUProfiler
from phase2_optimization.variants import BASELINE, VARIANTS, stock_predictor
from tests.phase2_runs import (
    SCRIPTS,
    STAND_INS,
    arms_of,
    contents,
    read,
    rows_of,
    run,
    shorten,
    write_older,
)

each_script = pytest.mark.parametrize("script", SCRIPTS)


@pytest.fixture
def go(model_path, data_path, tmp_path, monkeypatch):
    """Runs a script with stand-ins for the precisions, and pictures only where a test `draws`.

    Returns its exit status and its report, None where there is none.
    """
    shorten(monkeypatch)
    monkeypatch.setattr(amp_comparison, "precisions", lambda device: dict(STAND_INS))
    monkeypatch.setattr(amp_comparison.AmpComparison, "time_inference", lambda self: None)

    def start(script: str, *more: object, draws: bool = False) -> tuple[int, dict[str, Any] | None]:
        if not draws:
            monkeypatch.setattr(SCRIPTS[script].plot, "draw", lambda *_: None)
        status = run(script, model_path, data_path, tmp_path, *more)
        is_there = (tmp_path / f"{SCRIPTS[script].report}.json").exists()
        return status, read(tmp_path, script) if is_there else None

    return start


@pytest.fixture
def alter(monkeypatch):
    """Lets the stock predictor whose detections go through `change(images, found)` be a variant."""

    def alter_one(name: str, change: Callable) -> None:
        def build(model, workshop):
            predict = stock_predictor(model, workshop.device)
            return lambda images: change(images, predict(images))

        monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], build=build))

    return alter_one


# --- a machine that disturbs ----------------------------------------------------------------------

QUIET = {
    **{"other_processes": 0, "throttle_reasons": [], "sm_clock_mhz": 1980},
    **{"max_sm_clock_mhz": 1980, "memory_clock_mhz": 2619, "temperature_c": 41},
    **{"power_w": 300.0, "power_limit_w": 700.0},
}


@pytest.fixture
def disturbed(monkeypatch):
    """Lets every script find a GPU that others use and that is slowed down, whatever the device."""
    state = {**QUIET, "other_processes": 2, "throttle_reasons": ["heat (hardware)"]}
    asked = gpu_state.gpu_state
    for module in list(sys.modules.values()):
        if vars(module).get("gpu_state") is asked:
            monkeypatch.setattr(module, "gpu_state", lambda device: state)
    return state


@each_script
def test_p2_26_p2_28_a_disturbed_gpu_is_recorded_and_told(go, disturbed, capsys, script):
    status, report = go(script)
    assert status == 0
    assert report["gpu_state"] == {"before": disturbed, "after": disturbed}
    expected = [
        "2 other processes used this GPU: its times may be too long.",
        "The GPU was slowed down by: heat (hardware).",
    ]
    assert report["warnings"][:2] == expected  # the profiler may find the processor shared, too
    printed = capsys.readouterr().out
    assert all(warning in printed for warning in expected)


# --- a clock that misleads ------------------------------------------------------------------------


class Clock:
    """A clock that goes on by these seconds in turn, each time somebody looks."""

    def __init__(self, *seconds: float):
        self.now_s, self.steps_s = 0.0, itertools.cycle(seconds)

    def __call__(self) -> float:
        self.now_s += next(self.steps_s)
        return self.now_s


USUAL_S = 0.004
ODD = 13  # every so many looks; a prime, so that it meets every arm
TWELVE_ROUNDS = {
    "benchmark_inference": ("--num-iterations", 12, "--time-budget-s", 1e6),
    "mixed_precision": ("--steps", 12),
}
timed_script = pytest.mark.parametrize("script", TWELVE_ROUNDS)


def times_of(report: dict[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """Of every arm, the rounds and the percentiles of their milliseconds."""
    if "arms" in report:
        arms = [arms_of(report)[name] for name in STAND_INS]
        return [(len(arm["step_times_ms"]), arm["step_ms"]) for arm in arms]
    return [(row["iterations"], row["latency_ms"]) for row in report["results"]]


@timed_script
def test_p2_24_an_outlier_moves_no_median(go, monkeypatch, script):
    monkeypatch.setattr(timing, "perf_counter", Clock(*[USUAL_S] * (ODD - 1), 2.0))
    status, report = go(script, *TWELVE_ROUNDS[script])
    rounds, ms = zip(*times_of(report), strict=True)
    assert status == 0
    assert rounds == (12, 12)
    assert [each["p50"] for each in ms] == pytest.approx([1e3 * USUAL_S] * 2)
    assert max(each["p99"] for each in ms) > 100 * 1e3 * USUAL_S


def test_p2_24_an_outlier_moves_no_median_of_a_profile():
    profiler = GPUProfiler("cpu")
    for seconds in (*[0.001] * 10, 0.3, *[0.001] * 10):
        with profiler.profile("step"):
            time.sleep(seconds)
    row = profiler.summary()["step"]
    assert 1 <= row["p50_ms"] < 0.1 * row["p99_ms"]


@timed_script
@pytest.mark.fault("C-10")
def test_p2_25_rounds_with_a_misleading_clock_are_left_out(go, monkeypatch, capsys, script):
    """It goes back, and it goes on for an hour in which the machine slept."""
    looks = [*[USUAL_S] * (ODD - 1), -2.0, *[USUAL_S] * (ODD - 1), 3600.0]
    monkeypatch.setattr(timing, "perf_counter", Clock(*looks))
    status, report = go(script, *TWELVE_ROUNDS[script])
    assert status == 0
    for rounds, ms in times_of(report):
        assert 0 < rounds < 12
        assert ms["p99"] == pytest.approx(1e3 * USUAL_S)
    assert "rounds left out: the clock went back or the machine slept" in capsys.readouterr().out


def test_p2_25_a_clock_that_only_goes_back_leaves_no_benchmark(go, monkeypatch, capsys, tmp_path):
    older = write_older(tmp_path)
    monkeypatch.setattr(timing, "perf_counter", Clock(-USUAL_S))
    assert go("benchmark_inference") == (2, {"older": True})
    line = capsys.readouterr().err
    assert line.startswith(
        "error: --batch-sizes 1: nothing could be timed (untimed: in every round"
    )
    assert contents(tmp_path) == older


def test_p2_25_a_clock_that_only_goes_back_leaves_no_speed_up(go, monkeypatch):
    monkeypatch.setattr(timing, "perf_counter", Clock(-USUAL_S))
    status, report = go("mixed_precision", draws=True)
    assert status == 0
    assert report["speedup"]["ratio"] is None
    assert "no step has a time to be believed" in report["reading"]


def test_p2_25_a_clock_that_goes_back_stops_a_profile(
    model_path, data_path, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(gpu_profiler, "perf_counter", Clock(-USUAL_S))
    assert run("gpu_profiler", model_path, data_path, tmp_path) == 2
    expected = "error: the clock: went back during a measurement – measure again\n"
    assert capsys.readouterr().err == expected
    assert not contents(tmp_path)


# --- results that do not hold ---------------------------------------------------------------------


def out_of_memory(images: list, found: list) -> list:
    if len(images) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    return found


def test_p2_13_out_of_memory_at_a_batch_size_is_a_row(go, alter):
    alter("channels_last", out_of_memory)
    status, report = go("benchmark_inference", "--batch-sizes", "1,8")
    rows = rows_of(report, "channels_last")
    assert status == 0
    assert report["complete"] is True
    assert (rows[1]["status"], rows[8]["status"]) == ("ok", "oom")
    assert rows[8]["latency_ms"] is rows[8]["throughput_img_s"] is rows[8]["speedup"] is None
    assert rows_of(report, BASELINE)[8]["latency_ms"]["p50"] > 0


def test_p2_13_out_of_memory_in_a_precision_is_a_row(go, monkeypatch):
    step = TrainingArm.step

    def fail(self) -> None:
        if self._precision.tf32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        step(self)

    monkeypatch.setattr(TrainingArm, "step", fail)
    status, report = go("mixed_precision")
    arms = arms_of(report)
    assert status == 0
    assert (arms["fp32"]["status"], arms["amp_bf16"]["status"]) == ("ok", "oom")
    assert "amp_bf16 was not compared with fp32: oom" in report["reading"]


def test_p2_20_a_compiler_that_fails_is_a_row(go, monkeypatch):
    def fail(module):
        def call(*inputs):
            raise torch._inductor.exc.InductorError(RuntimeError("no C++ compiler"), None)

        return torch.nn.Module.__new__(type("Broken", (torch.nn.Module,), {"__call__": call}))

    monkeypatch.setattr(torch, "compile", fail)
    status, report = go("benchmark_inference", "--variants", "compiled")
    row = rows_of(report, "compiled")[1]
    assert status == 0
    assert row["status"].startswith("failed: InductorError: ")
    assert "no C++ compiler" in row["status"]
    assert rows_of(report, BASELINE)[1]["status"] == "ok"


def nan_boxes(images: list, found: list) -> list:
    return [d._replace(boxes_xyxy=np.full_like(d.boxes_xyxy, np.nan)) for d in found]


def nan_scores(images: list, found: list) -> list:
    return [d._replace(scores=np.full_like(d.scores, np.nan)) for d in found]


def nothing(images: list, found: list) -> list:
    """What a network finds whose numbers are NaN: no score is above the threshold."""
    return [Detections(*(values[:0] for values in d)) for d in found]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (nan_boxes, "boxes are no numbers"),
        (nan_scores, "boxes are no numbers"),
        (nothing, "no box where the baseline has"),
    ],
)
def test_p2_22_numbers_that_overflow_in_16_bits_are_invalid(go, alter, change, why):
    """bf16 is held to its mAP alone, which says nothing about a model that knows nothing yet."""
    alter("bf16", change)
    status, report = go("benchmark_inference", "--variants", "bf16")
    row = rows_of(report, "bf16")[1]
    assert status == 0
    assert row["status"].startswith("invalid: ")
    assert why in row["status"]
    assert report["optimal_batch_size_by_variant"] == {BASELINE: 1}


def test_p2_22_a_loss_that_overflows_in_16_bits_is_invalid(go, monkeypatch):
    loss = TrainingArm._loss

    def spoilt(self, batch, seeds):
        return loss(self, batch, seeds) * (torch.nan if self._precision.tf32 else 1.0)

    monkeypatch.setattr(TrainingArm, "_loss", spoilt)
    status, report = go("mixed_precision")
    amp = arms_of(report)["amp_bf16"]
    assert status == 0
    assert amp["status"].startswith("invalid: the loss was no finite number")
    assert amp["final_loss"] is None
    assert "worth nothing: it is invalid" in report["reading"]


def test_p2_23_boxes_elsewhere_than_the_baselines_are_invalid(go, alter):
    def shift(images: list, found: list) -> list:
        return [d._replace(boxes_xyxy=d.boxes_xyxy + np.float32(3)) for d in found]

    alter("channels_last", shift)
    status, report = go("benchmark_inference", "--num-iterations", "7")
    row = rows_of(report, "channels_last")[1]
    assert status == 0
    assert row["status"].startswith("invalid: ")
    assert "of the boxes are the baseline's" in row["status"]
    assert report["fastest_variant"] is None


def test_p2_36_the_baseline_is_always_measured(go, alter):
    """Where it does not fit there is nothing to compare with, and nothing is claimed."""
    alter(BASELINE, out_of_memory)
    status, report = go("benchmark_inference", "--batch-sizes", "1,4", draws=True)
    baseline, other = rows_of(report, BASELINE), rows_of(report, "channels_last")
    assert status == 0
    assert list(baseline) == [1, 4]  # it was not among --variants
    assert (baseline[1]["verdict"], baseline[4]["status"]) == ("baseline", "oom")
    assert other[1]["speedup"]["ratio"] > 0
    assert other[4]["latency_ms"]["p50"] > 0
    assert other[4]["speedup"] is other[4]["parity"] is other[4]["verdict"] is None
