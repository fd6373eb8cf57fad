"""The archive of a package, unpacked elsewhere and run as its user will, against the project.

The process that runs it has no access to the project: isolated mode, another working directory, and
a Python with nothing but what the package's requirements.txt asks for.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from common import paths
from common.cli import log
from common.evaluation import compare_detections
from common.models import Detections, Predictor
from common.video import VideoWriter
from phase4_deployment.package.package_check import BOX_TOLERANCE_PX
from phase4_deployment.packing import clean_environment, package_files
from phase4_deployment.packing.golden_image import first_with_boxes

MIN_MATCHED = 0.99
CLIP_FRAMES, CLIP_STEP_PX = 12, 2
CLIP_CONFIDENCE, CLIP_BATCH_SIZE = 0.3, 4


class Trial:
    """An unpacked package and an interpreter for it.

    Args:
        package: its folder.
        python: what runs it.
        elsewhere: the working directory.
    """

    def __init__(self, package: Path, python: Path, elsewhere: Path):
        self.package, self.python, self.elsewhere = package, python, elsewhere

    def run(self, *arguments: str | Path) -> str:
        """Runs detect.py and returns its output; RuntimeError when it fails."""
        command = [self.python, "-I", "-B", self.package / "detect.py", *arguments]
        return _run(command, cwd=self.elsewhere)

    def picture_parity(
        self,
        model: str,
        image: np.ndarray,
        expected: Detections,
        category_ids: Sequence[int],
    ) -> dict[str, Any]:
        """How the boxes in a picture compare with what the project finds.

        Args:
            model: name of the .onnx file in the package.
            image: uint8 RGB (H, W, 3).

        Raises:
            RuntimeError: they are others, or detect.py fails.
        """
        import cv2

        picture, output = self.elsewhere / "image.png", self.elsewhere / f"picture_{model}"
        picture.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
        asked = ("--input", picture, "--output", output, "--model", self.package / model)
        self.run(*asked, "--confidence", "0", "--device", "cpu")
        report = json.loads((output / "detections.json").read_text(encoding="utf-8"))
        boxes = report["images"][0]["detections"]
        actual = Detections(
            np.asarray([box["box_xyxy"] for box in boxes], np.float32).reshape(-1, 4),
            np.asarray([box["score"] for box in boxes], np.float32),
            np.asarray([category_ids.index(box["category_id"]) + 1 for box in boxes], np.int64),
        )
        parity = compare_detections([expected], [actual])
        matched = parity["matched"] or 0.0
        if matched < MIN_MATCHED:
            what = f"detect.py with {model} agrees on {matched:.2f} of the boxes"
            raise RuntimeError(f"{what}, {MIN_MATCHED} needed")
        return parity

    def tracks(self, model: str, image: np.ndarray) -> int:
        """Tracks the objects of an image that moves through a short video, in the package and with
        phase 3's own script, and returns how many there are.

        Raises:
            RuntimeError: tracks or boxes differ, or one of the two fails.
        """
        clip = self.elsewhere / "clip.mp4"
        write_clip(clip, image)
        options: list[str | Path] = [
            *("--input", clip, "--device", "cpu", "--confidence", str(CLIP_CONFIDENCE)),
            *("--batch-size", str(CLIP_BATCH_SIZE), "--quiet", "--output"),
        ]
        ours, theirs = (self.elsewhere / f"{who}_{model}.mp4" for who in ("project", "package"))
        script = paths.ROOT / "phase3_tracking" / "video_detector.py"
        project: list[str | Path] = [sys.executable, script, "--model-path", self.package / model]
        with ThreadPoolExecutor() as both:  # of each, most is the start of Python
            project_done = both.submit(_run, [*project, *options, ours], cwd=self.elsewhere)
            self.run("--model", self.package / model, *options, theirs)
            project_done.result()
        expected, actual = (read_tracks(file.with_suffix(".mot.txt")) for file in (ours, theirs))
        if not same_tracks(expected, actual):
            what = f"detect.py with {model} finds other tracks in a video than video_detector.py"
            raise RuntimeError(f"{what} ({len(actual)} boxes, not {len(expected)})")
        if not len(expected):
            log.warning("Nothing is tracked in the trial's video: of %s no tracks compare", model)
        return len(np.unique(expected[:, 1]))


def image_for(images: Sequence[np.ndarray], detect: Predictor) -> np.ndarray:
    """The first image with something to compare and track; without one the first, with a warning.

    Args:
        images: uint8 RGB (H, W, 3).
    """
    image = first_with_boxes(images, detect, CLIP_CONFIDENCE)
    if image is None:
        log.warning("No val image has boxes: the trial of the package can compare none")
    return images[0] if image is None else image


@contextmanager
def unpacked(archive: Path, python: Path) -> Iterator[Trial]:
    """Unpacks the archive into a folder that vanishes afterwards, to be run by `python`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder / "unpacked")
        (package,) = (folder / "unpacked").iterdir()
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        yield Trial(package, python, elsewhere)


def interpreter(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A Python with the package's requirements only, made in a folder that is absent; the running
    one where that cannot be made.

    Returns:
        the interpreter, and for package_info.json whether it is `clean`, and the `reason` if not.
    """
    try:
        names = clean_environment.requirement_names(package_files.REQUIREMENTS)
        return clean_environment.make(folder, names), {"clean": True, "reason": None}
    except (ImportError, OSError) as error:  # a package that is not installed is an ImportError
        reason = " ".join(str(error).split())
        log.warning("The package is run in this environment, not in a clean one (%s)", reason)
        return Path(sys.executable), {"clean": False, "reason": reason}


def _run(command: Sequence[str | Path], cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        name = next(Path(part).name for part in command if str(part).endswith(".py"))
        raise RuntimeError(f"{name}: {done.stderr.strip()[-500:]}")
    return done.stdout


def write_clip(path: Path, image: np.ndarray) -> None:
    """A short video in which a uint8 RGB image (H, W, 3) moves to the right."""
    height, width = image.shape[:2]
    with VideoWriter(path, width, height, Fraction(10)) as writer:
        for index in range(CLIP_FRAMES):
            writer.write(np.roll(image[..., ::-1], CLIP_STEP_PX * index, axis=1))


def read_tracks(path: Path) -> np.ndarray:
    """(N, 9) [frame, id, left, top, width, height, confidence, class, 1] in pixels."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [[float(value) for value in line.split(",")] for line in lines]
    return np.asarray(rows, float) if rows else np.empty((0, 9))


def same_tracks(expected: np.ndarray, actual: np.ndarray) -> bool:
    """The same ids and classes in the same frames, with boxes as equal as rounding lets them be."""
    return (
        expected.shape == actual.shape
        and np.array_equal(expected[:, (0, 1, 7)], actual[:, (0, 1, 7)])
        and np.allclose(expected[:, 2:6], actual[:, 2:6], rtol=0, atol=BOX_TOLERANCE_PX)
    )
