"""Everything the profiler measures of one model: stages, launches, arithmetic and a trace."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common import fastpath_boxes, inference_ops, roi_align, timing
from common.cli import UserError
from common.coco import CocoSplit
from common.comparison import compare
from common.fastpath_boxes import replaced
from common.gpu_state import gpu_state, warnings_from
from common.models import LoadedModel
from common.processor_share import UNDISTURBED, ProcessorShare, waiting_told
from phase2_optimization import flops, profile_steps, profile_trace
from phase2_optimization.advice import Setting, setting_of
from phase2_optimization.launches import OperationCounter, device_activity
from phase2_optimization.profile_steps import Arm, name_of
from phase2_optimization.roofline import OperatorTraffic, measure_copy, roofline
from phase2_optimization.stages import DATA_WAIT, NETWORKS, StageClock

if TYPE_CHECKING:
    from phase2_optimization.gpu_profiler import GPUProfiler

WARMUP_STEPS = 2  # the second one has the optimizer's state in memory, too


@dataclass(frozen=True)
class Profile:
    """What `measure` found.

    Attributes:
        training, inference: the parts of the report, see `measure_pair` and `look_inside`, with
            their `roofline`, see `roofline.roofline`.
        peak: the highest arithmetic rates of this machine by type of number, see
            `flops.measure_peak`.
        trace: a chrome trace of one step of each.
        gpu_state: `before` and `after` the timed steps, see `common.gpu_state`.
        warnings: what else may have made them slower.
        setting: what advice has to know besides.
    """

    training: dict[str, Any]
    inference: dict[str, Any]
    peak: dict[str, dict[str, float]]
    trace: profile_trace.Trace
    gpu_state: dict[str, Any]
    warnings: list[str]
    setting: Setting


def measure(
    profiler: "GPUProfiler",
    loaded: LoadedModel,
    train: CocoSplit,
    val: CocoSplit,
    *,
    batch_size: int,
    steps: int,
    amp: str,
    seed: int,
) -> Profile:
    """Profiles training on `train` and inference on `val` on the profiler's device.

    Args:
        profiler: measures the first steps of every arm.
        loaded: the model, on the CPU; it stays as it is.
        amp: precision of the training step's heavy layers, "off", "bf16" or "fp16".
    """
    device = profiler.device
    with contextlib.ExitStack() as stack:
        # In this order, so that the peak memory of either holds little of the other.
        inference = profile_steps.inference_arm(loaded, val, device, batch_size)
        peaks_mib = {"inference": _warm_up(profiler, "inference", inference, 0.0)}
        held_mib = _allocated_mib(device)
        training = stack.enter_context(
            profile_steps.training_arm(loaded, train, device, batch_size, amp, seed)
        )
        peaks_mib["training"] = _warm_up(profiler, "training", training, held_mib)
        arms = {"training": training, "inference": inference}
        stocks = _stock_twins(loaded, train, val, device, batch_size, seed)
        for name, twins in stocks.items():
            for stock in twins:
                _warm_up(profiler, f"{name} (torchvision)", stock, 0.0)

        before = gpu_state(device)  # here and below while the clocks are those of work
        parts = {
            name: measure_pair(arm, stocks[name], device, batch_size, steps, seed)
            for name, arm in arms.items()
        }
        after = gpu_state(device)
        dtypes = {arm.dtype for arm in arms.values()}
        peak = {name_of(dtype): flops.measure_peak(device, dtype) for dtype in dtypes}
        copy_gb_s = measure_copy(device)
        trace = profile_trace.record(arms, device)
        for name, arm in arms.items():
            parts[name]["peak_memory_mib"] = peaks_mib[name]
            counts = flops.count_flops(partial(stocks[name][0].step, _free_clock(device)))
            events = trace["traceEvents"]
            parts[name] |= look_inside(name, arm, parts[name], counts, peak, events, device)
            parts[name]["roofline"] = _roofline(arm, parts[name], peak, copy_gb_s, device)
    warnings = [*warnings_from(before, after), *_on_the_processor(parts)]
    states = {"before": before, "after": after}
    setting = setting_of(device, batch_size, len(train.records))
    return Profile(parts["training"], parts["inference"], peak, trace, states, warnings, setting)


def _stock_twins(
    loaded: LoadedModel,
    train: CocoSplit,
    val: CocoSplit,
    device: torch.device,
    batch_size: int,
    seed: int,
) -> dict[str, tuple[Arm, Arm]]:
    """torchvision's arms, each twice: how far two equal arms are apart is the noise."""
    training = partial(profile_steps.stock_training_arm, loaded, train, device, batch_size, seed)
    inference = partial(profile_steps.stock_inference_arm, loaded, val, device, batch_size)
    return {"training": (training(), training()), "inference": (inference(), inference())}


