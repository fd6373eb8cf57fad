"""What is concluded from times, counts and events, on steps made of nothing."""

import contextlib
import itertools

import pytest
import torch

from common import processor_share, timing
from common.cli import UserError
from common.comparison import compare
from phase2_optimization import launches, profiling
from phase2_optimization.profile_steps import Arm

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def arm_of(name, calls, work=lambda: None):
    def step(clock):
        calls.append(name)
        with clock.stage("backbone"):
            work()

    return Arm(name, torch.float32, step, lambda clock: contextlib.nullcontext())


@pytest.fixture
def rounds(monkeypatch):
    """What `measure_interleaved` is asked for, and the times it answers with."""
    asked = []
    measure = timing.measure_interleaved

    def noted(arms, **settings):
        asked.append((list(arms), settings, measure(arms, **settings)))
        return asked[-1][2]

    monkeypatch.setattr(timing, "measure_interleaved", noted)
    return asked


def test_the_arms_take_turns_in_random_order_and_torchvisions_twice(rounds):
    calls = []
    own, *twins = (arm_of(name, calls) for name in ("own", "stock", "again"))
    part = profiling.measure_pair(own, twins, CPU, 4, 12, 3)
    in_rounds = [tuple(calls[start : start + 3]) for start in range(0, 36, 3)]
    assert all(sorted(turn) == ["again", "own", "stock"] for turn in in_rounds)
    assert len(set(in_rounds)) > 3
    ((names, settings, ms),) = rounds
    assert (names, settings["rounds"], settings["seed"]) == (["own", "stock", "again"], 12, 3)
    expected = compare(ms["stock"], ms["own"], ms["again"], seed=3).as_dict()
    assert part["stock"]["speedup"] == expected
    assert expected["noise"] is not None
    assert part["free_step_ms"] == timing.summarise(ms["own"])
    assert part["stock"]["free_step_ms"] == timing.summarise(ms["stock"])
    assert part["images_per_s"] == pytest.approx(4000 / part["free_step_ms"]["p50"])
    assert (part["description"], part["stock"]["description"]) == ("own", "stock")
    for side in (part, part["stock"]):
        assert side["precision"] == "float32"
        assert {stage["name"] for stage in side["stages"]} == {"backbone", "other"}
        assert sum(stage["share"] for stage in side["stages"]) == pytest.approx(1)


def test_on_a_device_that_is_waited_for_whole_steps_are_timed_beside_those_by_stage(rounds):
    """ "meta" stands in for a GPU."""
    calls = []
    own, *twins = (arm_of(name, calls) for name in ("own", "stock", "again"))
    part = profiling.measure_pair(own, twins, torch.device("meta"), 1, 2, 0)
    assert sorted(calls) == ["again"] * 2 + ["own"] * 4 + ["stock"] * 4
    ((names, _, ms),) = rounds
    assert names == ["own", "stock", "again", "own by stage", "stock by stage"]
    assert part["free_step_ms"] == timing.summarise(ms["own"])
    assert part["step_ms"].keys() == part["free_step_ms"].keys()


def test_few_steps_carry_no_interval():
    own, *twins = (arm_of(name, []) for name in ("own", "stock", "again"))
    speedup = profiling.measure_pair(own, twins, CPU, 1, 1, 0)["stock"]["speedup"]
    assert speedup["ratio"] > 0
    assert speedup["ci95"] is speedup["noise"] is None
    assert speedup["verdict"] == "too few rounds to tell"
    low, high = profiling.measure_pair(own, twins, CPU, 1, 7, 0)["stock"]["speedup"]["ci95"]
    assert low <= high


def test_a_clock_that_only_goes_back_is_told(monkeypatch):
    monkeypatch.setattr(timing, "perf_counter", itertools.count(0, -1).__next__)
    own, *twins = (arm_of(name, []) for name in ("own", "stock", "again"))
    with pytest.raises(UserError, match="the clock: went back in every round"):
        profiling.measure_pair(own, twins, CPU, 1, 2, 0)


@pytest.mark.parametrize(
    ("device", "worked_s", "share"), [(CPU, 2.0, 0.5), (torch.device("meta"), 2.0, None)]
)
def test_the_share_of_the_time_a_processor_worked_is_known(monkeypatch, device, worked_s, share):
    looks, works = iter([10.0, 14.0]), iter([1.0, 1.0 + worked_s])
    monkeypatch.setattr(processor_share, "perf_counter", lambda: next(looks))
    monkeypatch.setattr(processor_share, "thread_time", lambda: next(works))
    own, *twins = (arm_of(name, []) for name in ("own", "stock", "again"))
    assert profiling.measure_pair(own, twins, device, 1, 1, 0)["processor_share"] == share


def test_a_thread_that_had_to_wait_is_told_without_a_guess_at_why():
    parts = {"training": {"processor_share": 0.52}, "inference": {"processor_share": 0.97}}
    assert list(profiling._on_the_processor(parts)) == [
        "training: the main thread ran 52% of the time and waited for the rest: for a processor "
        "that others use, for its own other threads or for the disk; in the first case the times "
        "are too long."
    ]
    assert list(profiling._on_the_processor({"training": {"processor_share": None}})) == []


# --- what a step holds --------------------------------------------------------------------------


def product():
    torch.ones(10, 10) @ torch.ones(10, 5)


