"""The update of the weights: what it makes, what it leaves out, and what it tells of it."""

import math

import pytest
import torch
from torch import nn

from common.training_update import update_if_finite

OPTIMIZERS = [
    pytest.param(lambda ps: torch.optim.SGD(ps, lr=0.5, fused=True), id="SGD"),
    pytest.param(lambda ps: torch.optim.SGD(ps, lr=0.5, fused=False), id="SGD not fused"),
    pytest.param(lambda ps: torch.optim.AdamW(ps, lr=0.5, fused=True), id="AdamW"),
]


def scaler(scale: float | None = None) -> torch.amp.GradScaler:
    """One that is not enabled, or for float16 with this scale. It works on a CPU as well."""
    made = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    if scale is not None:
        made.scale(torch.ones(()))  # as the loss before its backward pass
    return made


def weights(*gradients: list[float] | None) -> list[nn.Parameter]:
    """Pairs of ones with these gradients."""
    parameters = [nn.Parameter(torch.ones(2)) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    return parameters


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, fused=True)


def test_a_step_is_the_optimizers_and_the_norms_are_told():
    parameters = weights([3.0, 4.0], [0.0, -2.0], None)
    norms, is_made = update_if_finite(parameters, sgd(parameters), scaler(), torch.tensor(1.0))
    assert norms.tolist() == [5.0, 2.0, 0.0]
    assert bool(is_made)
    assert [p.tolist() for p in parameters] == [[-0.5, -1.0], [1.0, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize(
    ("loss", "gradient"),
    [(1.0, math.nan), (1.0, math.inf), (math.inf, 1.0), (math.nan, 1.0)],
)
def test_numbers_that_are_none_change_no_weight(make, loss, gradient):
    parameters = weights([1.0, gradient], [1.0, 1.0])
    optimizer = make(parameters)
    _, is_made = update_if_finite(parameters, optimizer, scaler(), torch.tensor(loss))
    assert not is_made
    assert all(p.tolist() == [1.0, 1.0] for p in parameters)
    for parameter in parameters:  # and the next step is made as if nothing had been
        parameter.grad = torch.ones(2)
    _, is_made = update_if_finite(parameters, optimizer, scaler(), torch.tensor(1.0))
    assert is_made
    assert all(p.max() < 1 for p in parameters)


@pytest.mark.parametrize("scale", [None, 8.0])
def test_the_whole_gradient_is_clipped_to_its_norm(scale):
    """(3, 0) and (0, 4) have the norm 5; clipped to 1 they are (0.6, 0) and (0, 0.8)."""
    factor = scale or 1.0
    parameters = weights([3.0 * factor, 0.0], [0.0, 4.0 * factor])
    total = torch.tensor(1.0)
    norms, _ = update_if_finite(parameters, sgd(parameters), scaler(scale), total, clip_norm=1.0)
    assert norms.tolist() == [3.0, 4.0]
    moved = [(1 - p.detach()).tolist() for p in parameters]
    assert moved[0] == pytest.approx([0.3, 0.0], abs=1e-5)
    assert moved[1] == pytest.approx([0.0, 0.4], abs=1e-5)


@pytest.mark.parametrize(("loss", "gradient"), [(1.0, math.inf), (math.inf, 1.0)])
def test_a_step_left_out_in_float16_halves_the_scale(loss, gradient):
    parameters, scaling = weights([gradient, 1.0]), scaler(8.0)
    _, is_made = update_if_finite(parameters, sgd(parameters), scaling, torch.tensor(loss))
    assert not is_made
    assert parameters[0].tolist() == [1.0, 1.0]
    assert scaling.get_scale() == 4.0


def test_the_scale_of_float16_is_taken_out_of_the_gradient():
    parameters = weights([8.0, 16.0])
    norms, is_made = update_if_finite(parameters, sgd(parameters), scaler(8.0), torch.tensor(1.0))
    assert norms.tolist() == pytest.approx([math.sqrt(5)])
    assert bool(is_made)
    assert parameters[0].tolist() == [0.5, 0.0]
