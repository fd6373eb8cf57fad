"""GPUProfiler, the stage clock, the operation counter and the command, all on the CPU."""

import gzip
import itertools
import json
import time

import numpy as np
import pytest
import torch

from common.cli import UserError
from phase2_optimization import gpu_profiler, profile_steps, stages
from phase2_optimization.gpu_profiler import GPUProfiler, advise
from phase2_optimization.stages import OperationCounter, StageClock

CPU = torch.device("cpu")
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


# --- GPUProfiler ------------------------------------------------------------------------------


def test_start_and_stop_record_time_and_memory_under_their_tag():
    profiler = GPUProfiler("cpu")
    profiler.start("sleep")
    time.sleep(0.02)
    elapsed_s = profiler.stop()
    (record,) = profiler.metrics["sleep"]
    assert record["time_s"] == elapsed_s
    assert elapsed_s >= 0.02
    assert record["peak_memory_mib"] >= record["memory_allocated_mib"] > 10
    assert record["memory_reserved_mib"] == pytest.approx(record["memory_allocated_mib"], rel=0.2)


def test_nested_measurements_end_innermost_first_and_pass_their_peak_on():
    profiler = GPUProfiler("cpu")
    with profiler.profile("outer"):
        with profiler.profile("inner"):
            block = np.ones(64 * 2**20, dtype=np.uint8)
            del block
        with profiler.profile("small"):
            pass
    outer, inner, small = (profiler.metrics[tag][0] for tag in ("outer", "inner", "small"))
    assert outer["time_s"] >= inner["time_s"] + small["time_s"]
    assert outer["peak_memory_mib"] >= inner["peak_memory_mib"]
    assert inner["peak_memory_mib"] >= small["peak_memory_mib"] + 60


def test_stop_without_start_is_an_error():
    with pytest.raises(RuntimeError, match="without start"):
        GPUProfiler("cpu").stop()


def test_a_block_that_raises_leaves_no_record_and_the_profiler_usable():
    profiler = GPUProfiler("cpu")
    with pytest.raises(ValueError, match="broken"), profiler.profile("a"):
        raise ValueError("broken")
    with profiler.profile("b"):
        pass
    assert list(profiler.metrics) == ["b"]
    with pytest.raises(RuntimeError):
        profiler.stop()


def test_summary_and_table_follow_from_the_records():
    profiler = GPUProfiler("cpu")
    for seconds in (0.001, 0.003):
        profiler.metrics["step"].append({"time_s": seconds, "peak_memory_mib": seconds * 1e5})
    row = profiler.summary()["step"]
    assert row["calls"] == 2
    assert row["p50_ms"] == pytest.approx(2.0)
    assert row["total_s"] == pytest.approx(0.004)
    assert row["peak_memory_mib"] == pytest.approx(300)
    title, line = profiler.table().splitlines()
    assert title.split()[0] == "tag"
    assert line.split() == ["step", "2", "0.004", "2.00", "2.98", "300"]


@no_cuda
def test_a_missing_gpu_asked_for_by_name_is_the_users_error():
    with pytest.raises(UserError, match="no CUDA device found"):
        GPUProfiler("cuda")


# --- the stage clock --------------------------------------------------------------------------


def test_time_belongs_to_the_innermost_stage_and_sums_to_the_step(monkeypatch):
    ticks = itertools.chain([0.0], itertools.count(1.0))  # one second between any two readings
    monkeypatch.setattr(stages, "perf_counter", lambda: next(ticks))
    clock = StageClock(CPU)
    with clock.step():  # reads: start, enter
        with clock.stage("outer"), clock.stage("inner"):
            pass
        with clock.stage("inner"):
            pass
    # boundaries after the step was entered: +outer, +inner, -inner, -outer, +inner, -inner, end
    expected = {"other": 3000.0, "outer": 2000.0, "inner": 2000.0}
    assert clock.steps == [pytest.approx(expected)]
    assert clock.step_ms() == [pytest.approx(7000.0)]


def test_mean_ms_counts_a_stage_absent_from_a_step_as_zero():
    clock = StageClock(CPU)
    clock.steps = [{"a": 4.0, "b": 1.0}, {"a": 2.0}]
    assert clock.mean_ms() == {"a": 3.0, "b": 0.5}


def test_watching_a_model_changes_nothing_and_leaves_nothing_behind():
    from common.models import build_model

    torch.manual_seed(0)
    model = build_model("demo", 3, min_size=64, max_size=96).eval()
    image = [torch.rand(3, 48, 64)]
    before = model(image)[0]["boxes"]
    clock = StageClock(CPU)
    with clock.watch(model), clock.step():
        during = model(image)[0]["boxes"]
    torch.testing.assert_close(during, before, rtol=0, atol=0)
    assert {"transform", "backbone", "FPN", "RPN", "RoI heads", "post-processing"} <= set(
        clock.steps[0]
    )
    assert "postprocess" not in vars(model.transform)
    assert "postprocess_detections" not in vars(model.roi_heads)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- the operation counter --------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_forced_waits_are_counted_in_every_gradient_mode(mode):
    values = torch.tensor([1.0, -1.0, 2.0])
    with mode(), OperationCounter(CPU) as counter:
        mask = values > 0
        values[mask]  # a boolean index
        torch.where(mask)
        values.sum().item()
        values[torch.tensor([0, 1])]  # an integer index needs no wait
        values + 1
    assert counter.waits == {"aten::nonzero": 2, "aten::_local_scalar_dense": 1}
    assert counter.operations >= 6
    assert counter.copies == 0


