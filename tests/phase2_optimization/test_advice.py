"""Advice on made-up profiles, each sentence with the figures by hand."""

import dataclasses

import pytest
import torch

from common import environment
from common.fastpath import native_amp
from phase1_training import options
from phase2_optimization import advice
from phase2_optimization.advice import Setting, setting_of

CPU = Setting("cpu", loaders=1, half_precision="bf16", batch_can_grow=True)
GPU = dataclasses.replace(CPU, device="cuda")
FULL = dataclasses.replace(CPU, batch_can_grow=False)  # a batch has all training images already

QUIET = {"backbone": 0.3, "backward": 0.35, "RPN": 0.2, "optimizer": 0.05, "data wait": 0.1}


def advise(training, inference, setting=None):
    on_gpu = any(part["gpu_busy_share"] is not None for part in (training, inference))
    return advice.advise(training, inference, setting or (GPU if on_gpu else CPU))


def part(shares=QUIET, bound="unknown", busy=None, precision="float32", **activity):
    """A part of a report: shares of stages, what bounds its networks, and what a GPU did."""
    did = {
        "kernel_launches": 900,
        "graph_launches": 0,
        "kernels": 1000,
        "host_syncs": 7,
        "gpu_busy_ms": 20.0,
        "idle_after_syncs_ms": 0.0,
        "idle_between_launches_ms": 0.0,
    }
    return {
        "stages": [{"name": n, "ms": s * 100, "share": s} for n, s in shares.items()],
        "gpu_busy_share": busy,
        "device_activity": None if busy is None else {**did, **activity},
        "precision": precision,
        "roofline": {
            "peak_gflop_s": 57.4,
            "copy_gb_s": 12.34,
            "measured_ms": 90.0,
            "arithmetic_ms": 60.0,
            "memory_ms": 20.0,
            "bound": bound,
        },
    }


def test_nothing_is_said_where_nothing_stands_out():
    assert advise(part(), part({"backbone": 0.4, "RPN": 0.4, "data wait": 0.05})) == []
    assert advise(part(busy=0.95), part(busy=0.91)) == []


def test_reading_that_is_not_hidden_has_a_bound_and_a_number_of_loader_processes():
    # 8 s of reading against 2 s of computing: four processes read as fast as is computed
    (training,) = advise(part({"data wait": 0.8, "backbone": 0.2}), part())
    assert training == (
        "training: loader-bound where nothing reads ahead, as here: the images take 80% of the "
        "step; train.py reads ahead in 1 process by default, and --workers 4, with a free core "
        "each, would hide it all: at most 5.00x."
    )
    (inference,) = advise(part(), part({"data wait": 0.5, "backbone": 0.3, "RPN": 0.2}))
    assert inference == (
        "inference: loader-bound where nothing reads ahead, as here: the images take 50% of the "
        "step; reading them ahead, on a core that is free, would hide that: at most 2.00x."
    )
    # 7 s of reading against 3 s of detecting: one core alone would give 1 / 0.7
    (inference,) = advise(part(), part({"data wait": 0.7, "backbone": 0.3}))
    assert inference == (
        "inference: loader-bound where nothing reads ahead, as here: the images take 70% of the "
        "step; reading them ahead, on 3 cores that are free, would hide it all: at most 3.33x."
    )


@pytest.mark.parametrize(("loaders", "told"), [(1, True), (2, True), (3, False), (4, False)])
def test_loader_processes_that_train_py_has_anyway_are_not_advised(loaders, told):
    """3 s of reading against 1 s of computing: three of them keep up."""
    setting = dataclasses.replace(CPU, loaders=loaders)
    found = advise(part({"data wait": 0.75, "backbone": 0.25}), part(), setting)
    assert bool(found) is told


def test_the_setting_is_that_of_the_machine_and_of_train_py(monkeypatch):
    cpu = torch.device("cpu")
    assert setting_of(cpu, 4, 5) == Setting("cpu", options.WORKERS, native_amp(cpu), True)
    assert not setting_of(cpu, 4, 4).batch_can_grow
    monkeypatch.setattr(environment, "usable_cores", lambda: 32)
    assert setting_of(cpu, 4, 4).loaders == 4


def test_a_large_stage_carries_amdahls_bound():
    half_as_long = "of the step; made twice as fast it would give"
    sentences = advise(part({"backward": 0.6, "backbone": 0.4}), part({"RPN": 0.5, "FPN": 0.3}))
    assert sentences == [
        f"training: the largest stage is backward with 60% {half_as_long} 1.43x.",
        f"inference: the largest stage is RPN with 50% {half_as_long} 1.33x.",
    ]
    assert advise(part({"other": 0.7, "backbone": 0.3}), part()) == []  # nobody knows what it is


def test_stages_of_a_gpu_are_those_of_a_step_that_waits():
    (sentence,) = advise(part({"backward": 0.6, "backbone": 0.3}, busy=0.95), part(busy=0.95))
    assert "backward with 60% of a step that waits after every stage; made" in sentence


def test_an_optimizer_shrinks_with_a_larger_batch_if_there_is_one():
    shares = {"optimizer": 0.25, "backward": 0.35, "backbone": 0.35}
    (sentence,) = advise(part(shares), part())
    # a step of 4 has 1 of optimizer; twice the batch makes 7 of which it is 1
    assert sentence == (
        "training: the optimizer takes 25% of the step, whatever the batch size; with twice the "
        "batch, where all else doubles, it would be 14%."
    )
    assert advise(part(shares), part(), FULL) == []


