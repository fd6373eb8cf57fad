"""Do the anchors of a detector fit the boxes of a data set?

A region proposal network (Ren et al. 2015, https://arxiv.org/abs/1506.01497) learns a box from the
anchors that overlap it: a box whose best anchor has a low IoU is learnt by that one anchor only,
and starts far from it. Here the best IoU over all anchors at all positions is exact.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from common import models
from common.anchors import arrange_sizes

IOUS = (0.3, 0.5, 0.7)  # torchvision: below 0.3 background, from 0.7 on positive by itself
PROBE_SIDE = 1024  # pixels; a multiple of every stride
MIN_GAIN = 0.01  # of the boxes: less is no reason to leave the anchors others trained with
FITTED_BOXES = 20_000  # enough to place a handful of sizes


@dataclass(frozen=True)
class Anchors:
    """The anchors of a detector.

    Attributes:
        sizes: of each pyramid level, square roots of anchor areas in pixels after the resize.
        aspect_ratios: height / width, of each level.
        strides: nominal pixels per cell of each level; the true stride follows from the image.
        divisor: images are padded to a multiple of it.
    """

    sizes: tuple[tuple[int, ...], ...]
    aspect_ratios: tuple[tuple[float, ...], ...]
    strides: tuple[int, ...]
    divisor: int

    def cells(self) -> list[np.ndarray]:
        """float64 (A, 4) of each level: xyxy around the origin, as torchvision rounds them."""
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        make = AnchorGenerator(self.sizes, self.aspect_ratios)
        return [anchors.double().numpy() for anchors in make.cell_anchors]


@functools.cache
def anchors_of(architecture: str, anchor_sizes: Sequence[int] | None = None) -> Anchors:
    """Reads anchors and strides from the model, built without memory or arithmetic.

    Args:
        anchor_sizes: in place of the architecture's own, in pixels after the resize.
    """
    import torch

    with torch.device("meta"), torch.no_grad():
        model = models.build_model(architecture, 2, anchor_sizes=anchor_sizes).eval()
        levels = model.backbone(torch.empty(1, 3, PROBE_SIDE, PROBE_SIDE))
    generator = model.rpn.anchor_generator
    return Anchors(
        tuple(tuple(level) for level in generator.sizes),
        tuple(tuple(level) for level in generator.aspect_ratios),
        tuple(PROBE_SIDE // level.shape[-1] for level in levels.values()),
        model.transform.size_divisible,
    )


def best_iou(boxes_xyxy: np.ndarray, sizes_wh: np.ndarray, anchors: Anchors) -> np.ndarray:
    """The IoU of each box with its best anchor at any position.

    For one anchor shape the IoU grows with the intersection, a product of the overlaps along x
    and y. Each of the two is largest where the centres are closest, so that one position a shape
    is enough, and 100,000 boxes take a moment.

    Args:
        boxes_xyxy: (N, 4), pixels of the resized image.
        sizes_wh: int (N, 2), width and height of that image in pixels.

    Returns:
        float64 (N,), in [0, 1].
    """
    start, end = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    centre, area = (start + end) / 2, (end - start).prod(axis=1)
    padded = -(-sizes_wh // anchors.divisor) * anchors.divisor
    best = np.zeros(len(boxes_xyxy))
    for nominal, level in zip(anchors.strides, anchors.cells(), strict=True):
        cells = -(-padded // nominal)
        stride = padded // cells  # torchvision's rule
        for anchor in level:
            cell = np.rint((centre - (anchor[:2] + anchor[2:]) / 2) / stride).clip(0, cells - 1)
            origin = cell * stride
            overlap = np.minimum(end, origin + anchor[2:]) - np.maximum(start, origin + anchor[:2])
            shared = overlap.clip(0).prod(axis=1)
            union = area + (anchor[2:] - anchor[:2]).prod() - shared
            np.maximum(best, shared / union, out=best)
    return best


# --- other sizes ------------------------------------------------------------------------------


def suggest(boxes_xyxy: np.ndarray, sizes_wh: np.ndarray, anchors: Anchors) -> Anchors | None:
    """The anchors with the sizes that fit the boxes best, as many of them as there are.

    Candidates are the quantiles and the k-means centres of the boxes' sizes on a logarithmic
    scale. None when neither leaves at least 1% of the boxes fewer below an IoU of 0.5.
    """
    step = -(-len(boxes_xyxy) // FITTED_BOXES)
    sides = (boxes_xyxy[::step, 2:] - boxes_xyxy[::step, :2]).clip(1e-6)
    logarithms = np.log(sides.prod(axis=1)) / 2
    shared = len(set(anchors.sizes)) == 1  # every level has all sizes
    count = len(anchors.sizes[0]) if shared else sum(map(len, anchors.sizes))
    quantiles = np.quantile(logarithms, (np.arange(count) + 0.5) / count)
    candidates = [
        replace(anchors, sizes=arrange_sizes(_whole(centres), anchors.sizes))
        for centres in (quantiles, _k_means(logarithms, quantiles))
    ]
    missed = [
        (best_iou(boxes_xyxy, sizes_wh, each) < 0.5).mean() for each in (anchors, *candidates)
    ]
    best = int(np.argmin(missed[1:]))
    return candidates[best] if missed[0] - missed[1 + best] >= MIN_GAIN else None


def _whole(logarithms: np.ndarray) -> list[int]:
    """Sizes in pixels, rising: two equal anchors would see the same boxes."""
    sizes: list[int] = []
    for size in np.exp(logarithms):
        sizes.append(max(round(float(size)), sizes[-1] + 1 if sizes else 1))
    return sizes


def _k_means(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """One-dimensional (Lloyd 1982), from `centres`; an empty cluster keeps its centre."""
    for _ in range(30):
        nearest = np.abs(values[:, None] - centres).argmin(axis=1)
        sums = np.bincount(nearest, values, len(centres))
        counts = np.bincount(nearest, minlength=len(centres))
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    return np.sort(centres)


# --- report -----------------------------------------------------------------------------------


def anchor_report(
    boxes_xyxy: np.ndarray,
    sizes_wh: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    anchors: Anchors,
) -> tuple[dict[str, Any], np.ndarray]:
    """How well the anchors fit, overall, per class, and with other sizes.

    Args:
        boxes_xyxy, sizes_wh: as `best_iou` takes them.
        labels: int64 (N,), from 1.

    Returns:
        `own`, `suggested` (None: other sizes gain nothing) and `per_class`, each with `boxes` and
        how many of them have no anchor of an IoU of 0.3, 0.5 and 0.7; and the best IoUs (N,).
    """
    best = best_iou(boxes_xyxy, sizes_wh, anchors)
    other = suggest(boxes_xyxy, sizes_wh, anchors) if len(best) else None
    return {
        "own": {"sizes": anchors.sizes, **_below(best)},
        "suggested": other
        and {"sizes": other.sizes, **_below(best_iou(boxes_xyxy, sizes_wh, other))},
        "per_class": {
            name: _below(best[labels == index + 1]) for index, name in enumerate(class_names)
        },
    }, best


def _below(ious: np.ndarray) -> dict[str, int]:
    return {"boxes": len(ious), **{f"below_{iou}": int((ious < iou).sum()) for iou in IOUS}}