COUNTS = {"mm": 1000}
PEAK = {"float32": {"gflop_s": 0.001}}
PART = {
    "free_step_ms": {"p50": 2.0},
    "stages": [
        {"name": "data wait", "ms": 0.75},
        {"name": "backbone", "ms": 0.5},
        {"name": "backward", "ms": 1.5},
    ],
}


def test_arithmetic_is_set_against_the_step_its_networks_and_the_peak():
    arm = arm_of("own", [], product)
    inside = profiling.look_inside("training", arm, PART, COUNTS, PEAK, [], CPU)
    assert inside["flops"] == {
        "dtype": "float32",
        "gflop_per_step": pytest.approx(1e-6),
        "by_operation": {"mm": pytest.approx(1e-6)},
        "gflop_s": pytest.approx(0.0005),  # 1000 FLOP in 2 ms
        "share_of_peak": pytest.approx(0.5),
        "computing_ms": pytest.approx(2.0),  # backbone and backward
        "computing_gflop_s": pytest.approx(0.0005),
        "computing_share_of_peak": pytest.approx(0.5),
    }
    assert inside["operations_per_step"] == 3
    assert inside["host_syncs_per_step"] == 0
    assert inside["device_activity"] is inside["gpu_busy_share"] is None


def test_waits_on_a_cpu_are_those_of_the_ways_taken_on_a_gpu():
    from common import fastpath_boxes, inference_ops, roi_align

    seen = []

    def work():
        seen.append(fastpath_boxes.SYNCHRONOUS_DEVICES + roi_align.GATHERING_DEVICES)
        seen.append(inference_ops.NMS_CALL_LIMIT["cpu"] == inference_ops.NMS_CALL_LIMIT["cuda"])
        torch.tensor([1.0, 2.0]).sum().item()
        product()

    arm = arm_of("own", [], work)
    inside = profiling.look_inside("training", arm, PART, COUNTS, PEAK, [], CPU)
    assert inside["host_syncs_by_operation"] == {"aten::_local_scalar_dense": 1}
    work()
    assert seen == [(), True, ("cpu", "cpu"), False]


@pytest.fixture
def events():
    label = {"cat": "user_annotation", "name": "training", "ts": 0, "dur": 900}
    sync = {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 10, "dur": 5}
    launch = {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 20, "dur": 5}
    kernel = {"cat": "kernel", "name": "gemm", "ts": 30, "dur": 1000}
    rows = zip((label, sync, launch, kernel), (0, 1, 2, 2), strict=True)
    return [{**event, "args": {"correlation": number}} for event, number in rows]


def test_on_a_gpu_the_trace_tells_what_it_did(events):
    arm = arm_of("own", [], product)
    inside = profiling.look_inside("training", arm, PART, COUNTS, PEAK, events, CUDA)
    assert inside["host_syncs_per_step"] == 1
    assert inside["host_syncs_by_operation"] == {"cudaStreamSynchronize": 1}
    assert inside["device_activity"] == launches.device_activity(events, "training")
    # it works 1 ms of the 1.25 ms of a step that do not wait for data
    assert inside["gpu_busy_share"] == pytest.approx(0.8)
    assert inside["flops"]["computing_ms"] == pytest.approx(1.0)
    assert inside["flops"]["computing_share_of_peak"] == pytest.approx(1.0)


def test_a_gpu_whose_counters_may_not_be_read_is_counted_by_operations(events):
    arm = arm_of("own", [], product)
    inside = profiling.look_inside("training", arm, PART, COUNTS, PEAK, events[:2], CUDA)
    assert inside["device_activity"] is inside["gpu_busy_share"] is None
    assert inside["host_syncs_per_step"] == 0
    assert inside["flops"]["computing_ms"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("device", "activity", "share", "bound"),
    [
        pytest.param(CPU, None, 0.95, "neither", id="cpu"),
        pytest.param(CPU, None, 0.5, "unknown", id="shared cpu"),
        pytest.param(CPU, None, None, "unknown", id="cpu with a clock that went back"),
        pytest.param(torch.device("meta"), {}, None, "unknown", id="unseen gpu"),
        pytest.param(torch.device("meta"), {"kernels": 1}, None, "neither", id="gpu"),
    ],
)
def test_the_roofline_is_of_the_stages_with_networks_and_judged_where_they_worked(
    device, activity, share, bound
):
    """On a GPU that could be looked at, "meta" here, every stage counts."""

    def step(clock):
        with clock.stage("transform"):
            torch.ones(4, device=device) * 2
        with clock.stage("backbone"):
            torch.ones(10, 10, device=device) @ torch.ones(10, 5, device=device)

    arm = Arm("own", torch.float32, step, lambda clock: contextlib.nullcontext())
    part = {
        "device_activity": activity or None,
        "processor_share": share,
        "flops": {"computing_ms": 9.0},
    }
    found = profiling._roofline(arm, part, {"float32": {"gflop_s": 100.0}}, 10.0, device)
    assert found["bound"] == bound
    assert found["gflop"] == pytest.approx(1e-6)
    names = {operator["name"] for operator in found["operators"]}
    assert ("aten::mul" in names) is bool(activity)
    assert (found["peak_gflop_s"], found["copy_gb_s"]) == (100.0, 10.0)
    assert found["measured_ms"] == 9.0
