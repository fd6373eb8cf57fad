"""Detectors of other runtimes as functions from any images to detections."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.models import Detections, Predictor

if TYPE_CHECKING:
    from common.onnx_detector import OnnxDetector


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


def onnx_predictor(detector: "OnnxDetector") -> Predictor:
    """A Predictor over the detector that the package runs."""
    return lambda images: [Detections(*found[:3]) for found in detector(images)]
