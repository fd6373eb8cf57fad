"""Sampling points of gathered pooling and the head behind it; test_fastpath_layers.py compares the
pooling with torchvision."""

import torch
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from common import roi_align


def test_a_region_that_is_no_number_crashes_nothing():
    index, weight = roi_align._sampling_points(
        torch.tensor([torch.nan, -1e9, 1e9]), torch.tensor([torch.nan, 1e9, 2e9]),
        torch.tensor([7, 7, 7]), 3, 2,
    )  # fmt: skip
    assert index.min() >= 0
    assert index.max() <= 6
    assert weight[2].abs().max() == 0  # far outside


@torch.no_grad()
def test_the_head_of_regions_in_channels_last_memory_equals_the_stock_head():
    torch.manual_seed(0)
    stock = TwoMLPHead(5 * 3 * 2, 16).double()
    regions = torch.randn(7, 5, 3, 2, dtype=torch.float64)
    before = stock.fc6.weight.clone()
    head = roi_align.ChannelsLastMLPHead(stock, (3, 2))
    expected = stock(regions)
    torch.testing.assert_close(head(regions), expected, rtol=0, atol=1e-12)
    by_cell = regions.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(head(by_cell), expected, rtol=0, atol=1e-12)
    assert torch.equal(stock.fc6.weight, before)
    assert head.fc7 is stock.fc7
