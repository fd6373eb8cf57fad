"""Pictures that have nothing to do with one another: a copy of each with boxes, and one JSON."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from common import artifacts, cli
from common.cli import UserError, log
from common.coco import read_image
from phase3_tracking.inputs.image_folder import IMAGE_SUFFIXES, pictures_in
from phase3_tracking.inputs.sources import ADDRESS
from phase3_tracking.results.drawing import FONT, color_of, drawable, text_color_on
from phase3_tracking.results.pictures import encoded

if TYPE_CHECKING:
    from phase3_tracking.video_detector import VideoDetector

REPORT = "detections.json"
SUFFIX = ".detections.jpg"


def pictures_among(texts: Sequence[str]) -> list[Path]:
    """The pictures that inputs stand for, those in folders too; none when they are videos.

    Raises:
        UserError: pictures beside videos, or one that does not exist.
    """
    files: list[Path] = []
    videos: list[str] = []
    for text in texts:
        path = Path(text)
        if text and path.is_dir():
            files += pictures_in(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES and not ADDRESS.match(text):
            files.append(path)
        else:
            videos.append(text)
    if files and videos:
        raise UserError(videos[0], "is a video among pictures", "give one kind at a time")
    for file in files:
        if not file.is_file():
            raise UserError(file, "no such file", "check the path")
    return files


def check_output(output: Path, files: Sequence[Path], *, replace: bool) -> None:
    """Refuses a folder in which something would be lost.

    Raises:
        UserError: naming the file.
    """
    if output.suffix.lower() == ".mp4" or output.is_file():
        raise UserError(output, "is a file", "give a folder, as the input is no video")
    if any(file.parent.resolve() == output.resolve() for file in files):
        raise UserError(output, "is the folder of the input", "choose another --output")
    if not replace and (output / REPORT).exists():
        remedy = "choose another --output or add --overwrite"
        raise UserError(output / REPORT, "exists already", remedy)
    seen: dict[str, Path] = {}
    for file in files:
        if file.name in seen:
            raise UserError(file, f"is called like {seen[file.name]}", "give them one by one")
        seen[file.name] = file


def detect_pictures(
    detector: "VideoDetector", files: Sequence[Path], output: Path, model: Path
) -> list[Path]:
    """Writes NAME.detections.jpg for each picture, and detections.json.

    A file that is no picture is told on stderr and left out, unless it is the only one.

    Returns:
        What was written; a pattern stands for more than one picture.
    """
    rows, unreadable = [], []
    size = detector.batch_size
    batches = [files[start : start + size] for start in range(0, len(files), size)]
    for batch in cli.progress(batches, total=len(batches), label="Batches of pictures"):
        images, readable = [], []
        for file in batch:
            try:
                images.append(cv2.cvtColor(read_image(file), cv2.COLOR_RGB2BGR))
                readable.append(file)
            except UserError as error:
                if len(files) == 1:
                    raise
                sys.stderr.write(f"warning: {error}\n")
                unreadable.append(file.name)
        for file, image, found in zip(
            readable, images, detector.detect_frames(images), strict=True
        ):
            rows.append(_row(file, image, found, detector.class_names))
            with artifacts.atomic_path(output / f"{file.name}{SUFFIX}") as temporary:
                draw(image, found, detector.class_names)
                temporary.write_bytes(encoded(".jpg", image))
    if not rows:
        raise UserError(files[0].parent, "no readable picture", "give a folder with pictures")
    artifacts.write_json(output / REPORT, _report(detector, model, rows, unreadable))
    boxes = sum(len(row["detections"]) for row in rows)
    log.info("Objects: %d; pictures: %d of %d readable", boxes, len(rows), len(files))
    name = rows[0]["file"] if len(rows) == 1 else "*"
    return [output / f"{name}{SUFFIX}", output / REPORT]


def _row(
    file: Path, image: np.ndarray, found: np.ndarray, class_names: Mapping[int, str]
) -> dict[str, Any]:
    """One entry of detections.json."""
    height, width = image.shape[:2]
    boxes = detection_rows(found, class_names)
    return {"file": file.name, "width": width, "height": height, "detections": boxes}


def detection_rows(found: np.ndarray, class_names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The boxes of one image as they stand in JSON.

    Args:
        found: (N, 6) [x1, y1, x2, y2, confidence, category id] in pixels.
    """
    return [
        {
            "box_xyxy": [round(side, 3) for side in box],
            "score": round(score, 6),
            "category_id": int(category),
            "name": class_names[int(category)],
        }
        for *box, score, category in found.tolist()
    ]


def _report(
    detector: "VideoDetector",
    model: Path,
    rows: Sequence[Mapping[str, Any]],
    unreadable: Sequence[str],
) -> dict[str, Any]:
    return {
        **artifacts.provenance("detections", detector.device, [model]),
        "model": model.name,
        "confidence": detector.confidence_threshold,
        "images": rows,
        "unreadable": unreadable,
    }


def draw(image_bgr: np.ndarray, found: np.ndarray, class_names: Mapping[int, str]) -> None:
    """Draws boxes, names and scores onto a uint8 image (H, W, 3).

    Args:
        found: (N, 6) [x1, y1, x2, y2, confidence, category id] in pixels.
    """
    thickness = max(1, round(min(image_bgr.shape[:2]) / 300))
    size = 0.4 + 0.1 * thickness
    for *box, score, category in found.tolist():
        left, top, right, bottom = map(round, box)
        color = color_of(int(category))
        cv2.rectangle(image_bgr, (left, top), (right, bottom), color, thickness)
        text = f"{drawable(class_names[int(category)])} {score:.2f}"
        (width, height), descent = cv2.getTextSize(text, FONT, size, thickness)
        baseline = max(top - descent, height)
        corners = (left, baseline - height), (left + width, baseline + descent)
        cv2.rectangle(image_bgr, *corners, color, cv2.FILLED)
        ink = text_color_on(color)
        cv2.putText(image_bgr, text, (left, baseline), FONT, size, ink, thickness, cv2.LINE_AA)
