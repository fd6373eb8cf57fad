"""The box arithmetic of fast training equals torchvision's, bit for bit."""

from unittest import mock

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou

from common import fastpath_boxes
from common.fastpath_boxes import (
    cached_anchors,
    lean_matching,
    replaced,
    survivors_decoded,
    thresholded_first,
)
from tests.detector_batches import assert_close, frozen_detector, gradients, mixed_batch
from tests.random_detectors import random_detector

MOBILENET = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def demo():
    return frozen_detector("demo")


def plain_step(model, batch):
    """Losses and gradients of torchvision's training forward."""
    torch.manual_seed(3)
    losses = model(batch.images, batch.targets)
    return losses, gradients(model, losses)


SWITCHES = {
    "cached_anchors": lambda model: cached_anchors(model.rpn.anchor_generator),
    "survivors_decoded": lambda model: survivors_decoded(model.rpn),
    "lean_matching": lambda model: lean_matching(model.rpn),
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("architecture", ["demo", MOBILENET])
def test_losses_and_gradients_are_torchvisions_bit_for_bit(architecture, switch):
    model = frozen_detector(architecture)
    for count in (1, 4):
        batch = mixed_batch(model, count)
        losses, slopes = plain_step(model, batch)
        with SWITCHES[switch](model):
            fast_losses, fast_slopes = plain_step(model, batch)
        assert_close(fast_losses, losses, 0)
        assert_close(fast_slopes, slopes, 0)


@pytest.mark.parametrize("switch", SWITCHES)
def test_detections_are_torchvisions_too(demo, switch):
    batch = mixed_batch(demo, 3)
    demo.eval()
    with torch.inference_mode():
        expected = demo(batch.images)
        with SWITCHES[switch](demo):
            found = demo(batch.images)
    demo.train()
    assert sum(len(output["boxes"]) for output in expected) > 10
    for own, stock in zip(found, expected, strict=True):
        assert_close(own, stock, 0)


@pytest.mark.parametrize("score_threshold", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("limit", [50, 3])
def test_selecting_before_decoding_gives_torchvisions_detections(score_threshold, limit):
    model = random_detector("demo", min_size=96, max_size=192)
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = score_threshold, limit
    images = [torch.rand(3, *size) for size in [(80, 120), (120, 70), (64, 64)]]
    with torch.inference_mode():
        expected = model(images)
        with thresholded_first(model.roi_heads):
            found = model(images)
    counts = [len(output["boxes"]) for output in expected]
    assert max(counts) == (0 if score_threshold == 1 else limit) or max(counts) > 3
    for own, stock in zip(found, expected, strict=True):
        for name, values in stock.items():
            torch.testing.assert_close(own[name], values, rtol=1e-6, atol=0)


# --- anchors ----------------------------------------------------------------------------------


def test_anchors_are_computed_once_for_each_size_and_stay_fp32(demo):
    generator = demo.rpn.anchor_generator
    maps = [torch.empty(2, 1, *grid) for grid in ((12, 20), (6, 10), (3, 5), (2, 3))]
    images = ImageList(torch.empty(2, 3, 96, 160), [(96, 160)] * 2)
    expected = generator(images, maps)
    with (
        mock.patch.object(generator, "grid_anchors", wraps=generator.grid_anchors) as computed,
        cached_anchors(generator),
    ):
        for dtype in (torch.bfloat16, torch.float32, torch.float16):
            found = generator(images, [level.to(dtype) for level in maps])
            assert all(map(torch.equal, found, expected))
            assert found[0].dtype == torch.float32
            assert found[0] is found[1]
        assert computed.call_count == 1
        generator(ImageList(torch.empty(1, 3, 96, 192), [(96, 192)]), maps)
        assert computed.call_count == 2  # another stride, though the grid is the same


def test_anchors_first_asked_for_in_inference_serve_training(demo):
    generator = demo.rpn.anchor_generator
    maps = [torch.empty(1, 1, 8, 8)] * 4
    with cached_anchors(generator):
        with torch.inference_mode():
            generator(ImageList(torch.empty(1, 3, 64, 64), [(64, 64)]), maps)
        found = generator(ImageList(torch.empty(1, 3, 64, 64), [(64, 64)]), maps)
    assert not found[0].is_inference()


# --- proposals --------------------------------------------------------------------------------


def random_candidates(seed, count=400, levels=3):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 80
    boxes = torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * 40), dim=1)
    scores = torch.randperm(count, generator=generator) / count
    return boxes, scores, torch.randint(0, levels, (count,), generator=generator).sort()[0]


def test_suppression_without_dropping_equals_dropping_first():
    numbers = (0, 1, 150, 399)  # of unusable boxes
    boxes, scores, levels = map(torch.stack, zip(*map(random_candidates, numbers), strict=True))
    levels = levels[0]
    usable = torch.rand(4, 400, generator=torch.Generator().manual_seed(1)).argsort(1)
    usable = usable >= torch.tensor(numbers)[:, None]
    boxes[~usable] = torch.nan  # such as overflowing weights make
    expected = fastpath_boxes._dropped_and_suppressed(boxes, scores, levels, usable, 0.5)
    places = [own.nonzero()[:, 0] for own in usable]
    by_hand = [
        place[batched_nms(own[place], own_scores[place], levels[place], 0.5)]
        for own, own_scores, place in zip(boxes, scores, places, strict=True)
    ]
    before = boxes.clone()
    found = fastpath_boxes._suppressed_without_dropping(boxes, scores, levels, usable, 0.5)
    for image, (own, stock, hand) in enumerate(zip(found, expected, by_hand, strict=True)):
        assert own.tolist() == stock.tolist() == hand.tolist()
        assert 1 <= len(own) <= len(places[image])
        assert torch.equal(boxes[image][own], before[image][own])
    assert len(found[0]) < 400


