"""Finds objects in an image, a folder of images or a video with an exported detector.

Needs only numpy, opencv-python and onnxruntime (or onnxruntime-gpu), and common/ beside it:

    python detect.py photo.jpg
    python detect.py images/ --output found --confidence 0.7
    python detect.py video.mp4 --device cuda

Writes the pictures or the video with boxes drawn, and detections.json. From Python:

    detections = OnnxDetector(Path("model.onnx"))([rgb_image])  # uint8 (height, width, 3)
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the package's own common/

from common.errors import UserError
from common.onnx_detector import PROVIDERS, ImageDetections, OnnxDetector

if TYPE_CHECKING:
    import numpy as np

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
COLORS = ((66, 133, 244), (219, 68, 55), (244, 160, 0), (15, 157, 88), (171, 71, 188))
WHITE = (255, 255, 255)
DEFAULT_FPS = 25.0  # of a video that does not tell its own


# --- pictures ---------------------------------------------------------------------------------


def read_image(path: Path) -> "np.ndarray":
    """uint8 BGR (height, width, 3), EXIF orientation applied."""
    import cv2
    import numpy as np

    try:
        content = np.fromfile(path, np.uint8)  # imread cannot open every path on Windows
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check the path") from None
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise UserError(path, "cannot be decoded", "replace or remove it")
    return image


def draw(image: "np.ndarray", detections: ImageDetections) -> "np.ndarray":
    """A copy of a BGR image with boxes, names and scores."""
    import cv2

    image = image.copy()
    thickness = max(1, round(min(image.shape[:2]) / 300))
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.4 + 0.1 * thickness
    for box, score, label, name in zip(*detections, strict=True):
        left, top, right, bottom = (round(float(side)) for side in box)
        color = COLORS[label % len(COLORS)]
        cv2.rectangle(image, (left, top), (right, bottom), color, thickness)
        letters = name.encode("ascii", "replace").decode()  # OpenCV's font has no others
        text = f"{letters} {score:.2f}"
        (width, height), descent = cv2.getTextSize(text, font, size, thickness)
        baseline = max(top - descent, height)
        corners = (left, baseline - height), (left + width, baseline + descent)
        cv2.rectangle(image, *corners, color, cv2.FILLED)
        cv2.putText(image, text, (left, baseline), font, size, WHITE, thickness, cv2.LINE_AA)
    return image


def confident(detections: ImageDetections, confidence: float) -> ImageDetections:
    """The detections that score at least `confidence`; they come best first."""
    count = int((detections.scores >= confidence).sum())
    boxes_xyxy, scores, labels, names = detections
    return ImageDetections(boxes_xyxy[:count], scores[:count], labels[:count], names[:count])


def as_json(detections: ImageDetections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "box_xyxy": [round(float(side), 3) for side in box],
            "score": round(float(score), 6),
            "category_id": category_ids[label - 1],
            "name": name,
        }
        for box, score, label, name in zip(*detections, strict=True)
    ]


# --- jobs -------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes `path` when all went well and vanishes otherwise."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(path, f"cannot be written ({reason})", "choose another --output") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def detect_images(
    detector: OnnxDetector, files: Sequence[Path], output: Path, confidence: float
) -> dict[str, Any]:
    """Writes every picture with its boxes; a file that is no picture is reported and left out."""
    import cv2

    images, unreadable = [], []
    for file in files:
        try:
            image = read_image(file)
        except UserError as error:
            if len(files) == 1:
                raise
            print(f"warning: {error}", file=sys.stderr)
            unreadable.append(file.name)
            continue
        found = confident(detector([image[..., ::-1]])[0], confidence)
        written, encoded = cv2.imencode(".jpg", draw(image, found))
        with whole_file(output / f"{file.name}.detections.jpg") as temporary:
            if not written:
                raise OSError("the picture cannot be encoded")
            temporary.write_bytes(encoded.tobytes())
        height, width = image.shape[:2]
        boxes = as_json(found, detector.metadata["category_ids"])
        images.append({"file": file.name, "width": width, "height": height, "detections": boxes})
    if not images:
        raise UserError(files[0].parent, "no readable image", "give a folder with images")
    return {"images": images, "unreadable": unreadable}


def detect_video(
    detector: OnnxDetector, file: Path, output: Path, confidence: float
) -> dict[str, Any]:
    """Writes the video with boxes (MPEG-4, which OpenCV can always write), frame by frame."""
    import cv2

    capture = cv2.VideoCapture(str(file))
    readable, frame = capture.read()
    if not readable:
        raise UserError(file, "not a readable image or video", "give an image, folder or video")
    fps = capture.get(cv2.CAP_PROP_FPS)
    fps = fps if 0 < fps < 1000 else DEFAULT_FPS
    announced = int(max(0, capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    height, width = frame.shape[:2]
    frames: list[dict[str, Any]] = []
    with whole_file(output / f"{file.stem}.detections.mp4") as temporary:
        codec = cv2.VideoWriter_fourcc(*"mp4v")  # type: ignore[attr-defined]
        writer = cv2.VideoWriter(str(temporary), codec, fps, (width, height))
        if not writer.isOpened():
            raise OSError("no video writer for mp4v")
        try:
            while readable:
                found = confident(detector([frame[..., ::-1]])[0], confidence)
                writer.write(draw(frame, found))
                boxes = as_json(found, detector.metadata["category_ids"])
                frames.append({"frame": len(frames), "detections": boxes})
                readable, frame = capture.read()
        finally:
            writer.release()
            capture.release()
    if len(frames) < announced:
        print(f"warning: {file}: {len(frames)} of {announced} frames readable", file=sys.stderr)
    return {
        "video": file.name,
        "width": width,
        "height": height,
        "fps": fps,
        "frames_read": len(frames),
        "truncated": len(frames) < announced,
        "frames": frames,
    }


def detect(source: Path, model: Path, output: Path, confidence: float, device: str) -> None:
    """Runs the model over `source` and writes pictures or a video and detections.json."""
    if not source.exists():
        raise UserError(source, "no such file or folder", "check the path")
    files = [source]
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(source, "no images in the folder", "give a folder with images")
        if source.resolve() == output.resolve():
            raise UserError(output, "is the input folder", "choose another --output")
    detector = OnnxDetector(model, device)
    started = time.perf_counter()
    if source.is_dir() or source.suffix.lower() in IMAGE_SUFFIXES:
        found = detect_images(detector, files, output, confidence)
    else:
        found = detect_video(detector, source, output, confidence)
    seconds = time.perf_counter() - started
    pictures = found.get("images") or found["frames"]
    report = {
        "schema": "detections/1",
        "model": model.name,
        "source_sha256": detector.metadata["source_sha256"],
        "provider": detector.provider,
        "confidence": confidence,
        **found,
    }
    with whole_file(output / "detections.json") as temporary:
        text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    boxes = sum(len(picture["detections"]) for picture in pictures)
    print(
        f"{boxes} objects in {len(pictures)} pictures, {len(pictures) / seconds:.1f} per second "
        f"on {detector.provider}\nSaved {output}"
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"error: {message.removeprefix('argument ')}\n")


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    beside = Path(__file__).resolve().with_name("model.onnx")
    parser.add_argument("source", type=Path, help="an image, a folder of images or a video")
    parser.add_argument(
        "--model", type=Path, default=beside, help="default: model.onnx beside this file"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("detections"), help="folder (default: detections)"
    )
    parser.add_argument(
        "--confidence", type=_fraction, default=0.5, help="least score shown (default: 0.5)"
    )
    parser.add_argument("--device", choices=sorted(PROVIDERS), default="auto", help="default: auto")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        detect(args.source, args.model, args.output, args.confidence, args.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
