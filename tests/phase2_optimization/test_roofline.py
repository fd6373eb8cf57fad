"""Arithmetic, traffic and bounds of operators against figures worked out by hand."""

import weakref

import pytest
import torch
from torch.nn import functional as F

from common.winograd import winograd_conv2d
from phase2_optimization import roofline as module
from phase2_optimization.roofline import (
    Call,
    OperatorTraffic,
    held_bytes,
    measure_copy,
    roofline,
    what_bounds,
)
from phase2_optimization.stages import StageClock

CPU = torch.device("cpu")


def calls_of(work, stages=None) -> list[Call]:
    clock = StageClock(CPU, wait_at_stages=False)
    with OperatorTraffic(CPU, clock, stages) as traffic:
        work()
    return traffic.calls


A, B = torch.rand(20, 30), torch.rand(30, 40)
IMAGES, WEIGHTS = torch.rand(2, 3, 8, 6), torch.rand(4, 3, 3, 3)
KERNEL, BIAS = torch.rand(36, 3, 4), torch.rand(4)  # of a Winograd convolution
INDICES = torch.tensor([1, 3])


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        pytest.param(lambda: A @ B, ("aten::mm", 48000, 4 * (600 + 1200 + 800)), id="product"),
        pytest.param(
            lambda: A.bfloat16() @ B.bfloat16(),
            ("aten::mm", 48000, 2 * (600 + 1200 + 800)),
            id="half",
        ),
        pytest.param(
            # 48 places of 2 images, 4 channels of 27 products each
            lambda: F.conv2d(IMAGES, WEIGHTS, padding=1),
            ("aten::convolution", 2 * 2 * 48 * 4 * 27, 4 * (288 + 108 + 384)),
            id="convolution",
        ),
        pytest.param(
            # 4 tiles of 2 images: 36 x 36 for each of 3 channels, 36 x 3 x 4, 16 x 36 for each of 4
            lambda: winograd_conv2d(IMAGES, KERNEL, BIAS),
            (
                "detection::winograd_conv2d",
                2 * 8 * (3888 + 432 + 2304),
                4 * (288 + 432 + 4 + 384),
            ),
            id="winograd",
        ),
        pytest.param(lambda: A + A[:1], ("aten::add", 0, 4 * (600 + 30 + 600)), id="sum"),
        pytest.param(lambda: A.clone().relu_(), ("aten::relu_", 0, 4 * 2 * 600), id="in place"),
        pytest.param(lambda: A.clone().fill_(1), ("aten::fill_", 0, 4 * 600), id="overwritten"),
        pytest.param(
            lambda: torch.empty(600).copy_(A.flatten()), ("aten::copy_", 0, 4 * 1200), id="copy"
        ),
        pytest.param(
            # of a table of 20 rows only two are looked at: they, two int64 and the result
            lambda: A[INDICES],
            ("aten::index", 0, 4 * 60 + 8 * 2 + 4 * 60),
            id="picked",
        ),
        pytest.param(
            # two rows are read, added to and written again: they twice, the indices, what is added
            lambda: A.clone().index_add_(0, INDICES, A[:2]),
            ("aten::index_add_", 0, 2 * 4 * 60 + 8 * 2 + 4 * 60),
            id="placed",
        ),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_operations_and_bytes_follow_from_the_shapes(work, expected, mode):
    with mode():
        assert calls_of(work)[-1] == expected


def test_a_gradient_of_a_product_is_two_products():
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    products = [call for call in calls_of(lambda: (a @ b).sum().backward()) if call.flops]
    # the gradient of the sum is one number, expanded to 20 x 40
    gradient_bytes = 4
    assert sorted(call.moved_bytes for call in products) == sorted(
        [
            4 * (600 + 1200 + 800),
            gradient_bytes + 4 * (1200 + 600),
            gradient_bytes + 4 * (600 + 1200),
        ]
    )
    assert {call.flops for call in products} == {48000}


def test_views_and_allocation_move_nothing():
    def work():
        torch.empty(9)
        A.t().reshape(30, 20)[:, 3:].unsqueeze(0).expand(5, -1, -1).detach()
        B.view(1200).split(300)

    assert calls_of(work) == []


def test_an_expanded_tensor_is_there_once():
    assert held_bytes(torch.rand(3, 1).expand(3, 100)) == 4 * 3
    assert held_bytes(torch.rand(0, 5)) == 0
    assert held_bytes(torch.rand(())) == 4


def test_only_operators_of_the_stages_asked_for_are_counted():
    clock = StageClock(CPU, wait_at_stages=False)
    with OperatorTraffic(CPU, clock, ("backbone",)) as traffic:
        A + A
        with clock.stage("backbone"):
            A @ B
            with clock.stage("FPN"):
                A - A
        A * A
    assert [call.operator for call in traffic.calls] == ["aten::mm"]


def test_what_another_device_does_is_not_counted():
    clock = StageClock(CPU, wait_at_stages=False)
    with OperatorTraffic(torch.device("meta"), clock, None) as traffic:
        A + A
        torch.rand(3, device="meta") * 2
    assert [call.operator for call in traffic.calls][-1] == "aten::mul"
    assert all(call.operator != "aten::add" for call in traffic.calls)


# --- the model ----------------------------------------------------------------------------------

