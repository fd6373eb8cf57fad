"""The training losses: torchvision's own, and the same however a batch is split."""

import contextlib
import itertools
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, encode_boxes

from common import training_losses as subject
from common.fastpath import precision_safe_autocast
from common.training_losses import (
    LOSS_NAMES,
    LossSums,
    SamplerSettings,
    count_samples,
    sample_balanced,
    training_losses,
)
from tests.detector_batches import (
    assert_close,
    frozen_detector,
    gradients,
    mixed_batch,
    stock_losses,
)
from tests.random_detectors import random_detector

MOBILENET = "fasterrcnn_mobilenet_v3_large_320_fpn"
RESNET = "fasterrcnn_resnet50_fpn"


@pytest.fixture(scope="module")
def demo():
    return frozen_detector("demo")


# --- against torchvision ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "count"),
    [*[("demo", count) for count in range(1, 6)], (MOBILENET, 3), (RESNET, 2)],
)
def test_losses_and_gradients_are_those_of_torchvision(architecture, count):
    model = frozen_detector(architecture)
    batch = mixed_batch(model, count)
    expected = stock_losses(model, batch)
    found = training_losses(model, *batch.whole).losses()
    assert set(found) == set(LOSS_NAMES)
    assert_close(found, expected, 2e-6)
    assert_close(gradients(model, found), gradients(model, expected), 1e-4)


def test_a_box_head_with_batch_normalisation_sees_the_sampled_regions_only():
    """Places that hold no sample would enter its statistics."""
    model = frozen_detector("demo")
    model.rpn._pre_nms_top_n["training"] = model.rpn._post_nms_top_n["training"] = 8
    model.roi_heads.box_head = nn.Sequential(model.roi_heads.box_head, nn.BatchNorm1d(256))
    batch = mixed_batch(model, 3)
    expected = stock_losses(model, batch)
    found = training_losses(model, *batch.whole)
    assert found.counts[1].item() < 3 * model.roi_heads.fg_bg_sampler.batch_size_per_image
    assert_close(found.losses(), expected, 2e-6)


def test_fewer_candidates_than_asked_for():
    model = frozen_detector("demo")
    model.rpn.fg_bg_sampler.batch_size_per_image = 10**6
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 10**6
    batch = mixed_batch(model, 3)
    expected = stock_losses(model, batch)
    assert_close(training_losses(model, *batch.whole).losses(), expected, 2e-6)


def test_a_batch_without_any_box_has_finite_losses_and_gradients(demo):
    batch = mixed_batch(demo, 2, boxes=False)
    found = training_losses(demo, *batch.whole)
    losses = found.losses()
    assert losses["loss_box_reg"].item() == losses["loss_rpn_box_reg"].item() == 0
    assert_close(losses, stock_losses(demo, batch), 2e-6)
    assert all(gradient.isfinite().all() for gradient in gradients(demo, losses).values())


def test_features_may_be_given(demo):
    batch = mixed_batch(demo, 2)
    features = demo.backbone(batch.pixels)
    blank = torch.empty(1).expand_as(batch.pixels)  # only the size of the images is looked at
    found = training_losses(demo, blank, *batch.whole[1:], features=features)
    assert_close(found.sums, training_losses(demo, *batch.whole).sums, 0)


# --- parts of a batch -------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(0, 1, 4), (0, 2, 3, 4), (0, 1, 2, 3, 4)])
def test_the_parts_of_a_batch_add_up_to_the_whole(demo, bounds):
    batch = mixed_batch(demo, 4)
    whole = training_losses(demo, *batch.whole)
    parts = [training_losses(demo, *batch.part(*ends)) for ends in itertools.pairwise(bounds)]
    total = sum(part.counts for part in parts)
    assert torch.equal(total, whole.counts)
    shares = [part.losses(total) for part in parts]
    summed = {name: sum(share[name] for share in shares) for name in LOSS_NAMES}
    assert_close(summed, whole.losses(), 2e-6)  # as above: FP32 sums in another order
    assert_close(gradients(demo, summed), gradients(demo, whole.losses()), 2e-5)


def test_samples_depend_on_the_seed_alone(demo):
    batch = mixed_batch(demo, 3)
    pixels, sizes, targets, _ = batch.whole
    backwards = [2, 1, 0]
    turned = training_losses(
        demo,
        pixels[backwards],
        [sizes[index] for index in backwards],
        [targets[index] for index in backwards],
        [batch.seeds[index] for index in backwards],
    )
    torch.manual_seed(5)  # the global random state does not matter
    found = training_losses(demo, *batch.whole)
    assert_close(turned.sums, found.sums, 1e-6)
    reseeded = training_losses(demo, pixels, sizes, targets, [1, 2, 3])
    assert reseeded.sums["loss_objectness"] != found.sums["loss_objectness"]


def test_the_global_random_state_stays(demo):
    before = torch.random.get_rng_state()
    training_losses(demo, *mixed_batch(demo, 2).whole)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 3])
def test_samples_are_counted_without_the_box_head(demo, count):
    batch = mixed_batch(demo, count)
    expected = training_losses(demo, *batch.whole).counts
    with mock.patch.object(demo.roi_heads.box_head, "forward", side_effect=AssertionError):
        found = count_samples(demo, *batch.whole)
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32
    assert found.tolist() == [64 * count, 32 * count]


