"""Winograd convolution against the plain one, computed in double precision."""

import pytest
import torch
from torch import nn

from common import winograd
from common.winograd import WinogradConv2d, is_eligible, use_winograd, winograd_conv2d

SHAPES = [(1, 8, 8), (2, 1, 1), (3, 7, 5), (1, 4, 130), (2, 33, 18)]


def convolution(channels_in=128, channels_out=128, **options) -> nn.Conv2d:
    torch.manual_seed(channels_in)
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, **options)


@pytest.mark.parametrize(("batch", "height", "width"), SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_equals_the_direct_sum(batch, height, width, memory_format):
    layer = convolution(128, 136)
    x = torch.randn(batch, 128, height, width).contiguous(memory_format=memory_format)
    expected = nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double(), 1, 1)
    actual = WinogradConv2d(layer)(x)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=5e-5)


@torch.no_grad()
def test_double_precision_leaves_rounding_only():
    layer = convolution(bias=False).double()
    x = torch.randn(1, 128, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(WinogradConv2d(layer)(x), layer(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_band_size_changes_nothing(monkeypatch):
    layer, x = WinogradConv2d(convolution()), torch.randn(2, 128, 21, 30)
    whole = layer(x)
    monkeypatch.setattr(winograd, "BAND_TILES", 1)
    torch.testing.assert_close(layer(x), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 256, 3, padding=1),
        nn.ConvTranspose2d(128, 128, 3, padding=1),
    ],
)
def test_other_layers_stay(layer):
    assert not is_eligible(layer)
    model = nn.Sequential(layer)
    assert use_winograd(model) == 0
    assert model[0] is layer


@torch.no_grad()
def test_replaces_layers_inside_a_model():
    model = nn.Sequential(convolution(), nn.ReLU(), nn.Sequential(convolution(128, 130)))
    x = torch.randn(1, 128, 12, 9)
    expected = model(x)
    assert use_winograd(model) == 2
    torch.testing.assert_close(model(x), expected, rtol=0, atol=5e-5)


def test_is_one_operator_to_a_compiler():
    layer = WinogradConv2d(convolution())
    torch.library.opcheck(
        winograd_conv2d,
        (torch.randn(2, 128, 6, 5), layer.kernel, layer.bias),
        test_utils=("test_schema", "test_faketensor"),
    )
