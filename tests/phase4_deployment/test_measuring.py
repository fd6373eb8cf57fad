"""Which formats are accepted, which batch size is best, and what a time budget leaves out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.evaluation import compare_detections
from common.models import Detections
from phase4_deployment import measuring
from phase4_deployment.formats.base import Format

CPU = torch.device("cpu")


def row(matched=1.0, box_error=0.0, value=0.5, unmatched=2) -> dict:
    parity = {"matched": matched, "unmatched": unmatched, "max_box_error_px": box_error}
    return {"parity": parity, "map": value}


@pytest.mark.parametrize(
    ("measured", "max_map_drop", "expected"),
    [
        (row(), None, "ok"),
        (row(matched=0.98), None, "rejected: 0.980 of the boxes matched"),
        (row(matched=64 / 65, unmatched=1), None, "ok"),
        (row(matched=63 / 65), None, "rejected: 0.969 of the boxes matched, 0.99 needed"),
        (row(matched=7 / 8, unmatched=1), None, "rejected: 0.875 of the boxes matched, 0.9 needed"),
        (row(box_error=0.6), None, "rejected: a box differs by 0.60 px"),
        (row(value=0.502), None, "rejected: mAP changed by +0.0020"),
        (row(matched=0.1, box_error=3.0, value=0.49), 0.02, "ok"),
        (row(matched=0.1, box_error=3.0, value=0.47), 0.02, "rejected: mAP drop 0.0300"),
        (row(value=None), 0.02, "rejected: mAP drop 0.5000"),
    ],
)
def test_verdict(measured, max_map_drop, expected):
    item = Format("x", None, "pytorch", None, max_map_drop=max_map_drop)
    assert measuring.verdict(item, measured, 0.5).startswith(expected)


@pytest.mark.parametrize(
    ("left_out", "weak", "unmatched"),
    [([], [], 0), ([4], [], 1), ([4, 7], [], 2), ([4], [4], 0)],
)
@pytest.mark.parametrize("is_missing", [True, False])
def test_boxes_without_a_partner_are_counted_both_ways(left_out, weak, unmatched, is_missing):
    corners = np.arange(65, dtype=np.float32)[:, None] * 20
    scores = np.where(np.isin(np.arange(65), weak), 0.04, 0.5).astype(np.float32)
    boxes = np.concatenate([corners, corners, corners + 10, corners + 10], 1)
    whole = Detections(boxes, scores, np.ones(65, int))
    part = Detections(*(np.delete(values, left_out, 0) for values in whole))
    pair = ([whole], [part]) if is_missing else ([part], [whole])
    assert compare_detections(*pair)["unmatched"] == unmatched


def batch(size: int, img_s: float, p90: float) -> dict:
    return {"batch_size": size, "throughput_img_s": img_s, "latency_ms": {"p90": p90}}


BATCHES = [batch(1, 20, 50), batch(2, 30, 70), batch(4, 39.9, 100), batch(8, 40.2, 200)]


@pytest.mark.parametrize(
    ("budget_ms", "expected"),
    [(None, 4), (1000, 4), (200, 4), (100, 4), (99.9, 2), (60, 1), (49, None)],
)
def test_best_batch_is_the_smallest_of_the_fastest_within_the_budget(budget_ms, expected):
    best = measuring.best_batch(BATCHES, *([] if budget_ms is None else [budget_ms]))
    assert (best and best["batch_size"]) == expected


def test_a_larger_batch_is_taken_where_it_brings_more_than_noise():
    assert measuring.best_batch([*BATCHES, batch(16, 41.1, 400)])["batch_size"] == 16


def test_large_batches_are_skipped_beyond_the_time_budget():
    images = SimpleNamespace(batch=lambda size: list(range(size)))
    item = Format("a", None, "pytorch", lambda batch: sum(x * x for x in range(20_000)))
    times, skipped = measuring._time([item], images, 2, [1, 2, 100_000], 1.0, CPU, 0)
    assert list(times) == [1, 2]
    assert skipped == [100_000]
