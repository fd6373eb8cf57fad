"""The profiled steps: they are the steps the project makes, with all their time in stages."""

import contextlib
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from common.coco import load_split
from common.fastpath import fast_training, normalise_batch, precision_safe_autocast
from common.inference_graph import InferenceGraph
from common.models import load_model
from common.training_losses import LOSS_NAMES, training_losses
from phase2_optimization import profile_steps
from phase2_optimization.amp_batches import image_seeds, training_batches
from phase2_optimization.profile_steps import (
    LossesLog,
    inference_arm,
    name_of,
    stock_inference_arm,
    stock_training_arm,
)
from phase2_optimization.roofline import OperatorTraffic
from phase2_optimization.stages import NETWORKS, OTHER, STAGES, StageClock

CPU = torch.device("cpu")
FORWARD = {"transform", "backbone", "FPN", "RPN", "RoI heads"}


@pytest.fixture(scope="module")
def loaded(model_path):
    return load_model(model_path, CPU)


@pytest.fixture(scope="module")
def train(data_path):
    return load_split(data_path, "train")


@pytest.fixture(scope="module")
def val(data_path):
    return load_split(data_path, "val")


def weights(loaded):
    return {name: value.clone() for name, value in loaded.model.state_dict().items()}


def staged(arm, steps=2):
    clock = StageClock(CPU)
    for _ in range(steps):
        with arm.watch(clock), clock.step():
            arm.step(clock)
    return clock


def assert_unchanged(loaded, before):
    assert all(
        torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items()
    )
    assert not loaded.model.training
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_training_step_is_that_of_the_shared_parts(loaded, train, monkeypatch, amp):
    seen, before = [], weights(loaded)
    note = LossesLog.note
    monkeypatch.setattr(
        LossesLog,
        "note",
        lambda self, losses, ok: seen.append((losses, ok)) or note(self, losses, ok),
    )
    with profile_steps.training_arm(loaded, train, CPU, 2, amp, seed=3) as arm:
        clock = staged(arm, steps=1)
        assert arm.dtype is {"off": torch.float32, "bf16": torch.bfloat16}[amp]
    expected = {*FORWARD, "data wait", "copy to device", "backward", "optimizer", "logging", OTHER}
    assert set(clock.steps[0]) == expected
    assert expected - {OTHER} < set(STAGES)
    ((losses, is_finite),) = seen
    assert set(losses) == set(LOSS_NAMES)
    assert bool(is_finite)
    assert_unchanged(loaded, before)

    model = load_model(loaded.path, CPU).model.to(memory_format=torch.channels_last).train()
    (batch,) = training_batches(train, 2, 1, min_size=64, max_size=96, seed=3)
    autocast = contextlib.nullcontext()
    if amp == "bf16":
        autocast = precision_safe_autocast(model, torch.bfloat16, "cpu")
    with fast_training(model), autocast:
        images = normalise_batch(model, batch.images, batch.sizes)
        sums = training_losses(model, images, batch.sizes, batch.targets, image_seeds(3, 3, 2))
    for name, loss in sums.losses().items():
        torch.testing.assert_close(losses[name], loss)


def test_a_step_of_the_optimizer_is_made(loaded, train, monkeypatch):
    monkeypatch.setattr(profile_steps, "LEARNING_RATE", 0.01)
    copies = []
    copy_of = profile_steps._trained_copy
    monkeypatch.setattr(
        profile_steps, "_trained_copy", lambda *args: copies.append(copy_of(*args)) or copies[-1]
    )
    before = weights(loaded)
    with profile_steps.training_arm(loaded, train, CPU, 2, "off", seed=0) as arm:
        staged(arm, steps=1)
    staged(stock_training_arm(loaded, train, CPU, 2, seed=0), steps=1)
    for model in copies:
        changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
        assert len(changed) > 0.9 * len(list(model.parameters()))
    assert_unchanged(loaded, before)


def test_a_loss_that_is_no_number_changes_no_weight(loaded, train, monkeypatch):
    copies, sums = [], profile_steps.training_losses
    copy_of = profile_steps._trained_copy
    monkeypatch.setattr(profile_steps, "LEARNING_RATE", 0.01)
    monkeypatch.setattr(
        profile_steps, "_trained_copy", lambda *args: copies.append(copy_of(*args)) or copies[-1]
    )

    def spoilt(*args):
        found = sums(*args)
        return SimpleNamespace(losses=lambda: {k: v * torch.nan for k, v in found.losses().items()})

    monkeypatch.setattr(profile_steps, "training_losses", spoilt)
    before = weights(loaded)
    with profile_steps.training_arm(loaded, train, CPU, 2, "off", seed=0) as arm:
        staged(arm, steps=1)
    (model,) = copies
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_losses_are_read_every_few_steps_only(monkeypatch):
    monkeypatch.setitem(profile_steps.LOOK_EVERY, "cpu", 3)
    log = LossesLog(CPU)
    for step in range(5):
        losses = {"a": torch.tensor(float(step)), "b": torch.tensor(2.0)}
        log.note(losses, torch.tensor(step != 1))
        assert len(log.rows) == (0 if step < 2 else 3)
    assert log.rows == [[0, 2], [0, 0], [2, 2]]  # a step that is not made counts for nothing


