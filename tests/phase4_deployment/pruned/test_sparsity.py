"""Unstructured pruning by hand: which weights become zero, and how many are."""

import pytest
import torch
from torch import nn

from common.models import build_model
from phase4_deployment.pruned.sparsity import SCOPES, zero_share, zero_weights

ALL = ("backbone", "rpn", "box_head")


class Tiny(nn.Module):
    """Small weights in the backbone, large ones in the heads, and a bias that is never pruned."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
        self.rpn = nn.Sequential(nn.Conv2d(1, 2, 1))
        self.roi_heads = nn.Sequential(nn.Linear(2, 1))
        for layer, values in (
            (self.backbone[0], [0.1, -0.2, 0.3, -0.4]),
            (self.rpn[0], [1.0, -5.0]),
            (self.roi_heads[0], [-2.0, 3.0]),
        ):
            layer.weight.data.copy_(torch.tensor(values).reshape(layer.weight.shape))
            layer.bias.data.fill_(0.01)

    def weights(self) -> list[list[float]]:
        layers = (self.backbone[0], self.rpn[0], self.roi_heads[0])
        return [[round(v, 3) for v in layer.weight.flatten().tolist()] for layer in layers]


def test_global_takes_the_smallest_of_all():
    model = Tiny()
    zero_weights(model, 5 / 8, ALL)
    assert model.weights() == [[0, 0, 0, 0], [0, -5], [-2, 3]]
    assert zero_share(model) == 5 / 8


def test_layer_takes_the_same_share_from_each():
    model = Tiny()
    zero_weights(model, 0.5, ALL, scope="layer")
    assert model.weights() == [[0, 0, 0.3, -0.4], [0, -5], [0, 3]]
    assert zero_share(model) == 0.5


def test_parts_are_left_out():
    model = Tiny()
    zero_weights(model, 0.5, ("rpn", "box_head"))
    assert model.weights() == [[0.1, -0.2, 0.3, -0.4], [0, -5], [0, 3]]
    assert zero_share(model, ("rpn", "box_head")) == 0.5
    assert zero_share(model) == 0.25


@pytest.mark.parametrize("scope", SCOPES)
def test_a_pruned_detector_is_a_plain_one(scope):
    """The same names as before: it loads as any checkpoint does, and biases are whole."""
    model = build_model("demo", 3)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    zero_weights(model, 0.7, ALL, scope)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert zero_share(model) == pytest.approx(0.7, abs=1e-3)
    for name, values in after.items():
        is_zeroed = values != before[name]
        assert (values[is_zeroed] == 0).all()
        assert values.ndim > 1 or not is_zeroed.any()
        assert not torch.signbit(values[is_zeroed]).any()  # -0.0 takes more room in a .zip
    assert all(p.requires_grad for p in model.parameters())
