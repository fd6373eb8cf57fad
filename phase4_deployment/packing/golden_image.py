"""The golden image of a package: a small val image and what the model finds in it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common import artifacts
from common.cli import log

if TYPE_CHECKING:
    import numpy as np

    from common.models import Detections
    from common.onnx_detector import ImageDetections

CANDIDATES, SIDE_PX = 10, 320
SURE = 0.9  # boxes from this score up decide which picture becomes the golden one


def write_golden(folder: Path, images: "Sequence[np.ndarray]", model: str) -> int:
    """Writes golden/ with the one of the first images that has the most sure boxes, or else the
    first of all images that has boxes which --verify compares.

    Args:
        images: uint8 RGB (H, W, 3).
        model: name of the .onnx file in the folder.

    Returns:
        how many boxes --verify will compare; with none, a warning is logged.
    """
    import cv2

    from common.onnx_detector import OnnxDetector
    from phase4_deployment.package import package_check

    detector = OnnxDetector(folder / model, "cpu")
    golden = _most_sure(images, detector)
    if golden is None:
        small = (_small(image) for image in images)
        golden = first_with_boxes(small, detector, package_check.COMPARED_SCORE)
    if golden is None:
        golden = _small(images[0])
        log.warning("No val image has boxes: --verify of the package can compare files only")
    with artifacts.atomic_path(folder / package_check.GOLDEN_IMAGE) as temporary:
        temporary.write_bytes(cv2.imencode(".png", golden[..., ::-1])[1].tobytes())
    boxes = package_check.golden_boxes(folder, model, "cpu")
    content = {
        "image": package_check.GOLDEN_IMAGE,
        "model": model,
        "min_score": package_check.MIN_SCORE,
        "detections": boxes,
    }
    artifacts.write_json(folder / package_check.GOLDEN, content)
    return sum(box["score"] >= package_check.COMPARED_SCORE for box in boxes)


def first_with_boxes(
    images: "Iterable[np.ndarray]",
    detect: "Callable[[list[np.ndarray]], Sequence[Detections | ImageDetections]]",
    min_score: float,
) -> "np.ndarray | None":
    """The first image with a box that scores at least `min_score`; None when none has one."""
    for image in images:
        if (detect([image])[0].scores >= min_score).any():
            return image
    return None


def _most_sure(
    images: "Sequence[np.ndarray]",
    detect: "Callable[[list[np.ndarray]], Sequence[Detections | ImageDetections]]",
) -> "np.ndarray | None":
    """The small one of the first images with the most sure boxes; None when none has any."""
    candidates = [_small(image) for image in images[:CANDIDATES]]
    counts = [int((detect([image])[0].scores >= SURE).sum()) for image in candidates]
    return candidates[counts.index(max(counts))] if any(counts) else None


def _small(image: "np.ndarray") -> "np.ndarray":
    """In its own proportions, with sides up to SIDE_PX."""
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
