"""Detectors that take batches of one size, as functions that take any images."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common.models import Detections, Predictor


def batch_predictor(run: Callable[[np.ndarray], Sequence[Any]]) -> Predictor:
    """A Predictor over a function that is called like an InferenceGraph, but on numpy arrays.

    Images of equal size go through it as one batch. An image's detections do not depend on the
    others. torchvision's own do: it pads a batch of several sizes to the largest, so compare with
    it in batches of one size.
    """

    def predict(images: Sequence[np.ndarray]) -> list[Detections]:
        by_size: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(position)
        found: dict[int, Detections] = {}
        for positions in by_size.values():
            outputs = run(np.stack([images[position] for position in positions]))
            for position, *parts, size in zip(positions, *outputs, strict=True):
                found[position] = Detections(*(part[:size] for part in parts))
        return [found[position] for position in range(len(images))]

    return predict
