"""A fully connected layer as a convolution gives the layer's own values."""

import pytest
import torch
from torch import nn

from common.linear_as_convolution import LinearAsConvolution, convolve_linears


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_equals_the_layer(rows, has_bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(300, 40, bias=has_bias), torch.randn(rows, 300)
    torch.testing.assert_close(LinearAsConvolution(layer)(x), layer(x), rtol=0, atol=1e-5)


def test_shares_the_weights():
    layer = nn.Linear(3, 2)
    assert LinearAsConvolution(layer).weight.data_ptr() == layer.weight.data_ptr()


@torch.no_grad()
def test_replaces_the_large_layers_only():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5))
    x = torch.randn(4, 256)
    expected = model(x)
    assert convolve_linears(model) == 1
    assert type(model[2]) is nn.Linear
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
