"""Fast training as a whole: the losses of torchvision, few waits, and no trace afterwards."""

import collections
import contextlib
import inspect
from unittest import mock

import pytest
import torch

from common import fastpath_boxes, roi_align
from common.fastpath import fast_training, normalise_batch, precision_safe_autocast
from common.training_losses import count_samples, training_losses
from tests.detector_batches import (
    assert_close,
    frozen_detector,
    gradients,
    mixed_batch,
    stock_losses,
)

MOBILENET = "fasterrcnn_mobilenet_v3_large_320_fpn"
RESNET = "fasterrcnn_resnet50_fpn"
SWITCHES = [
    name
    for name, parameter in inspect.signature(fast_training).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
]


@pytest.fixture(scope="module")
def demo():
    return frozen_detector("demo")


# --- against torchvision ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "count"),
    [*[("demo", count) for count in range(1, 6)], (MOBILENET, 2), (RESNET, 2)],
)
def test_losses_and_gradients_are_those_of_torchvision(architecture, count):
    """In float64, where no rounding decides which of two nearly equal proposals is kept."""
    model = frozen_detector(architecture).double()
    batch = mixed_batch(model, count, dtype=torch.float64)
    expected = stock_losses(model, batch)
    with fast_training(model):
        found = training_losses(model, *batch.whole).losses()
        fast_gradients = gradients(model, found)
        through_torchvision = stock_losses(model, batch)
    assert_close(found, expected, 1e-6)
    assert_close(through_torchvision, expected, 1e-6)
    assert_close(fast_gradients, gradients(model, expected), 1e-5)


@pytest.mark.parametrize("count", [2, 5])
def test_in_fp32_losses_are_those_of_torchvision_up_to_rounding(demo, count):
    batch = mixed_batch(demo, count)
    expected = stock_losses(demo, batch)
    with fast_training(demo):
        found = training_losses(demo, *batch.whole).losses()
    assert_close(found, expected, 1e-5)


def test_parts_of_a_batch_add_up_to_the_whole(demo):
    batch = mixed_batch(demo, 4)
    with fast_training(demo):
        whole = training_losses(demo, *batch.whole)
        total = sum(count_samples(demo, *batch.part(*ends)) for ends in ((0, 1), (1, 4)))
        shares = [
            training_losses(demo, *batch.part(*ends)).losses(total) for ends in ((0, 1), (1, 4))
        ]
        summed = {name: shares[0][name] + shares[1][name] for name in shares[0]}
        assert torch.equal(total, whole.counts)
        assert_close(summed, whole.losses(), 1e-6)
        assert_close(gradients(demo, summed), gradients(demo, whole.losses()), 1e-5)


def test_bfloat16_leaves_the_anchors_alone_also_around_the_whole_model(demo):
    batch = mixed_batch(demo, 2)
    anchors = []
    hook = demo.rpn.anchor_generator.register_forward_hook(
        lambda _module, _inputs, output: anchors.append(output[0])
    )
    training_losses(demo, *batch.whole)
    with fast_training(demo):
        with precision_safe_autocast(demo, torch.bfloat16, "cpu"):
            careful = training_losses(demo, *batch.whole).losses()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            careless = training_losses(demo, *batch.whole).losses()
    hook.remove()
    assert len(anchors) == 3
    assert all(torch.equal(found, anchors[0]) for found in anchors)
    assert all(loss.isfinite() for loss in (*careful.values(), *careless.values()))


# --- waiting for the device -------------------------------------------------------------------

WAITING_OPERATORS = {
    "aten::nonzero",
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::repeat_interleave",
    "torchvision::nms",
}


def waits(step, monkeypatch):
    """How often a step on a GPU would wait for it, by operator, nested ones included."""
    tolist = torch.Tensor.tolist
    seen = collections.Counter()
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda tensor: seen.update(["tolist"]) or tolist(tensor)
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    monkeypatch.undo()
    events = profile.key_averages()
    seen.update({event.key: event.count for event in events if event.key in WAITING_OPERATORS})
    return seen


@pytest.mark.parametrize("count", [1, 5])
def test_a_step_waits_for_nms_and_twice_more(demo, count, monkeypatch):
    batch = mixed_batch(demo, count)
    stock = waits(lambda: demo(batch.images, batch.targets), monkeypatch)
    monkeypatch.setattr(fastpath_boxes, "SYNCHRONOUS_DEVICES", ())
    monkeypatch.setattr(roi_align, "GATHERING_DEVICES", ())
    with fast_training(demo):
        training_losses(demo, *batch.whole)  # computes the anchors
        found = waits(lambda: training_losses(demo, *batch.whole), monkeypatch)
    assert stock["aten::nonzero"] > 8 * count
    # One call for all levels of an image; then the sampled regions and their levels are counted.
    assert dict(found) == {"torchvision::nms": count, "tolist": 2}