def _on_the_processor(parts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, part in parts.items():
        if told := waiting_told(name, part["processor_share"]):
            yield told


def _free_clock(device: torch.device) -> StageClock:
    return StageClock(device, wait_at_stages=False)


def _warm_up(profiler: "GPUProfiler", name: str, arm: Arm, held_mib: float) -> float | None:
    """Makes the first steps; returns their peak memory, on a GPU without what others hold."""
    tag = f"first steps of {name}"
    with profiler.profile(tag):
        for _ in range(WARMUP_STEPS):
            arm.step(_free_clock(profiler.device))
    mib = profiler.metrics[tag][-1]["peak_memory_mib"]
    return None if mib is None else mib - held_mib


def _allocated_mib(device: torch.device) -> float:
    """0 where there is no allocator to ask: the peak is then that of the whole process."""
    return torch.cuda.memory_allocated(device) / timing.MIB if device.type == "cuda" else 0.0


# --- time by stage ------------------------------------------------------------------------------


def measure_pair(
    own: Arm,
    stock_twins: tuple[Arm, Arm],
    device: torch.device,
    batch_size: int,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Times steps of all arms in turns, whole and by stage.

    A whole step waits for the device at its ends only. On the CPU nothing is waited for, so there
    a step timed by stage is a whole one, too.

    Args:
        own: this project's arm.
        stock_twins: torchvision's, which it is compared with, and its equal.
        seed: of the order in which they take turns.

    Returns:
        `description`, `precision`, `stages` [{name, ms, share}] of a typical step with the largest
        first, `step_ms` of the steps timed by stage, `free_step_ms` of the whole ones,
        `images_per_s`, and under `stock` the same of the other arm and how many times as fast as
        it the first one is: `speedup`, of `common.comparison.compare`, whose `ci95` and `noise` are
        None where there is one step only. `processor_share`, on the CPU: the share of the time in
        which the main thread ran, see `common.processor_share`.

    Raises:
        UserError: no step has a time to be believed.
    """
    on_cpu = device.type == "cpu"
    arms = dict(zip(("own", "stock", "again"), (own, *stock_twins), strict=True))
    clocks = {name: StageClock(device) for name in arms}
    calls = {name: partial(_staged_step, arm, clocks[name]) for name, arm in arms.items()}
    if not on_cpu:
        by_stage = {f"{name} by stage": calls[name] for name in ("own", "stock")}
        whole = {name: partial(arm.step, _free_clock(device)) for name, arm in arms.items()}
        calls = {**whole, **by_stage}
    with ProcessorShare(device) as processor:
        times_ms = timing.measure_interleaved(
            calls, rounds=steps, warmup=0, device=device, seed=seed % 2**32
        )
    if not len(times_ms["own"]):
        raise UserError("the clock", "went back in every round", "measure again")
    mine, other = (
        _described(arms[name], clocks[name], times_ms[name], batch_size)
        for name in ("own", "stock")
    )
    compared = compare(times_ms["stock"], times_ms["own"], times_ms["again"], seed % 2**32)
    other["speedup"] = compared.as_dict()
    return {**mine, "stock": other, "processor_share": processor.share}


def _staged_step(arm: Arm, clock: StageClock) -> None:
    with arm.watch(clock), clock.step():
        arm.step(clock)


def _described(
    arm: Arm, clock: StageClock, whole_ms: np.ndarray, batch_size: int
) -> dict[str, Any]:
    stage_ms = clock.typical_ms()
    total_ms = sum(stage_ms.values())
    free = timing.summarise(whole_ms)
    return {
        "description": arm.description,
        "precision": name_of(arm.dtype),
        "stages": [
            {"name": name, "ms": ms, "share": ms / total_ms} for name, ms in stage_ms.items()
        ],
        "step_ms": timing.summarise(clock.step_ms()),
        "free_step_ms": free,
        "images_per_s": batch_size / free["p50"] * 1e3,
    }


# --- what a step holds --------------------------------------------------------------------------


def look_inside(
    name: str,
    arm: Arm,
    part: Mapping[str, Any],
    counts: Mapping[str, int],
    peak: Mapping[str, Mapping[str, float]],
    events: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> dict[str, Any]:
    """Operations, launches, waits and arithmetic of one step.

    Args:
        part: of the report, as `measure_pair` returns it.
        counts: the arithmetic of a step, see `flops.count_flops`.
        peak: by type of number, see `flops.measure_peak`.
        events: of a trace that holds a step labelled `name`.

    Returns:
        `operations_per_step`, `host_device_copies_per_step`, `host_syncs_per_step` and
        `host_syncs_by_operation`; `device_activity` (see `launches.device_activity`) and
        `gpu_busy_share` of a whole step without its wait for data, both None without a CUDA
        device; and `flops`, see `_arithmetic`.
    """
    with _as_on_a_gpu(), OperationCounter(device) as counter:
        arm.step(_free_clock(device))
    busy_share = None
    syncs, by_operation = sum(counter.waits.values()), dict(counter.waits.most_common())
    activity = device_activity(events, name) if device.type == "cuda" else None
    if activity:
        syncs, by_operation = activity["host_syncs"], activity["syncs_by_call"]
        working_ms = part["free_step_ms"]["p50"] - _stage_ms(part, (DATA_WAIT,))
        busy_share = min(1.0, activity["gpu_busy_ms"] / working_ms) if working_ms > 0 else 1.0
    computing_ms = activity["gpu_busy_ms"] if activity else _stage_ms(part, NETWORKS)
    dtype = name_of(arm.dtype)
    arithmetic = _arithmetic(
        counts, part["free_step_ms"]["p50"], computing_ms, peak[dtype]["gflop_s"]
    )
    return {
        "operations_per_step": counter.operations,
        "host_device_copies_per_step": counter.copies,
        "host_syncs_per_step": syncs,
        "host_syncs_by_operation": by_operation,
        "device_activity": activity,
        "gpu_busy_share": busy_share,
        "flops": {"dtype": dtype, **arithmetic},
    }


@contextlib.contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """The ways a GPU is spared waiting, also on a CPU, which takes others."""
    limits = inference_ops.NMS_CALL_LIMIT
    with (
        replaced(fastpath_boxes, SYNCHRONOUS_DEVICES=()),
        replaced(roi_align, GATHERING_DEVICES=()),
        replaced(inference_ops, NMS_CALL_LIMIT=dict.fromkeys(limits, limits["cuda"])),
    ):
        yield


def _roofline(
    arm: Arm,
    part: Mapping[str, Any],
    peak: Mapping[str, Mapping[str, float]],
    copy_gb_s: float,
    device: torch.device,
) -> dict[str, Any]:
    """Of the operators in the time the arithmetic is set against: all that a GPU worked for, or
    elsewhere those in the stages with networks."""
    clock = _free_clock(device)
    stages = None if part["device_activity"] else NETWORKS
    is_work = part["device_activity"] is not None
    if device.type == "cpu":
        is_work = (part["processor_share"] or 0.0) >= UNDISTURBED  # None: the clock went back
    with arm.watch(clock), OperatorTraffic(device, clock, stages) as traffic:
        arm.step(clock)
    gflop_s = peak[name_of(arm.dtype)]["gflop_s"]
    computing_ms = part["flops"]["computing_ms"]
    return roofline(traffic.calls, gflop_s, copy_gb_s, computing_ms, is_work=is_work)


def _stage_ms(part: Mapping[str, Any], names: Sequence[str]) -> float:
    return sum(stage["ms"] for stage in part["stages"] if stage["name"] in names)


def _arithmetic(
    counts: Mapping[str, int], step_ms: float, computing_ms: float, peak_gflop_s: float
) -> dict[str, Any]:
    """Achieved rates and their shares of the measured peak.

    Returns:
        `gflop_per_step` and `by_operation` (10**9 FLOP); `gflop_s` and `share_of_peak` over the
        whole step, and the same with `computing_` before it over `computing_ms` alone: the time
        a GPU worked, or elsewhere that of the stages with networks.
    """
    gflop = sum(counts.values()) / 1e9
    rate, computing_rate = gflop / step_ms * 1e3, gflop / computing_ms * 1e3
    return {
        "gflop_per_step": gflop,
        "by_operation": {name: count / 1e9 for name, count in counts.items()},
        "gflop_s": rate,
        "share_of_peak": rate / peak_gflop_s,
        "computing_ms": computing_ms,
        "computing_gflop_s": computing_rate,
        "computing_share_of_peak": computing_rate / peak_gflop_s,
    }
