"""Structured pruning: which channels go, that they are zero all the way, and that none is missed
once they are gone."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from common.hidden_channels import HiddenChannels, find_hidden_channels, keep_channels
from common.models import ARCHITECTURES, freeze_norms, stock_predictor
from phase4_deployment.pruned import channel_removal
from phase4_deployment.pruned.channel_removal import (
    channels_left,
    largest_difference,
    remove_channels,
    zero_channels,
)
from tests.random_detectors import random_detector, random_scene

ALL = ("backbone", "rpn", "box_head")


@pytest.mark.parametrize(
    ("count", "amount", "multiple", "left"),
    [
        (64, 0.5, 1, 32),
        (64, 0.3, 1, 45),  # 19.2 go
        (64, 0.3, 8, 48),
        (64, 0.01, 8, 64),
        (10, 0.99, 1, 1),  # one stays
        (10, 0.99, 8, 8),
        (6, 0.5, 8, 6),  # there are no 8
        (16, 0.5, 8, 8),
    ],
)
def test_how_many_stay(count, amount, multiple, left):
    assert channels_left(count, amount, multiple) == left


@given(
    count=st.integers(1, 3000),
    amount=st.floats(0, 1, exclude_min=True, exclude_max=True),
    multiple=st.integers(1, 64),
)
def test_some_stay_and_never_more_than_there_are(count, amount, multiple):
    left = channels_left(count, amount, multiple)
    assert 1 <= left <= count
    assert left == count or left % multiple == 0
    assert left >= count - round(amount * count)


def tiny(norm: nn.Module) -> tuple[nn.Sequential, HiddenChannels]:
    """Three filters 3, 2 and 1 on one pixel; the normalisation scales them by 0.1, 1 and 4, so
    that the first one is the weakest, and shifts them all by 7."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1), norm, nn.ReLU(), nn.Conv2d(3, 1, 1)).eval()
    model[0].weight.data.copy_(torch.tensor([3.0, 2.0, 1.0]).reshape(3, 1, 1, 1))
    norm.weight.data.copy_(torch.tensor([0.2, 2.0, 8.0]))
    norm.running_var.copy_(torch.full((3,), 4.0))
    norm.bias.data.fill_(7.0)
    return model, HiddenChannels("backbone", ("0", "1"), ("3",))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_the_weakest_channel_by_hand_and_its_shift_go(norm, monkeypatch):
    model, channels = tiny(norm(3))
    monkeypatch.setattr(channel_removal, "find_hidden_channels", lambda _: [channels])
    kept = zero_channels(model, 1 / 3, ["backbone"])
    assert kept["0"].tolist() == [1, 2]
    assert model[0].weight.flatten().tolist() == [0, 2, 1]
    assert model[1].weight.tolist() == [0, 2, 8]
    assert model[1].bias.tolist() == [0, 7, 7]
    assert (model[2](model[1](model[0](torch.ones(1, 1, 2, 2))))[0, 0] == 0).all()
    assert "weight_mask" not in dict(model[0].named_buffers())  # plain weights again
    assert isinstance(model[0].weight, nn.Parameter)


def test_other_parts_stay_whole(monkeypatch):
    model, channels = tiny(nn.BatchNorm2d(3))
    monkeypatch.setattr(channel_removal, "find_hidden_channels", lambda _: [channels])
    assert zero_channels(model, 0.5, ["rpn", "box_head"]) == {}
    assert model[0].weight.flatten().tolist() == [3, 2, 1]


# Both MobileNets have the same layers.
@pytest.fixture(scope="module", params=[name for name in ARCHITECTURES if "320" not in name])
def detector(request):
    return random_detector(
        request.param, num_classes=4, min_size=64, max_size=96, proposals=30, bounded=False
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_without_its_zeroed_channels_is_the_same(detector, frozen):
    zeroed = copy.deepcopy(detector)
    if frozen:
        states = zeroed.state_dict()
        freeze_norms(zeroed, 1e-5)
        zeroed.load_state_dict({k: v for k, v in states.items() if "num_batches" not in k})
        zeroed.eval()
    kept = zero_channels(zeroed, 0.6, ALL, multiple=4)
    assert len(kept) == len(find_hidden_channels(zeroed))
    removed = copy.deepcopy(zeroed)
    remove_channels(removed, kept)
    numbers = [sum(v.numel() for v in m.state_dict().values()) for m in (zeroed, removed)]
    assert numbers[1] < 0.8 * numbers[0]
    assert largest_difference(zeroed, removed) < 1e-4
    assert largest_difference(detector, removed) > 0.01  # pruning does change it


def test_the_same_boxes_are_found():
    zeroed = random_detector("demo", min_size=96, max_size=128, bounded=False)
    kept = zero_channels(zeroed, 0.3, ALL)
    removed = copy.deepcopy(zeroed)
    remove_channels(removed, kept)
    scene = random_scene(np.random.default_rng(3), 96, 128)
    before, after = (stock_predictor(m, torch.device("cpu"))([scene])[0] for m in (zeroed, removed))
    assert len(before.scores) > 5
    assert before.labels.tolist() == after.labels.tolist()
    assert abs(before.boxes_xyxy - after.boxes_xyxy).max() < 0.01


def test_a_removal_of_the_wrong_channels_shows():
    zeroed = random_detector("demo", min_size=64, max_size=96, bounded=False)
    kept = zero_channels(zeroed, 0.5, ["rpn"])
    ((name, right),) = kept.items()
    wrong = right.clone()
    wrong[0] = next(i for i in range(64) if i not in right)  # one zeroed channel for a living one
    removed = copy.deepcopy(zeroed)
    channels = next(c for c in find_hidden_channels(removed) if c.name == name)
    keep_channels(removed, channels, wrong.sort().values)
    assert largest_difference(zeroed, removed) > 1e-3


def test_a_shift_that_stays_shows(monkeypatch):
    """Zeroing filters alone, as ln_structured does, is not what removal needs."""
    monkeypatch.setattr(channel_removal, "_zero_rows", lambda *_: None)
    zeroed = random_detector("demo", min_size=64, max_size=96, bounded=False)
    for module in zeroed.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.fill_(0.5)
    kept = zero_channels(zeroed, 0.5, ["backbone"])
    removed = copy.deepcopy(zeroed)
    remove_channels(removed, kept)
    assert largest_difference(zeroed, removed) > 1e-3


def test_the_difference_by_hand(monkeypatch):
    """Outputs (2, 4) and (2, 3): a quarter of the largest; (1) and (1.1): a tenth."""
    outputs = {
        "a": [torch.tensor([2.0, 4.0]), torch.tensor([1.0])],
        "b": [torch.tensor([2.0, 3.0]), torch.tensor([1.1])],
    }
    monkeypatch.setattr(channel_removal, "_dense_outputs", lambda model, seed: outputs[model])
    models = [SimpleNamespace(eval=lambda name=name: name) for name in ("a", "b")]
    assert largest_difference(*models) == 0.25
