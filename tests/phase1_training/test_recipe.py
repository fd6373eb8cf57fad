"""The recipe's arithmetic: schedules, optimizers, frozen stages, averaged weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common.cli import UserError
from common.models import build_model
from phase1_training.recipe import (
    ModelEMA,
    build_optimizer,
    hold_zeros,
    learning_rate,
    set_trainable_stages,
)
from tests.training_batches import CPU, SGD, small_detector

HALF = replace(SGD, learning_rate=0.5)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.5), (59, 0.5), (60, 0.05), (119, 0.05), (120, 0.005), (180, 0.0005)]
)
def test_the_step_schedule_by_hand(step, rate):
    assert learning_rate(HALF, step, steps_per_epoch=20) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1), (50, 0.8535534), (100, 0.5), (150, 0.1464466), (200, 0), (999, 0)]
)
def test_the_cosine_schedule_by_hand(step, factor):
    recipe = replace(HALF, schedule="cosine")
    assert learning_rate(recipe, step, steps_per_epoch=20) == pytest.approx(factor / 2, abs=1e-7)


def test_warm_up_is_linear_and_multiplies_the_schedule():
    recipe = replace(HALF, warmup_steps=4)
    rates = [learning_rate(recipe, step, 20) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    cosine = replace(recipe, schedule="cosine", epochs=1)
    assert learning_rate(cosine, 1, 4) == pytest.approx(0.5 * 0.4 * 0.8535534)


def test_the_optimizers_take_their_settings_and_the_trained_parameters_only():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    sgd = build_optimizer(model, replace(HALF, momentum=0.8, weight_decay=0.3), CPU)
    assert isinstance(sgd, torch.optim.SGD)
    (group,) = sgd.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.8, 0.3)
    assert group["fused"]
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    adamw = build_optimizer(model, replace(HALF, optimizer="adamw", weight_decay=0.2), CPU)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["weight_decay"] == 0.2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_is_skipped_leaves_no_trace(optimizer):
    """A fused SGD would make its momentum from memory nobody has written."""
    models = [nn.Linear(64, 64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [build_optimizer(m, replace(HALF, optimizer=optimizer), CPU) for m in models]
    for p in models[0].parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizers[0].found_inf = torch.tensor(1.0)
    optimizers[0].step()
    optimizers[0].found_inf = torch.tensor(0.0)
    for model, made in zip(models, optimizers, strict=True):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.25)
        made.step()
    for first, second in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_that_are_zero_stay_zero_and_biases_do_not(optimizer):
    model = nn.Linear(3, 2)
    model.weight.data.copy_(torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]))
    model.bias.data.zero_()
    hold_zeros(model.parameters())
    recipe = replace(HALF, optimizer=optimizer, momentum=0.9, weight_decay=0.1)
    made = build_optimizer(model, recipe, CPU)
    before = model.weight.detach().clone()
    for step in range(5):
        made.zero_grad()
        model(torch.full((4, 3), step + 1.0)).square().sum().backward()
        made.step()
    assert ((model.weight == 0) == (before == 0)).all()
    assert (model.weight[before != 0] != before[before != 0]).all()
    assert (model.bias != 0).all()


@pytest.mark.parametrize(
    ("architecture", "stages", "frozen"),
    [
        ("demo", 0, {"stem", "layer1", "layer2", "layer3", "layer4"}),
        ("demo", 4, {"stem"}),
        ("fasterrcnn_resnet50_fpn", 3, {"conv1", "bn1", "layer1"}),  # torchvision's default
        ("fasterrcnn_resnet50_fpn", 5, set()),
        ("fasterrcnn_mobilenet_v3_large_fpn", 1, {str(block) for block in range(13)}),
    ],
)
def test_the_first_stages_are_frozen(architecture, stages, frozen):
    model = build_model(architecture, 3)
    set_trainable_stages(model, stages)
    body = model.backbone.body
    found = {name.split(".")[0] for name, p in body.named_parameters() if not p.requires_grad}
    assert found == frozen
    heads = (model.backbone.fpn, model.rpn, model.roi_heads)
    assert all(p.requires_grad for head in heads for p in head.parameters())


def test_more_stages_than_there_are_is_refused():
    with pytest.raises(UserError, match="the backbone has 5 stages – give 0 to 5"):
        set_trainable_stages(small_detector(), 6)


def test_the_average_of_the_weights_is_torchs():
    model = nn.Linear(3, 2)
    ours = ModelEMA(model, 0.8)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    theirs.update_parameters(model)  # the first call copies
    for step in range(100, 106):  # past the ramp of the first steps
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ours.update(model, step)
        theirs.update_parameters(model)
    for mine, other in zip(ours.parameters, theirs.module.parameters(), strict=True):
        torch.testing.assert_close(mine, other.detach())


def test_the_first_steps_are_averaged_with_less_memory():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = ModelEMA(model, 0.999)
    nn.init.ones_(model.weight)
    average.update(model, 0)  # keeps 1 / 10 of the old
    assert average.parameters[0].item() == pytest.approx(0.9)
    average.update(model, 10)  # keeps 11 / 20
    assert average.parameters[0].item() == pytest.approx(0.9 * 11 / 20 + 9 / 20)
