"""Sentences that follow from a profile: what limits a step, and what mending it can give at most.

A part that takes a share s of a step and is made k times as fast makes the step 1 / (1 - s + s/k)
times as fast (Amdahl 1967); with k unbounded, 1 / (1 - s). What is on already is not advised: the
steps have channels_last memory, fused optimizers and, where it is native, half precision.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common import environment
from common.processor_share import UNDISTURBED
from phase2_optimization.stages import DATA_WAIT, NETWORKS, OTHER

if TYPE_CHECKING:
    import torch

DATA_WAIT_SHARE = 0.1  # of a step; below it reading the images is not worth a word
LARGE_SHARE = 0.4  # a stage that stands out among ten
OPTIMIZER_SHARE = 0.1
IDLE_SHARE = 0.1  # of a step without its wait for data
ROUNDING = 1e-9

Part = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """What advice depends on besides the measurements.

    Attributes:
        device: "cpu", "cuda" or "mps".
        loaders: processes in which train.py reads ahead by default.
        half_precision: what the device computes natively, "bf16" or "fp16"; "off" for none.
        batch_can_grow: whether there are training images for a larger batch.
    """

    device: str
    loaders: int
    half_precision: str
    batch_can_grow: bool


def setting_of(device: "torch.device", batch_size: int, training_images: int) -> Setting:
    """The setting of a profile on this machine."""
    from common.fastpath import native_amp

    can_grow = batch_size < training_images
    return Setting(device.type, environment.loader_processes(), native_amp(device), can_grow)


def advise(training: Part, inference: Part, setting: Setting) -> list[str]:
    """None, one or several sentences on each part of a profile report, most urgent first."""
    return [
        f"{label}: {sentence}"
        for label, part in (("training", training), ("inference", inference))
        for sentence in _sentences(label, part, setting)
    ]


def _sentences(label: str, part: Part, setting: Setting) -> Iterator[str]:
    share = {stage["name"]: stage["share"] for stage in part["stages"]}
    can_grow = setting.batch_can_grow or label == "inference"
    yield from _on_reading(label, share.get(DATA_WAIT, 0.0), setting.loaders)
    if part["gpu_busy_share"] is not None:
        remedies = _fewer_launches(label, part["device_activity"], can_grow)
        yield from _on_idle_gpu(part["gpu_busy_share"], part["device_activity"], remedies)
    yield from _on_stages(share, setting.device)
    yield from _on_optimizer(share.get("optimizer", 0.0), can_grow)
    networks = sum(share.get(name, 0.0) for name in NETWORKS)
    idles = part["gpu_busy_share"] is not None and part["gpu_busy_share"] < UNDISTURBED
    if networks > LARGE_SHARE and not idles:  # what idles is no question of arithmetic
        who = "the networks need" if setting.device == "cpu" else "the work of the GPU needs"
        yield from _on_roofline(part["roofline"], who, _smaller(label, part, setting), can_grow)


def _on_reading(label: str, waiting: float, loaders: int) -> Iterator[str]:
    """Nothing where train.py reads ahead in enough processes by itself."""
    needed = math.ceil(waiting / (1 - waiting) - ROUNDING)
    if waiting <= DATA_WAIT_SHARE or (label == "training" and needed <= loaders):
        return
    remedy = "reading them ahead, on a core that is free, would hide that"
    if needed > 1:  # one core alone reads as long as before
        remedy = f"reading them ahead, on {needed} cores that are free, would hide it all"
    if label == "training":
        remedy = (
            f"train.py reads ahead in {loaders} process{'es' if loaders > 1 else ''} by default, "
            f"and --workers {needed}, with a free core each, would hide it all"
        )
    yield (
        f"loader-bound where nothing reads ahead, as here: the images take {waiting:.0%} of the "
        f"step; {remedy}: at most {1 / (1 - waiting):.2f}x."
    )


def _fewer_launches(label: str, activity: Part, can_grow: bool) -> str:
    remedies = ["a larger batch"] if can_grow else []
    if label == "inference":
        graphs = [] if activity["graph_launches"] else ["CUDA graphs"]
        remedies += [*graphs, "torch.compile: benchmark_inference.py times them"]
    return f" ({', '.join(remedies)})" if remedies else ""


def _on_idle_gpu(busy: float, activity: Part, remedies: str) -> Iterator[str]:
    """Idle time of a step that runs freely, split as the gaps of the traced step are."""
    gaps_ms = activity["idle_after_syncs_ms"] + activity["idle_between_launches_ms"]
    if not gaps_ms:  # it idles before the first work or after the last: nobody knows why
        return
    after_syncs = activity["idle_after_syncs_ms"] / gaps_ms
    syncing, launching = (1 - busy) * after_syncs, (1 - busy) * (1 - after_syncs)
    if launching > IDLE_SHARE:
        mean_us = activity["gpu_busy_ms"] / max(1, activity["kernels"]) * 1e3
        yield (
            f"launch-bound: the GPU is idle {launching:.0%} of the step between "
            f"{activity['kernel_launches']} launches of {mean_us:.0f} us of work each; fewer and "
            f"larger ones{remedies} would give at most {1 / (1 - launching):.2f}x."
        )
    if syncing > IDLE_SHARE:
        yield (
            f"sync-bound: the host waits for the GPU {activity['host_syncs']} times, and the GPU "
            f"then idles {syncing:.0%} of the step until new work arrives; without these waits "
            f"at most {1 / (1 - syncing):.2f}x."
        )


def _on_stages(share: Mapping[str, float], device: str) -> Iterator[str]:
    stages = {name: s for name, s in share.items() if name not in (DATA_WAIT, OTHER)}
    if not stages:
        return
    name = max(stages, key=stages.__getitem__)
    if stages[name] > LARGE_SHARE:
        step = "the step" if device == "cpu" else "a step that waits after every stage"
        yield (
            f"the largest stage is {name} with {stages[name]:.0%} of {step}; made twice as fast "
            f"it would give {1 / (1 - stages[name] / 2):.2f}x."
        )


def _on_optimizer(updating: float, can_grow: bool) -> Iterator[str]:
    if updating > OPTIMIZER_SHARE and can_grow:
        yield (
            f"the optimizer takes {updating:.0%} of the step, whatever the batch size; with twice "
            f"the batch, where all else doubles, it would be {updating / (2 - updating):.0%}."
        )


def _smaller(label: str, part: Part, setting: Setting) -> str:
    """What leaves the networks less to do."""
    remedies = "smaller images, a lighter architecture"
    has_half = part["precision"] != "float32" or setting.half_precision == "off"
    if label == "training" and not has_half:  # inference has it wherever it is native
        remedies += f", --amp {setting.half_precision}"
    return remedies


def _on_roofline(found: Part, who: str, smaller: str, can_grow: bool) -> Iterator[str]:
    arithmetic = (
        f"at least {found['arithmetic_ms']:.0f} ms for arithmetic, at the "
        f"{found['peak_gflop_s']:.0f} GFLOP/s measured here"
    )
    memory = (  # caches may serve some of it
        f"up to {found['memory_ms']:.0f} ms for moving data, at the {found['copy_gb_s']:.1f} GB/s "
        "measured here"
    )
    spent = f"of {found['measured_ms']:.0f} ms {who}"
    less = f"what helps is less of it ({smaller})"
    if found["bound"] == "arithmetic":
        yield f"compute-bound: {spent} {arithmetic}; {less}."
    elif found["bound"] == "memory":
        yield f"memory-bound: {spent} {memory}; {less}."
    elif found["bound"] == "both":
        yield f"bound by arithmetic and memory: {spent} {arithmetic}, and {memory}; {less}."
    elif found["bound"] == "neither":
        larger = "; whether a larger --batch-size helps, a second profile tells" * can_grow
        yield (
            f"neither compute- nor memory-bound: {spent} {arithmetic}, and {memory}; the rest goes "
            f"into operators that reach neither and into what lies between them{larger}."
        )
