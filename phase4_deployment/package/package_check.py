"""Whether a package is whole, and still finds what it found where it was built."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import artifacts
from common.cli import EXIT_OK, EXIT_USER_ERROR, log
from common.onnx_detector import OnnxDetector
from phase4_deployment.package.file_check import INFO, file_findings

GOLDEN_IMAGE, GOLDEN = "golden/image.png", "golden/detections.json"
MIN_SCORE = 0.1  # weaker boxes are not compared
BOX_TOLERANCE_PX, SCORE_TOLERANCE = 0.5, 0.02  # other processors and GPUs round otherwise
COMPARED_SCORE = MIN_SCORE + SCORE_TOLERANCE  # a weaker box may have a partner below MIN_SCORE

Box = Mapping[str, Any]


def measured_batch_size(folder: Path, model: Path, kind: str) -> int | None:
    """The batch size that was best for a model of the package when it was built.

    Args:
        kind: "throughput", or "latency" for the best within the latency budget.

    Returns:
        None for a model of somebody else, or where nothing keeps the budget.
    """
    if not (folder / INFO).is_file() or model.resolve().parent != folder:
        return None
    sizes = artifacts.read_json(folder / INFO).get("batch_sizes", {})
    return sizes.get(model.name, {}).get(kind)


def check_package(folder: Path, device: str) -> int:
    """Tells each finding in a line on stderr; the exit status, 2 when there is any."""
    findings = file_findings(folder)
    if findings:
        log.info("Files are not as they were built; the golden image is not tried")
    else:
        info = artifacts.read_json(folder / INFO)
        log.info("%d files are as they were built", len(info["files"]))
        findings = golden_findings(folder, info["default_model"], device)
    for finding in findings:
        sys.stderr.write(f"error: {finding}\n")
    return EXIT_USER_ERROR if findings else EXIT_OK


# --- the golden image -------------------------------------------------------------------------


def golden_boxes(folder: Path, model: str, device: str) -> list[dict[str, Any]]:
    """What the model finds in the golden image, from MIN_SCORE up."""
    from common.coco import read_image

    detector = OnnxDetector(folder / model, device)
    (found,) = detector([read_image(folder / GOLDEN_IMAGE)])
    return [
        {
            "box_xyxy": [round(side, 3) for side in box],
            "score": round(score, 6),
            "category_id": detector.metadata["category_ids"][label - 1],
            "name": name,
        }
        for box, score, label, name in zip(
            found.boxes_xyxy.tolist(),
            found.scores.tolist(),
            found.labels.tolist(),
            found.names,
            strict=True,
        )
        if score >= MIN_SCORE
    ]


def golden_findings(folder: Path, model: str, device: str) -> list[str]:
    """One at most: the boxes in the golden image are others than the golden ones."""
    golden = artifacts.read_json(folder / GOLDEN)["detections"]
    found = golden_boxes(folder, model, device)
    lost, gained = unmatched(golden, found), unmatched(found, golden)
    if not lost and not gained and not any(box["score"] >= COMPARED_SCORE for box in golden):
        log.warning("%s has no boxes to compare; only the files were checked", GOLDEN_IMAGE)
        return []
    if not lost and not gained:
        text = "%d boxes in %s are the golden ones, to %g px and %g in score"
        log.info(text, len(golden), GOLDEN_IMAGE, BOX_TOLERANCE_PX, SCORE_TOLERANCE)
        return []
    first = [*lost, *gained][0]
    corners = ", ".join(f"{side:.0f}" for side in first["box_xyxy"])
    what = (
        f"{len(lost)} of {len(golden)} golden boxes are not found, {len(gained)} others are: "
        f"{first['name']} {first['score']:.2f} at {corners}"
    )
    return [f"{GOLDEN_IMAGE}: {what} – update onnxruntime, or try --device cpu"]


def unmatched(boxes: Sequence[Box], others: Sequence[Box]) -> list[Box]:
    """Boxes without a partner among the others: the same category, within the tolerances.

    A box below COMPARED_SCORE needs none.
    """
    return [
        box
        for box in boxes
        if box["score"] >= COMPARED_SCORE and not any(_agree(box, other) for other in others)
    ]


def _agree(box: Box, other: Box) -> bool:
    shift = max(
        abs(side - its) for side, its in zip(box["box_xyxy"], other["box_xyxy"], strict=True)
    )
    return (
        box["category_id"] == other["category_id"]
        and shift <= BOX_TOLERANCE_PX
        and abs(box["score"] - other["score"]) <= SCORE_TOLERANCE
    )
