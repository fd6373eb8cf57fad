"""Whether an exported detector finds what PyTorch finds: the pictures, the measure, the verdict."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torchvision.models.detection import FasterRCNN

    from common.models import Detections
    from common.onnx_detector import OnnxDetector

# (batch, height, width): sizes common in COCO, where other exporters resize one pixel off, odd
# ones, very small and very long ones; and batches, each of which holds a dark image
GATE_SHAPES = (
    (1, 480, 640),
    (1, 375, 500),
    (1, 640, 427),
    (1, 333, 501),
    (1, 97, 131),
    (1, 32, 32),
    (1, 120, 960),
    (2, 240, 320),
    (5, 150, 201),
)
# How far PyTorch is moved to see how sensitive a model is: in units of a normalised pixel, about
# what two correct implementations of the resize differ by, and a thousandth of a grey level
PIXEL_SHIFT = 1e-5
# Grey levels of a dark image, noise: all regions of an evenly black one would score the same, and
# which of them suppress which others would be decided by rounding alone.
DARK_LEVELS = 8


class Tolerance(NamedTuple):
    """The least share of matched detections, the largest box (pixels) and score differences."""

    matched: float
    box_error_px: float
    score_error: float


STRICT = Tolerance(0.99, 0.05, 1e-3)  # a score may fall to the other side of a threshold
LOOSEST = Tolerance(0.9, 1.0, 1e-2)  # for models that amplify rounding, above all untrained ones


class Reference:
    """What a detector finds, by which others are judged on the same images.

    Args:
        expected: Detections of each image.
        moved: finds them again after PIXEL_SHIFT, where that can be done; called once at most.
    """

    def __init__(
        self, expected: "list[Detections]", moved: "Callable[[], list[Detections]] | None" = None
    ):
        self.expected, self._moved = expected, moved
        self._sensitivity: dict[str, Any] | None = None

    def judge(self, actual: "Sequence[Detections]") -> dict[str, Any]:
        """Parity of another detector, one outside STRICT holding still when it differs less than
        the reference does from itself after PIXEL_SHIFT, within LOOSEST.

        Returns:
            `matched` (share of detections with a partner, the worse of both directions),
            `max_box_error_px`, `max_score_error` (None without pairs), `detections`, `images`,
            `sensitivity` (the reference's own difference; None if not needed or not known) and
            the verdict `holds`.
        """
        parity = measure_parity(self.expected, actual)
        if within(parity, STRICT):
            return {**parity, "sensitivity": None, "holds": True}
        sensitivity = self.sensitivity()
        tolerance = STRICT if sensitivity is None else _tolerance(sensitivity)
        return {**parity, "sensitivity": sensitivity, "holds": within(parity, tolerance)}

    def sensitivity(self) -> dict[str, Any] | None:
        if self._sensitivity is None and self._moved is not None:
            self._sensitivity = measure_parity(self.expected, self._moved())
        return self._sensitivity


def torch_reference(model: "FasterRCNN", batches: "Sequence[Sequence[np.ndarray]]") -> Reference:
    """torchvision's own forward pass in float32 on the CPU."""
    import torch

    from common.inference_graph import InferenceGraph, graph_predictor
    from common.models import stock_predictor

    cpu = torch.device("cpu")

    def moved() -> "list[Detections]":
        graph = InferenceGraph(model)
        graph.mean -= PIXEL_SHIFT * graph.std
        predict = graph_predictor(graph, cpu)
        return [found for batch in batches for found in predict(batch)]

    stock = stock_predictor(model, cpu)
    return Reference([found for batch in batches for found in stock(batch)], moved)


def compare_with_torch(
    model: "FasterRCNN", detector: "OnnxDetector", batches: "Sequence[Sequence[np.ndarray]]"
) -> dict[str, Any]:
    """Parity of an ONNX file with torchvision's own forward pass; see `Reference.judge`."""
    from common.models import Detections

    actual = [Detections(*found[:3]) for batch in batches for found in detector(batch)]
    return torch_reference(model, batches).judge(actual)


def _tolerance(sensitivity: dict[str, Any]) -> Tolerance:
    return Tolerance(
        max(min(STRICT.matched, sensitivity["matched"]), LOOSEST.matched),
        min(max(STRICT.box_error_px, sensitivity["max_box_error_px"] or 0), LOOSEST.box_error_px),
        min(max(STRICT.score_error, sensitivity["max_score_error"] or 0), LOOSEST.score_error),
    )


def measure_parity(expected: Sequence, actual: Sequence) -> dict[str, Any]:
    """Compares Detections both ways, so that neither missing nor additional ones pass."""
    from common.evaluation import compare_detections

    both_ways = compare_detections(expected, actual), compare_detections(actual, expected)
    return {
        **min(both_ways, key=lambda parity: parity["matched"] or 0.0),
        "detections": sum(len(found.scores) for found in expected),
        "images": len(expected),
    }


def within(parity: dict[str, Any], tolerance: Tolerance) -> bool:
    return (
        parity["matched"] >= tolerance.matched
        and (parity["max_box_error_px"] or 0) <= tolerance.box_error_px
        and (parity["max_score_error"] or 0) <= tolerance.score_error
    )


def describe(parity: dict[str, Any]) -> str:
    """`98.00% of 50 detections agree, boxes to 0.01 px, scores to 1e-05`."""
    text = f"{parity['matched']:.2%} of {parity['detections']} detections agree"
    if parity["max_box_error_px"] is None:
        return text
    return (
        f"{text}, boxes to {parity['max_box_error_px']:.2g} px, "
        f"scores to {parity['max_score_error']:.2g}"
    )


def gate_batches(images: "Sequence[np.ndarray]") -> "list[list[np.ndarray]]":
    """Pictures of GATE_SHAPES, resized from `images` or made up without any; the last one of a
    batch is dark."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    batches: list[list[np.ndarray]] = []
    for batch, height, width in GATE_SHAPES:
        pictures = []
        for index in range(batch):
            if images:
                picture = images[(len(batches) + index) % len(images)]
            else:
                picture = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
            pictures.append(cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC))
        if batch > 1:
            pictures[-1] = rng.integers(0, DARK_LEVELS, (height, width, 3), np.uint8)
        batches.append(pictures)
    return batches