def test_of_unusable_boxes_one_harmless_box_stays():
    boxes, scores, levels = random_candidates(0)
    boxes = torch.stack((boxes, torch.full_like(boxes, torch.nan)))
    usable = torch.tensor([True, False])[:, None].expand(2, 400)
    kept = fastpath_boxes._suppressed_without_dropping(
        boxes, scores.expand(2, 400), levels, usable, 0.5
    )
    assert len(kept[0]) > 1
    assert boxes[1][kept[1]].tolist() == [[0, 0, 1, 1]]


def test_only_survivors_are_decoded(demo):
    batch = mixed_batch(demo, 2)
    with (
        mock.patch.object(fastpath_boxes, "decode", wraps=fastpath_boxes.decode) as decoded,
        survivors_decoded(demo.rpn),
    ):
        demo(batch.images, batch.targets)
    deltas, anchors, _ = decoded.call_args.args
    assert deltas.shape == anchors.shape
    levels = 4
    assert deltas.shape[1] <= levels * demo.rpn.pre_nms_top_n() < 4000


# --- matching ---------------------------------------------------------------------------------


def targets_of(*boxes):
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)}


GRID = torch.stack(
    torch.meshgrid(torch.arange(0.0, 96, 8), torch.arange(0.0, 96, 8), indexing="ij"), -1
).reshape(-1, 2)
ANCHORS = torch.cat([torch.cat((GRID, GRID + side), dim=1) for side in (8, 16, 32)])


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(targets_of(), id="no boxes"),
        pytest.param(targets_of([8, 8, 40, 40]), id="one that fits exactly"),
        pytest.param(targets_of([3, 3, 5, 5]), id="one tiny box, several best anchors tie"),
        pytest.param(targets_of([500, 500, 600, 600]), id="outside: every anchor is as bad"),
        pytest.param(targets_of([8, 8, 40, 40], [8, 8, 40, 40]), id="twice the same"),
        pytest.param(targets_of([0, 0, 16, 8], [0, 8, 16, 16]), id="two boxes fit as well"),
        pytest.param(
            targets_of(*[[i, 2 * i, i + 20, 2 * i + 14 + i] for i in range(25)]), id="many"
        ),
    ],
)
@pytest.mark.parametrize("at_once", [1, 3 * len(ANCHORS), 2**21])
def test_matching_is_torchvisions(demo, target, at_once, monkeypatch):
    monkeypatch.setitem(fastpath_boxes.OVERLAPS_AT_ONCE, "cpu", at_once)
    expected = demo.rpn.assign_targets_to_anchors([ANCHORS] * 2, [target, targets_of()])
    with lean_matching(demo.rpn):
        found = demo.rpn.assign_targets_to_anchors([ANCHORS] * 2, [target, targets_of()])
    positive = expected[0][0] > 0
    assert positive.any() == (len(target["boxes"]) > 0)
    for own, stock in zip(found[0], expected[0], strict=True):
        assert torch.equal(own, stock)
    assert torch.equal(found[1][0][positive], expected[1][0][positive])
    assert torch.equal(found[1][1], expected[1][1])


def test_overlaps_equal_to_a_threshold(demo, monkeypatch):
    monkeypatch.setattr(demo.rpn.proposal_matcher, "low_threshold", 1 / 16)
    monkeypatch.setattr(demo.rpn.proposal_matcher, "high_threshold", 1 / 4)
    target = targets_of([8, 8, 40, 40])  # anchors of 8 and 16 px inside cover 1/16 and 1/4
    (expected,), _ = demo.rpn.assign_targets_to_anchors([ANCHORS], [target])
    with lean_matching(demo.rpn):
        (found,), _ = demo.rpn.assign_targets_to_anchors([ANCHORS], [target])
    assert set(found.tolist()) == {-1, 0, 1}
    assert torch.equal(found, expected)


def test_overlaps_are_torchvisions_bit_for_bit():
    boxes = random_candidates(5)[0]
    assert torch.equal(fastpath_boxes._overlaps(boxes[:37], boxes), box_iou(boxes[:37], boxes))
    assert fastpath_boxes._overlaps(boxes[:5], boxes)[4, 4] == 1


# --- replacing --------------------------------------------------------------------------------


def test_replaced_attributes_return_to_what_they_were_also_when_nested():
    class Thing:
        name = "of the class"

    thing = Thing()
    with replaced(thing, name="outer", extra=1):
        with replaced(thing, name="inner"):
            assert thing.name == "inner"
        assert (thing.name, thing.extra) == ("outer", 1)
    assert thing.name == "of the class"
    assert vars(thing) == {}
