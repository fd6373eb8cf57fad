"""Sentences that follow from a profile: what limits a step, and what mending it can give at most.

A part that takes a share s of a step and is made k times as fast makes the step 1 / (1 - s + s/k)
times as fast (Amdahl 1967); with k unbounded, 1 / (1 - s).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from phase2_optimization.stages import DATA_WAIT, NETWORKS, OTHER

DATA_WAIT_SHARE = 0.1  # of a step; below it reading the images is not worth a word
LARGE_SHARE = 0.4  # a stage that stands out among ten
OPTIMIZER_SHARE = 0.1
IDLE_SHARE = 0.1  # of a step without its wait for data
NEAR_THE_PEAK, FAR_FROM_IT = 0.6, 0.25  # shares of the measured peak of arithmetic
UNDISTURBED = 0.9  # share of the time in which a processor worked for the profiled process
ROUNDING = 1e-9

Part = Mapping[str, Any]


def advise(training: Part, inference: Part) -> list[str]:
    """None, one or several sentences on each part of a profile report, most urgent first."""
    return [
        f"{label}: {sentence}"
        for label, part in (("training", training), ("inference", inference))
        for sentence in _sentences(label, part)
    ]


def _sentences(label: str, part: Part) -> Iterator[str]:
    share = {stage["name"]: stage["share"] for stage in part["stages"]}
    yield from _on_reading(label, share.get(DATA_WAIT, 0.0))
    if part["gpu_busy_share"] is not None:
        yield from _on_idle_gpu(part["gpu_busy_share"], part["device_activity"])
    yield from _on_stages(share)
    working = part["processor_share"] if part["gpu_busy_share"] is None else part["gpu_busy_share"]
    if working is None or working >= UNDISTURBED:  # what idles is no question of arithmetic
        yield from _on_arithmetic(part["flops"], share)


def _on_reading(label: str, waiting: float) -> Iterator[str]:
    if waiting <= DATA_WAIT_SHARE:
        return
    bound = 1 / (1 - waiting)
    needed = math.ceil(waiting / (1 - waiting) - ROUNDING)
    processes = "1 loader process" if needed == 1 else f"{needed} loader processes, a core each"
    workers = (
        f"hidden behind {processes} (train.py --workers)"
        if label == "training"
        else "read ahead in another thread or process"
    )
    yield (
        f"loader-bound where nothing reads ahead: the images take {waiting:.0%} of the step; "
        f"{workers}, they would cost nothing, at most {bound:.2f}x."
    )


def _on_idle_gpu(busy: float, activity: Part) -> Iterator[str]:
    """Idle time of a step that runs freely, split as the gaps of the traced step are."""
    gaps_ms = activity["idle_after_syncs_ms"] + activity["idle_between_launches_ms"]
    after_syncs = activity["idle_after_syncs_ms"] / gaps_ms if gaps_ms else 0.0
    syncing, launching = (1 - busy) * after_syncs, (1 - busy) * (1 - after_syncs)
    if launching > IDLE_SHARE:
        mean_us = activity["gpu_busy_ms"] / max(1, activity["kernels"]) * 1e3
        yield (
            f"launch-bound: the GPU is idle {launching:.0%} of the step between "
            f"{activity['kernel_launches']} launches of {mean_us:.0f} us of work each; fewer and "
            "larger ones (a larger batch, CUDA graphs, torch.compile) would give at most "
            f"{1 / (1 - launching):.2f}x."
        )
    if syncing > IDLE_SHARE:
        yield (
            f"sync-bound: the host waits for the GPU {activity['host_syncs']} times, and the GPU "
            f"then idles {syncing:.0%} of the step until new work arrives; without these waits "
            f"at most {1 / (1 - syncing):.2f}x."
        )


def _on_stages(share: Mapping[str, float]) -> Iterator[str]:
    stages = {name: s for name, s in share.items() if name not in (DATA_WAIT, OTHER)}
    if not stages:
        return
    name = max(stages, key=stages.__getitem__)
    if stages[name] > LARGE_SHARE:
        yield (
            f"the largest stage is {name} with {stages[name]:.0%} of the step; made twice as fast "
            f"it would give {1 / (1 - stages[name] / 2):.2f}x."
        )
    updating = stages.get("optimizer", 0.0)
    if updating > OPTIMIZER_SHARE:
        yield (
            f"the optimizer takes {updating:.0%} of the step, the same at every batch size; with "
            f"twice the batch it would be {updating / (2 - updating):.0%}."
        )


def _on_arithmetic(flops: Part, share: Mapping[str, float]) -> Iterator[str]:
    reached = flops["computing_share_of_peak"]
    networks = sum(share.get(name, 0.0) for name in NETWORKS)
    figures = (
        f"the networks run at {flops['computing_gflop_s']:.0f} GFLOP/s, {reached:.0%} of what "
        "this machine was measured to do"
    )
    if networks <= LARGE_SHARE:
        return
    if reached >= NEAR_THE_PEAK:
        yield (
            f"compute-bound: {figures}; what helps is less arithmetic (smaller images, a lighter "
            "architecture, lower precision)."
        )
    elif reached < FAR_FROM_IT:
        yield (
            f"memory-bound: {figures}; moving data and small operations limit them, not "
            "arithmetic (channels_last, a larger batch or fused operations may help)."
        )