def test_an_idle_gpu_is_launch_bound_where_nobody_waited():
    training = part(busy=0.6, idle_between_launches_ms=9.0, idle_after_syncs_ms=1.0)
    (sentence,) = advise(training, part())
    # 40% idle, nine tenths of it between launches: 1 / (1 - 0.36)
    assert sentence == (
        "training: launch-bound: the GPU is idle 36% of the step between 900 launches of 20 us of "
        "work each; fewer and larger ones (a larger batch) would give at most 1.56x."
    )


def test_what_makes_fewer_launches_is_advised_where_it_can_be_had_and_is_not_on():
    idle = {"busy": 0.6, "idle_between_launches_ms": 9.0}
    full = dataclasses.replace(GPU, batch_can_grow=False)
    (training,) = advise(part(**idle), part(), full)
    assert "fewer and larger ones would give" in training
    (inference,) = advise(part(), part(**idle), full)
    assert (
        "ones (a larger batch, CUDA graphs, torch.compile: benchmark_inference.py times them) "
        in inference
    )
    (inference,) = advise(part(), part(**idle, graph_launches=3))
    assert "larger ones (a larger batch, torch.compile:" in inference


def test_a_gpu_that_idles_outside_of_all_gaps_is_not_explained():
    assert advise(part(busy=0.5), part(busy=0.5)) == []


def test_an_idle_gpu_is_sync_bound_where_the_host_had_waited():
    inference = part(busy=0.7, idle_after_syncs_ms=4.0, idle_between_launches_ms=1.0)
    (sentence,) = advise(part(), inference)
    assert sentence == (
        "inference: sync-bound: the host waits for the GPU 7 times, and the GPU then idles 24% of "
        "the step until new work arrives; without these waits at most 1.32x."
    )
    both = part(busy=0.5, idle_after_syncs_ms=1.0, idle_between_launches_ms=1.0)
    assert [line.split(": ")[1] for line in advise(both, part())] == ["launch-bound", "sync-bound"]


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (
            "arithmetic",
            "compute-bound: of 90 ms the networks need at least 60 ms for arithmetic, at the 57 "
            "GFLOP/s measured here; what helps is less of it (smaller images, a lighter "
            "architecture, --amp bf16).",
        ),
        (
            "memory",
            "memory-bound: of 90 ms the networks need up to 20 ms for moving data, at the 12.3 "
            "GB/s measured here; what helps is less of it (smaller images, a lighter "
            "architecture, --amp bf16).",
        ),
        (
            "both",
            "bound by arithmetic and memory: of 90 ms the networks need at least 60 ms for "
            "arithmetic, at the 57 GFLOP/s measured here, and up to 20 ms for moving data, at the "
            "12.3 GB/s measured here; what helps is less of it (smaller images, a lighter "
            "architecture, --amp bf16).",
        ),
        (
            "neither",
            "neither compute- nor memory-bound: of 90 ms the networks need at least 60 ms for "
            "arithmetic, at the 57 GFLOP/s measured here, and up to 20 ms for moving data, at the "
            "12.3 GB/s measured here; the rest goes into operators that reach neither and into "
            "what lies between them; whether a larger --batch-size helps, a second profile tells.",
        ),
    ],
)
def test_the_roofline_tells_what_bounds_the_networks(bound, words):
    assert advise(part(bound=bound), part()) == [f"training: {words}"]
    of_a_gpu = advise(part(bound=bound, busy=0.95), part())
    assert of_a_gpu == [f"training: {words.replace('networks need', 'work of the GPU needs')}"]
    assert advise(part(), part(bound=bound)) == [
        f"inference: {words.replace(', --amp bf16', '')}"  # it has what is native
    ]


@pytest.mark.parametrize("bound", ["arithmetic", "memory", "both"])
def test_what_is_on_already_is_not_advised(bound):
    """The steps have channels_last memory and fused optimizers whatever the options."""
    (sentence,) = advise(part(bound=bound, precision="bfloat16"), part())
    assert "(smaller images, a lighter architecture)" in sentence
    nothing_native = dataclasses.replace(CPU, half_precision="off")
    (sentence,) = advise(part(bound=bound), part(), nothing_native)
    assert "(smaller images, a lighter architecture)" in sentence


def test_no_larger_batch_is_advised_than_there_are_images_for():
    (sentence,) = advise(part(bound="neither"), part(), FULL)
    assert sentence.endswith("what lies between them.")


@pytest.mark.parametrize("bound", ["arithmetic", "memory", "both", "neither"])
def test_arithmetic_is_no_topic_where_the_device_idles_or_networks_take_little(bound):
    (sentence,) = advise(part(bound=bound, busy=0.8, idle_between_launches_ms=1.0), part())
    assert "launch-bound" in sentence
    little = {"transform": 0.38, "post-processing": 0.3, "backbone": 0.32}
    assert advise(part(little, bound), part()) == []


def test_what_the_roofline_cannot_tell_is_not_told():
    assert advise(part(bound="unknown"), part(bound="unknown", busy=0.95)) == []