def test_the_path_for_gpus_has_the_same_losses(demo, monkeypatch):
    batch = mixed_batch(demo, 4)
    expected = stock_losses(demo, batch)
    monkeypatch.setattr(fastpath_boxes, "SYNCHRONOUS_DEVICES", ())
    monkeypatch.setattr(roi_align, "GATHERING_DEVICES", ())
    with fast_training(demo):
        found = training_losses(demo, *batch.whole).losses()
    assert_close(found, expected, 1e-5)
    assert_close(gradients(demo, found), gradients(demo, expected), 1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", ["demo", RESNET])
def test_on_a_gpu_losses_are_those_of_torchvision(architecture):
    model = frozen_detector(architecture).cuda()
    batch = mixed_batch(model, 4).to("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected = stock_losses(model, batch)
    with fast_training(model):
        found = training_losses(model, *batch.whole).losses()
    assert_close(found, expected, 1e-3)


# --- undone afterwards ------------------------------------------------------------------------


def traces(model):
    """What is set on the single modules and box coders, where only classes should have it."""
    return [set(vars(part)) for part in (*model.modules(), model.rpn.box_coder)]


@pytest.mark.parametrize("switch", [*SWITCHES, "all"])
def test_nothing_is_left_behind(demo, switch):
    batch = mixed_batch(demo, 2)
    state = {name: value.clone() for name, value in demo.state_dict().items()}
    expected, before = stock_losses(demo, batch), traces(demo)
    chosen = {} if switch == "all" else {**dict.fromkeys(SWITCHES, False), switch: True}
    with fast_training(demo, **chosen):
        with fast_training(demo, **chosen):
            inner = traces(demo)
        assert traces(demo) == inner != before  # the outer block goes on
        gradients(demo, training_losses(demo, *batch.whole).losses())
        assert all(map(torch.equal, demo.state_dict().values(), state.values()))
    assert traces(demo) == before
    assert list(demo.state_dict()) == list(state)
    assert all(map(torch.equal, demo.state_dict().values(), state.values()))
    assert_close(stock_losses(demo, batch), expected, 0)


def test_nothing_is_left_behind_by_an_error(demo):
    before = traces(demo)
    with pytest.raises(ZeroDivisionError), fast_training(demo), fast_training(demo):
        raise ZeroDivisionError
    assert traces(demo) == before


def test_without_switches_nothing_is_replaced(demo):
    before = traces(demo)
    with fast_training(demo, **dict.fromkeys(SWITCHES, False)):
        assert traces(demo) == before


@pytest.mark.parametrize("autocast_first", [True, False])
def test_it_goes_together_with_precision_safe_autocast_in_either_order(demo, autocast_first):
    before, batch = traces(demo), mixed_batch(demo, 2)
    contexts = [
        fast_training(demo),
        precision_safe_autocast(demo, torch.bfloat16, "cpu"),
    ]
    with contextlib.ExitStack() as stack:
        for context in reversed(contexts) if autocast_first else contexts:
            stack.enter_context(context)
        losses = training_losses(demo, *batch.whole).losses()
    assert traces(demo) == before
    expected = stock_losses(demo, batch)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    # The other losses depend on which proposals are kept.
    objectness = losses["loss_objectness"].item()
    assert objectness == pytest.approx(expected["loss_objectness"].item(), rel=0.05)


# --- normalisation ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_batch_is_normalised_as_torchvision_does_and_zero_outside(demo, channels_last):
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 96), (80, 64), (64, 65)]
    canvas = torch.randint(0, 256, (3, 3, 96, 96), generator=generator, dtype=torch.uint8)
    images = [
        image[:, :height, :width] for image, (height, width) in zip(canvas, sizes, strict=True)
    ]
    expected, _ = demo.transform([image.float() / 255 for image in images])
    padded = torch.zeros_like(expected.tensors)
    assert expected.image_sizes == sizes
    given = canvas[:, :, : padded.shape[2], : padded.shape[3]]
    if channels_last:
        given = given.contiguous(memory_format=torch.channels_last)
    found = normalise_batch(demo, given, sizes)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected.tensors).abs().max() < 1e-6
    for row, (height, width) in zip(found, sizes, strict=True):
        assert row[:, height:].count_nonzero() == row[:, :, width:].count_nonzero() == 0
    assert given[0, :, 70:].count_nonzero() > 0  # what lay outside is not looked at, and stays


def test_mean_and_deviation_are_those_of_the_model(demo):
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with mock.patch.multiple(demo.transform, image_mean=[0.5, 0.25, 0.0], image_std=[0.5, 1, 2]):
        found = normalise_batch(demo, black, [(32, 32)])
        white = normalise_batch(demo, black + 255, [(32, 32)])
    assert found[0, :, 3, 4].tolist() == pytest.approx([-1, -0.25, 0])
    assert white[0, :, 31, 31].tolist() == pytest.approx([1, 0.75, 0.5])