def test_a_branch_on_a_tensor_is_a_wait():
    with OperationCounter(CPU) as counter:
        assert torch.tensor([1.0]).any()
    assert counter.waits["aten::_local_scalar_dense"] == 1


def test_only_what_the_device_runs_is_counted():
    """ "meta" stands in for a GPU: a device beside the CPU that every machine has."""
    host, elsewhere = torch.tensor([1.0, 2.0]), torch.ones(2, device="meta")
    with OperationCounter(torch.device("meta")) as counter:
        host.sum().item()  # decoding and sampling on the host make no GPU wait
        host[host > 1]
        elsewhere + 1
        host.to("meta")
    assert (counter.operations, counter.copies, counter.waits) == (2, 1, {})


# --- advice -----------------------------------------------------------------------------------


def _report(shares: dict[str, float], syncs: int = 0) -> dict:
    listed = [{"name": name, "ms": share * 100, "share": share} for name, share in shares.items()]
    return {"stages": listed, "host_syncs_per_step": syncs}


def test_advice_carries_the_bound_that_follows_from_the_shares():
    training = _report({"data wait": 0.5, "backward": 0.4, "other": 0.1}, syncs=7)
    inference = _report({"data wait": 0.01, "RPN": 0.2, "backbone": 0.79})
    advice = advise(training, inference, "cpu")
    assert any("at most 2.00x" in line and "training" in line for line in advice)
    assert any("backward takes the most" in line and "1.25x" in line for line in advice)
    assert any("backbone takes the most" in line and "1.65x" in line for line in advice)
    assert not any("inference" in line and "waits for images" in line for line in advice)
    assert any("7 operations" in line and "would" in line for line in advice)
    on_gpu = advise(training, inference, "cuda")
    assert any("the host waits for the GPU 7 times a step" in line for line in on_gpu)


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profiled(model_path, data_path, tmp_path_factory):
    output = tmp_path_factory.mktemp("profile")
    status = gpu_profiler.main(
        f"--model-path {model_path} --data-path {data_path} --output {output} "
        "--device cpu --batch-size 2 --steps 3".split()
    )
    assert status == 0
    return output


def test_profile_json_keeps_the_contract(profiled):
    report = json.loads((profiled / "profile.json").read_text(encoding="utf-8"))
    assert report["schema"] == "profile/1"
    assert report["environment"]["device"] == "cpu"
    assert report["host_syncs_per_step"] > 0
    assert report["advice"]
    names = {stage["name"] for stage in report["stages"]}
    assert {"data wait", "backbone", "RPN", "RoI heads", "backward", "optimizer"} <= names
    assert "backward" not in {stage["name"] for stage in report["inference"]["stages"]}


@pytest.mark.parametrize("part", ["training", "inference"])
def test_stages_sum_to_the_step(profiled, part):
    report = json.loads((profiled / "profile.json").read_text(encoding="utf-8"))
    report = report if part == "training" else report["inference"]
    total_ms = sum(stage["ms"] for stage in report["stages"])
    assert total_ms == pytest.approx(report["step_ms"]["mean"], rel=1e-6)
    assert sum(stage["share"] for stage in report["stages"]) == pytest.approx(1)
    named = sum(stage["share"] for stage in report["stages"] if stage["name"] != "other")
    assert named > 0.8


def test_trace_opens_and_names_the_stages(profiled):
    with gzip.open(profiled / "profile_trace.json.gz", "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"training", "inference", "backward", "RoI heads"} <= names


def test_a_trace_above_the_limit_keeps_its_longest_events(tmp_path):
    def work():
        with torch.profiler.record_function("the long one"):
            for _ in range(300):
                torch.rand(8, 8) @ torch.rand(8, 8)

    path = tmp_path / "trace.json.gz"
    full = profile_steps.write_trace(path, {"work": work}, CPU, max_mib=20)
    assert full["events_dropped"] == 0
    limit = full["size_mib"] / 4
    small = profile_steps.write_trace(path, {"work": work}, CPU, max_mib=limit)
    assert small["events_dropped"] > 0
    assert path.stat().st_size <= limit * 2**20
    with gzip.open(path, "rt", encoding="utf-8") as file:
        kept = json.load(file)["traceEvents"]
    assert len(kept) == small["events"]
    assert "the long one" in {event.get("name") for event in kept}


@no_cuda
def test_the_command_refuses_a_missing_gpu(model_path, tmp_path, capsys):
    arguments = ["--model-path", str(model_path), "--device", "cuda", "--output", str(tmp_path)]
    assert gpu_profiler.main(arguments) == 2
    assert "no CUDA device found" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--steps", "--batch-size"])
def test_the_command_refuses_zero(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_profiler.main([option, "0"])
    assert stopped.value.code == 2
    assert option in capsys.readouterr().err