def test_the_stock_step_is_torchvisions(loaded, train):
    before = weights(loaded)
    clock = staged(stock_training_arm(loaded, train, CPU, 2, seed=0))
    steps = {"data wait", "copy to device", "logging", "backward", "optimizer", OTHER}
    assert set(clock.steps[0]) == {*FORWARD, "post-processing", *steps}
    assert_unchanged(loaded, before)


INFERENCE = {*FORWARD, "data wait", "copy to device", "post-processing", "results to host"}


@pytest.mark.parametrize(
    ("native", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)], ids=["FP32", "BF16"]
)
def test_inference_is_what_videos_are_detected_with(loaded, val, monkeypatch, native, dtype):
    """In the precision that is native: on images of the common size, with all its stages."""
    monkeypatch.setattr(profile_steps, "native_amp", lambda device: native)
    before, calls, graphs = weights(loaded), [], []
    forward, ship = InferenceGraph.forward, profile_steps.shipped_graph

    def noted(self, images):
        calls.append((images, forward(self, images)))
        return calls[-1][1]

    monkeypatch.setattr(InferenceGraph, "forward", noted)
    monkeypatch.setattr(
        profile_steps, "shipped_graph", lambda *args: graphs.append(ship(*args)) or graphs[-1]
    )
    arm = inference_arm(loaded, val, CPU, batch_size=2)
    clock = staged(arm)
    assert arm.dtype is dtype
    assert name_of(dtype) in arm.description
    assert set(clock.steps[1]) == {*INFERENCE, OTHER}
    typical = clock.typical_ms()
    assert typical[OTHER] < 0.2 * sum(typical.values())
    images = [given for given, _ in calls]
    assert [tuple(given.shape) for given in images] == [(2, 48, 64, 3)] * 2
    assert not torch.equal(*images)  # three images of that size are gone through in turn
    (graph,) = graphs
    assert next(graph.backbone.parameters()).dtype is dtype
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in graph.modules())  # all are folded
    with torch.inference_mode():
        expected = ship(load_model(loaded.path, CPU).model, CPU, dtype)(images[1])
    for found, value in zip(calls[1][1], expected, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=0)
    assert_unchanged(loaded, before)


def flops_by_operator(arm) -> dict[str, int]:
    clock = StageClock(CPU, wait_at_stages=False)
    with arm.watch(clock), OperatorTraffic(CPU, clock, NETWORKS) as traffic:
        arm.step(clock)
    counts = Counter()
    for call in traffic.calls:
        counts[call.operator] += call.flops
    return dict(+counts)


def test_winograds_arithmetic_stands_in_for_that_of_the_direct_sum(loaded, val, monkeypatch):
    """Of the demo detector's convolutions three have 128 channels and maps of 6 x 4, two tiles,
    and one has 192 on 3 x 2, one tile, of two images."""
    stock = flops_by_operator(stock_inference_arm(loaded, val, CPU, batch_size=2))
    monkeypatch.setattr(profile_steps, "native_amp", lambda device: "off")
    own = flops_by_operator(inference_arm(loaded, val, CPU, batch_size=2))
    channels = ((128, 3 * 2 * 24, 3 * 2 * 2), (192, 2 * 6, 2 * 1))  # places and tiles of them all
    direct = sum(2 * 9 * c * c * places for c, places, _ in channels)
    assert own.pop("aten::convolution") == stock.pop("aten::convolution") - direct
    winograd = sum(2 * (36 * c * c + (36 + 16) * 36 * c) * tiles for c, _, tiles in channels)
    assert own.pop("detection::winograd_conv2d") == winograd
    assert own == stock  # products of the box head


def test_the_stock_inference_is_torchvisions_in_fp32(loaded, val):
    before = weights(loaded)
    arm = stock_inference_arm(loaded, val, CPU, batch_size=2)
    assert arm.dtype is torch.float32
    assert set(staged(arm).steps[1]) == {*INFERENCE, OTHER}
    assert_unchanged(loaded, before)
