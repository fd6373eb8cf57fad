"""Anchor recall: by hand on one anchor, and against torchvision's own anchors and IoU."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from common import models
from phase1_training.anchor_fit import Anchors, anchor_report, anchors_of, best_iou, suggest

ONE = Anchors(sizes=((16,),), aspect_ratios=((1.0,),), strides=(8,), divisor=32)


def fits(*boxes, anchors=ONE, size=(64, 64)):
    array = np.array(boxes, dtype=np.float64)
    return best_iou(array, np.tile(size, (len(array), 1)), anchors)


def test_best_iou_by_hand():
    """One anchor of 16x16, centred on the multiples of 8 from 0 to 56 of an image of 64x64."""
    assert fits([24, 24, 40, 40]).tolist() == [1]  # centre 32, 32
    assert fits([24, 24, 40, 32]).tolist() == [0.5]  # half of the anchor at 32, 24 or 32, 32
    assert fits([28, 24, 44, 40]).tolist() == [pytest.approx(12 / 20)]  # 4 px off: 192 of 320
    assert fits([24, 24, 28, 28]).tolist() == [16 / 256]  # inside of an anchor
    assert fits([60, 60, 64, 64]).tolist() == [16 / 256]  # the last anchor reaches to 64
    assert fits([0, 0, 64, 64]).tolist() == [256 / 4096]


def test_no_anchor_stands_beyond_the_padded_image():
    wide = fits([60, 8, 76, 24], size=(70, 64))  # padded to 96: an anchor at 68, 16 is 64 or 72
    assert wide.tolist() == [pytest.approx(12 / 20)]
    assert fits([60, 8, 76, 24], size=(64, 64)).tolist() == [pytest.approx(4 / 28)]  # last at 56


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize(("height", "width"), [(97, 150), (333, 200)])
def test_equals_all_anchors_of_torchvision(architecture, height, width):
    rng = np.random.default_rng(height)
    corners = rng.uniform(0, 1, (60, 2, 2)) * [width, height]
    boxes = np.hstack([corners.min(axis=1), corners.max(axis=1) + 0.5])
    model = models.build_model(architecture, 2).eval()
    padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    with torch.no_grad():
        features = list(model.backbone(padded).values())
    (every,) = model.rpn.anchor_generator(ImageList(padded, [(height, width)]), features)
    expected = box_iou(torch.from_numpy(boxes), every.double()).amax(dim=1).numpy()
    found = fits(*boxes, anchors=anchors_of(architecture), size=(width, height))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@given(st.lists(st.floats(0, 60), min_size=2, max_size=2), st.floats(1, 80), st.floats(1, 80))
def test_equals_a_search_of_every_position(start, width, height):
    box = [*start, start[0] + width, start[1] + height]
    places = torch.arange(8) * 8.0
    x, y = torch.meshgrid(places, places, indexing="xy")
    centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 4)
    every = (centres + torch.tensor([-8.0, -8, 8, 8])).double()
    expected = box_iou(torch.tensor([box], dtype=torch.float64), every).max()
    assert fits(box)[0] == pytest.approx(float(expected), abs=1e-12)


def test_anchors_are_read_from_the_model():
    anchors = anchors_of("fasterrcnn_resnet50_fpn")
    assert anchors.strides == (4, 8, 16, 32, 64)
    assert anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert anchors_of("fasterrcnn_mobilenet_v3_large_320_fpn").strides == (32, 32, 64)
    assert anchors_of("demo").strides == (8, 16, 32, 64)


def test_better_sizes_are_suggested_for_what_they_gain_and_only_then():
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 400, (500, 2))
    sides = np.exp(rng.normal(np.log(14), 0.1, (500, 1))) * [1, 1]  # squares of about 14 px
    boxes, sizes = np.hstack([start, start + sides]), np.full((500, 2), 512)
    anchors = anchors_of("fasterrcnn_resnet50_fpn")
    labels = np.ones(500, dtype=np.int64)
    report, best = anchor_report(boxes, sizes, labels, ["dot", "none"], anchors)
    assert report["own"]["below_0.5"] == (best < 0.5).sum() == 500  # 14² of 32² is 0.19
    suggested = report["suggested"]
    assert suggested["below_0.5"] < 100
    other = suggest(boxes, sizes, anchors)
    assert (fits(*boxes, anchors=other, size=(512, 512)) < 0.5).sum() == suggested["below_0.5"]
    assert len(other.sizes) == 5
    assert list(other.sizes) == sorted(other.sizes)
    assert 10 < min(other.sizes)[0] < 18
    assert report["per_class"]["none"] == dict.fromkeys(report["own"].keys() - {"sizes"}, 0)
    assert suggest(boxes, sizes, other) is None  # nothing is left to gain


def test_levels_that_share_their_sizes_go_on_sharing_them():
    anchors = anchors_of("fasterrcnn_mobilenet_v3_large_320_fpn")
    boxes = np.array([[10, 10, 15 + side, 15 + side] for side in range(40)], dtype=np.float64)
    other = suggest(boxes, np.full((40, 2), 320), anchors)
    assert other is not None
    assert len(other.sizes) == 3
    assert len(set(other.sizes)) == 1
    assert len(other.sizes[0]) == 5


def test_no_boxes_and_boxes_of_one_size_are_no_crash():
    report, best = anchor_report(np.zeros((0, 4)), np.zeros((0, 2), int), np.zeros(0, int), [], ONE)
    assert report["own"]["boxes"] == len(best) == 0
    assert report["suggested"] is None
    same = np.tile([3.0, 3, 40, 40], (9, 1))
    assert suggest(same, np.full((9, 2), 64), ONE).sizes == ((37,),)


def test_suggested_sizes_are_all_different():
    """Boxes of one size would otherwise be given the same anchor many times."""
    from phase1_training.anchor_fit import anchors_of, suggest

    boxes = np.tile(np.array([[12.0, 12.0, 20.0, 20.0]]), (50, 1))
    found = suggest(boxes, np.full((50, 2), 256), anchors_of("demo"))
    assert found is not None
    sizes = [size for level in found.sizes for size in level]
    assert sizes == sorted(set(sizes))
    assert len(sizes) == 8