def test_counting_leaves_the_statistics_of_batch_normalisation():
    model = random_detector("demo", num_classes=4, min_size=64, max_size=96).train()
    batch = mixed_batch(model, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    counted = count_samples(model, *batch.whole)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(norm.track_running_stats for norm in norms)
    assert torch.equal(counted, training_losses(model, *batch.whole).counts)
    assert not torch.equal(model.state_dict()["backbone.body.stem.1.running_mean"],
                           before["backbone.body.stem.1.running_mean"])  # fmt: skip


def test_means_by_hand():
    names = dict.fromkeys(LOSS_NAMES)
    sums = {name: torch.tensor(float(12 * (i + 1))) for i, name in enumerate(names)}
    own = LossSums(sums, torch.tensor([4.0, 3.0])).losses()
    assert {name: value.item() for name, value in own.items()} == {
        "loss_classifier": 4, "loss_box_reg": 8, "loss_objectness": 9, "loss_rpn_box_reg": 12,
    }  # fmt: skip
    given_counts = LossSums(sums, torch.tensor([4.0, 3.0])).losses(torch.tensor([8.0, 6.0]))
    assert given_counts["loss_classifier"].item() == 2
    assert given_counts["loss_rpn_box_reg"].item() == 6
    nothing = LossSums(dict.fromkeys(LOSS_NAMES, torch.zeros(())), torch.zeros(2)).losses()
    assert all(value.item() == 0 for value in nothing.values())


# --- sampling ---------------------------------------------------------------------------------


def test_sampling_by_hand():
    labels = torch.tensor([[1, 0, -1, 2, 0, 1, 0], [0, -1, -1, -1, -1, -1, 3]])
    keys = torch.tensor([[0.1, 0.7, 0.99, 0.3, 0.2, 0.2, 0.9], [0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.0]])
    index, chosen = sample_balanced(labels, keys, SamplerSettings(4, 0.5))
    assert index[0].tolist() == [3, 5, 6, 1]  # two positives by their keys, then two negatives
    assert chosen.tolist() == [[True] * 4, [True, True, False, False]]
    assert index[1, :2].tolist() == [6, 0]


@given(
    labels=st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=60),
    size=st.integers(1, 40),
    fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_as_many_of_each_kind_are_sampled_as_torchvision_samples(labels, size, fraction, seed):
    row = torch.tensor(labels)
    keys = torch.rand(len(row), generator=torch.Generator().manual_seed(seed))
    index, chosen = sample_balanced(row[None], keys[None], SamplerSettings(size, fraction))
    picked = index[0][chosen[0]]
    assert len(set(picked.tolist())) == len(picked)
    positive, negative = BalancedPositiveNegativeSampler(size, fraction)([row])
    assert (row[picked] > 0).sum() == positive[0].sum()
    assert (row[picked] == 0).sum() == negative[0].sum()
    assert len(picked) == positive[0].sum() + negative[0].sum()
    assert chosen[0].tolist() == sorted(chosen[0].tolist(), reverse=True)  # none after a gap
    assert (row[picked] > 0).tolist() == sorted((row[picked] > 0).tolist(), reverse=True)


def test_every_candidate_is_equally_likely():
    labels = torch.tensor([1.0] * 4 + [0.0] * 12 + [-1.0] * 4).expand(4000, 20)
    keys = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0))
    index, chosen = sample_balanced(labels, keys, SamplerSettings(8, 0.25))
    assert chosen.all()
    share = torch.bincount(index.flatten(), minlength=20) / len(labels)
    expected = torch.tensor([2 / 4] * 4 + [6 / 12] * 12 + [0.0] * 4)
    assert (share - expected).abs().max() < 0.04  # five standard deviations


# --- precision --------------------------------------------------------------------------------


def spied(model, batch, context):
    """Anchors and the RPN's regression targets of one forward pass."""
    targets, anchors = [], []

    def encode(*arguments):
        targets.append(encode_boxes(*arguments))
        return targets[-1]

    generate = model.rpn.anchor_generator.forward
    spy = mock.patch.object(
        model.rpn.anchor_generator,
        "forward",
        lambda *arguments: anchors.append(generate(*arguments)) or anchors[-1],
    )
    with context, spy, mock.patch.object(subject, "encode_boxes", encode):
        losses = training_losses(model, *batch.whole).losses()
    # The RPN's come first and depend on anchors and seeds alone; the box head's, on proposals.
    return anchors[0], targets[0], losses


def test_bfloat16_leaves_anchors_and_regression_targets_alone(demo):
    batch = mixed_batch(demo, 3)
    anchors, targets, exact = spied(demo, batch, contextlib.nullcontext())
    context = precision_safe_autocast(demo, torch.bfloat16, "cpu")
    rounded_anchors, rounded_targets, losses = spied(demo, batch, context)
    assert all(map(torch.equal, rounded_anchors, anchors))
    assert targets.abs().max() > 0
    assert torch.equal(rounded_targets, targets)
    assert losses["loss_objectness"] != exact["loss_objectness"]
    assert losses["loss_objectness"].item() == pytest.approx(
        exact["loss_objectness"].item(), rel=0.05
    )
