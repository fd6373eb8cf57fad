"""Advice on made-up profiles, each sentence with the figures by hand."""

import pytest

from phase2_optimization.advice import advise

QUIET = {"backbone": 0.3, "backward": 0.35, "RPN": 0.2, "optimizer": 0.05, "data wait": 0.1}


def part(shares=QUIET, reached=0.4, busy=None, processor=0.99, **activity):
    """A part of a report: shares of stages, share of the peak, and what a GPU did."""
    did = {
        "kernel_launches": 900,
        "kernels": 1000,
        "host_syncs": 7,
        "gpu_busy_ms": 20.0,
        "idle_after_syncs_ms": 0.0,
        "idle_between_launches_ms": 0.0,
    }
    return {
        "stages": [{"name": n, "ms": s * 100, "share": s} for n, s in shares.items()],
        "gpu_busy_share": busy,
        "processor_share": processor if busy is None else None,
        "device_activity": None if busy is None else {**did, **activity},
        "flops": {"computing_gflop_s": 57.4, "computing_share_of_peak": reached},
    }


def test_nothing_is_said_where_nothing_stands_out():
    assert advise(part(), part({"backbone": 0.4, "RPN": 0.4, "data wait": 0.05})) == []
    assert advise(part(busy=0.95), part(busy=0.91)) == []


def test_reading_that_is_not_hidden_has_a_bound_and_a_number_of_loader_processes():
    half = {"data wait": 0.28, "backbone": 0.4, "backward": 0.32}
    (training,) = advise(part(half), part())
    assert training == (
        "training: loader-bound where nothing reads ahead: the images take 28% of the step; hidden "
        "behind 1 loader process (train.py --workers), they would cost nothing, at most 1.39x."
    )
    # 8 s of reading against 2 s of computing: four processes read as fast as is computed
    (training,) = advise(part({"data wait": 0.8, "backbone": 0.2}), part())
    assert "behind 4 loader processes, a core each (train.py" in training
    assert "at most 5.00x" in training
    (inference,) = advise(part(), part({"data wait": 0.5, "backbone": 0.3, "RPN": 0.2}))
    assert inference.startswith("inference: loader-bound")
    assert "workers" not in inference
    assert "at most 2.00x" in inference


def test_a_large_stage_carries_amdahls_bound():
    half_as_long = "of the step; made twice as fast it would give"
    sentences = advise(part({"backward": 0.6, "backbone": 0.4}), part({"RPN": 0.5, "FPN": 0.3}))
    assert sentences == [
        f"training: the largest stage is backward with 60% {half_as_long} 1.43x.",
        f"inference: the largest stage is RPN with 50% {half_as_long} 1.33x.",
    ]
    assert advise(part({"other": 0.7, "backbone": 0.3}), part()) == []  # nobody knows what it is


def test_an_optimizer_shrinks_with_a_larger_batch():
    shares = {"optimizer": 0.25, "backward": 0.35, "backbone": 0.35}
    (sentence,) = advise(part(shares), part())
    # a step of 4 has 1 of optimizer; twice the batch makes 7 of which it is 1
    assert sentence == (
        "training: the optimizer takes 25% of the step, the same at every batch size; with twice "
        "the batch it would be 14%."
    )


def test_an_idle_gpu_is_launch_bound_where_nobody_waited():
    training = part(busy=0.6, idle_between_launches_ms=9.0, idle_after_syncs_ms=1.0)
    (sentence,) = advise(training, part())
    # 40% idle, nine tenths of it between launches: 1 / (1 - 0.36)
    assert sentence == (
        "training: launch-bound: the GPU is idle 36% of the step between 900 launches of 20 us of "
        "work each; fewer and larger ones (a larger batch, CUDA graphs, torch.compile) would give "
        "at most 1.56x."
    )


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
    ("reached", "verdict"), [(0.75, "compute-bound"), (0.6, "compute-bound"), (0.1, "memory-bound")]
)
def test_the_share_of_the_peak_tells_what_bounds_the_networks(reached, verdict):
    for busy in (None, 0.95):
        (sentence,) = advise(part(reached=reached, busy=busy), part())
        assert sentence.startswith(
            f"training: {verdict}: the networks run at 57 GFLOP/s, {reached:.0%} of what this "
            "machine was measured to do;"
        )


def test_arithmetic_is_no_topic_where_the_device_idles_or_networks_take_little():
    assert advise(part(reached=0.1, processor=0.5), part()) == []  # another process had it
    (sentence,) = advise(part(reached=0.1, busy=0.8, idle_between_launches_ms=1.0), part())
    assert "launch-bound" in sentence
    little = {"transform": 0.38, "post-processing": 0.3, "backbone": 0.32}
    assert advise(part(little, reached=0.9), part()) == []