# A machine of 100 GFLOP/s and 25 GB/s balances at 4 FLOP per byte.
CALLS = [
    Call("convolution", 2 * 10**9, 10**8),  # 20 FLOP per byte: 20 ms of arithmetic, 4 of memory
    Call("convolution", 10**8, 10**8),  # 1 FLOP per byte: 1 ms and 4 ms
    Call("relu", 0, 5 * 10**7),  # 2 ms
]


def test_every_operator_is_held_up_by_its_own_side_of_the_balance():
    found = roofline(CALLS, 100.0, 25.0, 50.0)
    assert found == {
        "peak_gflop_s": 100.0,
        "copy_gb_s": 25.0,
        "balance_flop_per_byte": 4.0,
        "gflop": pytest.approx(2.1),
        "gb": pytest.approx(0.25),
        "intensity_flop_per_byte": pytest.approx(8.4),
        "measured_ms": 50.0,
        "arithmetic_ms": pytest.approx(20.0),
        "memory_ms": pytest.approx(6.0),
        "rest_ms": pytest.approx(24.0),
        "bound": "both",
        "operators": [
            {
                "name": "convolution",
                "calls": 2,
                "gflop": pytest.approx(2.1),
                "gb": pytest.approx(0.2),
                "intensity_flop_per_byte": pytest.approx(10.5),
                "roof_ms": pytest.approx(24.0),
            },
            {
                "name": "relu",
                "calls": 1,
                "gflop": 0.0,
                "gb": pytest.approx(0.05),
                "intensity_flop_per_byte": 0.0,
                "roof_ms": pytest.approx(2.0),
            },
        ],
    }


def test_a_step_without_operators_has_no_intensity():
    found = roofline([], 100.0, 25.0, 5.0)
    assert (found["intensity_flop_per_byte"], found["bound"]) == (None, "neither")


@pytest.mark.parametrize(
    ("arithmetic_ms", "memory_ms", "bound"),
    [
        (60, 10, "arithmetic"),
        (60, 90, "unknown"),  # more than there was time for: one of the two is wrong
        (105, 4, "arithmetic"),
        (130, 0, "unknown"),  # the measured rate of arithmetic was no peak
        (60, 50, "arithmetic"),
        (60, 51, "unknown"),
        (51, 49, "arithmetic"),
        (10, 60, "memory"),
        (20, 88, "memory"),
        (10, 105, "unknown"),
        (50, 65, "unknown"),
        (30, 30, "both"),
        (50, 1, "both"),
        (25, 25, "neither"),
        (0, 0, "neither"),
    ],
)
def test_a_bound_takes_more_than_half_of_the_time(arithmetic_ms, memory_ms, bound):
    assert what_bounds(arithmetic_ms, memory_ms, 100.0) == bound


@pytest.mark.parametrize("measured_ms", [30.0, 50.0, 500.0])
def test_no_bound_is_named_of_a_time_that_others_may_have_had(measured_ms):
    assert roofline(CALLS, 100.0, 25.0, measured_ms)["bound"] != "unknown"
    assert roofline(CALLS, 100.0, 25.0, measured_ms, is_work=False)["bound"] == "unknown"


# --- the machine --------------------------------------------------------------------------------


def test_a_copy_reads_and_writes(monkeypatch):
    copied = []

    def of_a_second(call, device):
        copied.append(call())
        return 0.5

    monkeypatch.setattr(module, "fastest_s", of_a_second)
    assert measure_copy(CPU, 16) == pytest.approx(2 * 16 * 2**20 / 0.5 / 1e9)
    assert copied[0].numel() == 16 * 2**20


@pytest.mark.parametrize(("fits_mib", "measured"), [(64, [256, 64]), (16, [256, 64, 16])])
def test_a_copy_that_does_not_fit_is_made_smaller(monkeypatch, fits_mib, measured):
    asked = []

    def of_a_second(call, device):
        asked.append(call.args[0].numel() // 2**20)
        if asked[-1] > fits_mib:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return 1.0

    monkeypatch.setattr(module, "fastest_s", of_a_second)
    assert measure_copy(CPU) == pytest.approx(2 * fits_mib * 2**20 / 1e9)
    assert asked == measured


def test_a_copy_that_did_not_fit_is_given_back_before_a_smaller_one_is_made(monkeypatch):
    earlier, held, zeros = [], [], torch.zeros

    def noted(*sizes, **options):
        held.append(sum(tensor() is not None for tensor in earlier))
        return zeros(*sizes, **options)

    def full_at_first(call, device):
        earlier.extend(weakref.ref(tensor) for tensor in (call.args[0], call.func.__self__))
        if len(held) < 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return 1.0

    monkeypatch.setattr(torch, "zeros", noted)
    monkeypatch.setattr(module, "fastest_s", full_at_first)
    measure_copy(CPU)
    assert held == [0, 0, 0]


@pytest.mark.parametrize("words", ["out of memory", "a bug of ours"])
def test_what_no_smaller_copy_mends_is_raised(monkeypatch, words):
    def fail(call, device):
        raise RuntimeError(words)

    monkeypatch.setattr(module, "fastest_s", fail)
    with pytest.raises(RuntimeError, match=words):
        measure_copy(CPU, 64)
