"""Sampling points of gathered pooling; test_fastpath_layers.py compares it with torchvision."""

import torch

from common import roi_align


def test_a_region_that_is_no_number_crashes_nothing():
    index, weight = roi_align._sampling_points(
        torch.tensor([torch.nan, -1e9, 1e9]), torch.tensor([torch.nan, 1e9, 2e9]),
        torch.tensor([7, 7, 7]), 3, 2,
    )  # fmt: skip
    assert index.min() >= 0
    assert index.max() <= 6
    assert weight[2].abs().max() == 0  # far outside
