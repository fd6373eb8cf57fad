"""Finds objects in an image, a folder of images or a video with an exported detector.

Needs only numpy, opencv-python and onnxruntime (or onnxruntime-gpu), nothing of the project:

    python detect.py photo.jpg
    python detect.py images/ --output found --confidence 0.7
    python detect.py video.mp4 --device cuda

Writes the pictures or the video with boxes drawn, and detections.json. From Python:

    detections = Detector(Path("model.onnx"))([rgb_image])  # uint8 (height, width, 3)
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    import numpy as np

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130
FORMAT = "detector/1"  # of the metadata in the ONNX file
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
PROVIDERS = {
    "auto": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
}
PROVIDER_OPTIONS = {  # by default TF32 moves boxes, and every new size starts a long search
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
COLORS = ((66, 133, 244), (219, 68, 55), (244, 160, 0), (15, 157, 88), (171, 71, 188))
WHITE = (255, 255, 255)
DEFAULT_FPS = 25.0  # of a video that does not tell its own


class DetectError(Exception):
    """What the person can mend; the text reads `WHERE: what is wrong – what to do`."""

    def __init__(self, where: Path | str, what: str, remedy: str):
        super().__init__(f"{where}: {what} – {remedy}".replace("\n", " "))
        self.where, self.what, self.remedy = where, what, remedy


class ImageDetections(NamedTuple):
    """Boxes of one image, best first: float32 (N, 4) xyxy in pixels of the image, scores float32
    (N,) in [0, 1], labels int64 (N,) from 1, and their class names."""

    boxes_xyxy: "np.ndarray"
    scores: "np.ndarray"
    labels: "np.ndarray"
    names: list[str]


class Detector:
    """An exported detector in ONNX Runtime.

    Args:
        onnx_path: a file written by export_onnx.py.
        device: "cpu"; "cuda", which fails where CUDA cannot be used; "auto" takes what works.
        threads: CPU threads of the session; 0 lets ONNX Runtime choose.

    Attributes:
        provider: the execution provider that really runs, for instance CPUExecutionProvider.
        metadata: what the file says of itself; class_names and category_ids are lists.

    Raises:
        DetectError: the file is missing, damaged or of another kind, or there is no such device.
    """

    def __init__(self, onnx_path: Path, device: str = "auto", threads: int = 0):
        import onnxruntime

        if not Path(onnx_path).is_file():
            raise DetectError(onnx_path, "no such file", "name a model with --model")
        onnxruntime.set_default_logger_severity(4)  # CUDA's absence is told below, in one line
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        available = onnxruntime.get_available_providers()
        providers = [name for name in PROVIDERS[device] if name in available]
        if "CUDAExecutionProvider" in providers:
            _load_cuda_libraries()
        try:
            self.session = onnxruntime.InferenceSession(
                str(onnx_path),
                options,
                providers,
                [PROVIDER_OPTIONS.get(name, {}) for name in providers],
            )
        except Exception as error:  # noqa: BLE001 (a dozen kinds without a common base)
            reason = str(error).splitlines()[0][:200]
            raise DetectError(
                onnx_path, f"cannot be loaded ({reason})", "export it again"
            ) from None
        self.provider = self.session.get_providers()[0]
        if self.provider not in PROVIDERS[device][:1] and device != "auto":
            remedy = "install onnxruntime-gpu with CUDA, or use --device cpu"
            raise DetectError(f"--device {device}", f"runs on {self.provider} instead", remedy)
        self.metadata = _read_metadata(self.session, onnx_path)
        self.class_names: list[str] = self.metadata["class_names"]

    def __call__(self, images: "Sequence[np.ndarray]") -> list[ImageDetections]:
        """Detects objects in uint8 RGB images (H, W, 3) of any sizes; equal sizes share a batch."""
        import numpy as np

        by_size: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                shape = f"{image.dtype} {image.shape}"
                raise ValueError(f"images must be uint8 (height, width, 3), not {shape}")
            by_size.setdefault(image.shape, []).append(position)
        found: dict[int, ImageDetections] = {}
        for positions in by_size.values():
            batch = np.stack([images[position] for position in positions])
            for position, *outputs, count in zip(
                positions, *self.session.run(None, {"images": batch}), strict=True
            ):
                boxes, scores, labels = (output[:count] for output in outputs)
                names = [self.class_names[label - 1] for label in labels]
                found[position] = ImageDetections(boxes, scores, labels, names)
        return [found[position] for position in range(len(images))]


def _load_cuda_libraries() -> None:
    """Loads the CUDA libraries that pip put beside onnxruntime-gpu, which does not find them itself
    unless PyTorch has loaded its own before."""
    import onnxruntime

    preload = getattr(onnxruntime, "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # what is missing, the session tells
            preload()


def _read_metadata(session: Any, onnx_path: Path) -> dict[str, Any]:
    """The file's metadata with its JSON values parsed."""
    metadata: dict[str, Any] = dict(session.get_modelmeta().custom_metadata_map)
    if metadata.get("format") != FORMAT:
        raise DetectError(onnx_path, "not a detector of this kind", "export it with export_onnx.py")
    for key in ("class_names", "category_ids"):
        metadata[key] = json.loads(metadata[key])
    return metadata


# --- pictures ---------------------------------------------------------------------------------


def read_image(path: Path) -> "np.ndarray":
    """uint8 BGR (height, width, 3), EXIF orientation applied."""
    import cv2
    import numpy as np

    try:
        content = np.fromfile(path, np.uint8)  # imread cannot open every path on Windows
    except OSError as error:
        raise DetectError(path, f"cannot be read ({error.strerror})", "check the path") from None
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise DetectError(path, "cannot be decoded", "replace or remove it")
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
        raise DetectError(
            path, f"cannot be written ({reason})", "choose another --output"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def detect_images(
    detector: Detector, files: Sequence[Path], output: Path, confidence: float
) -> dict[str, Any]:
    """Writes every picture with its boxes; a file that is no picture is reported and left out."""
    import cv2

    images, unreadable = [], []
    for file in files:
        try:
            image = read_image(file)
        except DetectError as error:
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
        raise DetectError(files[0].parent, "no readable image", "give a folder with images")
    return {"images": images, "unreadable": unreadable}


def detect_video(detector: Detector, file: Path, output: Path, confidence: float) -> dict[str, Any]:
    """Writes the video with boxes (MPEG-4, which OpenCV can always write), frame by frame."""
    import cv2

    capture = cv2.VideoCapture(str(file))
    readable, frame = capture.read()
    if not readable:
        raise DetectError(file, "not a readable image or video", "give an image, folder or video")
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
        raise DetectError(source, "no such file or folder", "check the path")
    files = [source]
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DetectError(source, "no images in the folder", "give a folder with images")
        if source.resolve() == output.resolve():
            raise DetectError(output, "is the input folder", "choose another --output")
    detector = Detector(model, device)
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
    except DetectError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
