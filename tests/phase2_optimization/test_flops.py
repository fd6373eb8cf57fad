"""Counted arithmetic against the arithmetic by hand, and the measured peak."""

import itertools

import pytest
import torch
from torch import nn

from common.winograd import TILE, winograd_conv2d
from phase2_optimization import flops
from phase2_optimization.flops import count_flops, measure_peak

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    """A 3x3 convolution from 2 to 4 channels on an 8x6 map, and a layer of 192 to 5 values."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(192, 5),
    )


CONVOLUTION = 2 * 3 * 4 * 2 * 9 * 8 * 6  # 3 images
LAYER = 2 * 3 * 192 * 5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_pass_is_two_operations_per_weight_and_place(mode):
    model, images = network().eval(), torch.rand(3, 2, 8, 6)
    with mode():
        counts = count_flops(lambda: model(images))
    assert counts == {"convolution": CONVOLUTION, "addmm": LAYER}


def test_a_training_step_adds_the_gradients_of_weights_and_inputs():
    model, images = network(), torch.rand(3, 2, 8, 6)
    counts = count_flops(lambda: model(images).sum().backward())
    assert counts == {
        "convolution": CONVOLUTION,
        "convolution_backward": CONVOLUTION,  # the images themselves need no gradient
        "addmm": LAYER,
        "mm": 2 * LAYER,
    }


def winograd_inputs(batch, channels, height, width, channels_out):
    x = torch.rand(batch, channels, height, width)
    return x, torch.rand(TILE**2, channels, channels_out), torch.rand(channels_out)


def test_a_winograd_convolution_counts_what_it_makes():
    """3 x 4 tiles cover 9 x 13 pixels: 36 x 36 to transform each of 5 channels, 36 places of 5 x 7
    products, and 16 x 36 to transform each of 7 channels back. The direct sum has 2 * 9 * 5 * 7
    at every pixel."""
    inputs = winograd_inputs(2, 5, 9, 13, 7)
    counts = count_flops(lambda: winograd_conv2d(*inputs))
    assert counts == {"detection.winograd_conv2d": 2 * 24 * (6480 + 1260 + 4032)}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (5, 8), (33, 130)])
def test_a_winograd_convolution_counts_what_its_body_does(height, width):
    """In as many bands as it takes: the products inside, seen one by one."""
    inputs = winograd_inputs(2, 9, height, width, 6)
    inside = count_flops(lambda: winograd_conv2d._init_fn(*inputs))
    assert inside.keys() == {"mm", "bmm"}
    assert sum(count_flops(lambda: winograd_conv2d(*inputs)).values()) == sum(inside.values())


def test_work_without_products_counts_nothing():
    assert count_flops(lambda: torch.rand(9).sort()) == {}


def test_the_peak_is_the_best_rate_of_all_sizes_and_repetitions(monkeypatch):
    monkeypatch.setattr(flops, "MATMUL_SIDES", (10, 100))
    monkeypatch.setattr(flops, "CONVOLUTIONS", ((1, 1, 1), (2, 10, 5)))
    seconds = itertools.chain([2e-6, 1e-3, 1e-9, 1e-6])
    monkeypatch.setattr(flops, "fastest_s", lambda call, device: next(seconds))
    # 2 * 10**3 / 2 us = 1 GFLOP/s, 2 * 100**3 / 1 ms = 2; 18 / 1 ns = 18, 90000 / 1 us = 90
    assert measure_peak(CPU, torch.float32) == {
        "gflop_s": pytest.approx(90),
        "matmul_gflop_s": pytest.approx(2),
        "convolution_gflop_s": pytest.approx(90),
    }


def test_sizes_that_would_take_too_long_are_left_out(monkeypatch):
    monkeypatch.setattr(flops, "MATMUL_SIDES", (10, 10_000_000))  # 80 TiB would be refused
    monkeypatch.setattr(flops, "CONVOLUTIONS", ((1, 1, 4),))
    assert measure_peak(CPU, torch.float32)["matmul_gflop_s"] > 0


def test_sizes_beyond_the_memory_are_left_out_but_for_the_first(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    work = [(2 * 10**9, lambda: lambda: None), (10**3, full)]
    monkeypatch.setattr(flops, "fastest_s", lambda call, device: 0.5)
    assert flops._highest_rate(work, CPU) == pytest.approx(4)
    with pytest.raises(torch.OutOfMemoryError):
        flops._highest_rate(work[1:], CPU)


def test_a_measured_rate_is_that_of_the_fastest_repetition(monkeypatch):
    # starts and ends of REPEATS calls: 3, 1, 2, 5 and 4 seconds
    looks = iter([0, 3, 10, 11, 20, 22, 30, 35, 40, 44])
    monkeypatch.setattr(flops, "perf_counter", lambda: next(looks))
    calls = []
    assert flops.fastest_s(lambda: calls.append(1), CPU) == 1
    assert len(calls) == 1 + flops.REPEATS == 6
