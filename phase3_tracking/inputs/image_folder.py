"""A folder of pictures as a video, in the natural order of their names."""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from common.cli import UserError
from common.coco import read_image
from phase3_tracking.inputs.frame_source import Picture
from phase3_tracking.inputs.source_options import FOLDER_FPS

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif",
}  # fmt: skip


class ImageFolder:
    """The Decoder of the pictures in a folder, not of those in folders below it.

    All take the size of the first readable one: others are scaled to fit into it, and the rest is
    black. What cannot be read is left out.

    Args:
        fps: pictures per second; None is FOLDER_FPS.

    Raises:
        UserError: the folder holds no picture.
    """

    live = False
    audio_path: Path | None = None

    def __init__(self, folder: Path, *, fps: Fraction | None = None):
        self.path: Path | None = Path(folder)
        self.name = str(folder)
        self.fps = fps or FOLDER_FPS
        self._files = pictures_in(self.path)
        if not self._files:
            kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
            raise UserError(self.path, "holds no picture", f"give a folder with {kinds}")
        self.frames_promised: int | None = len(self._files)
        self._size: tuple[int, int] | None = None
        self._unreadable: list[str] = []
        self._letterboxed = 0

    @property
    def notes(self) -> list[str]:
        lines = []
        if self._letterboxed and self._size:
            size = "{}x{}".format(*self._size)
            lines.append(
                f"{self._letterboxed} pictures of another size were fitted into {size}; "
                "boxes are in pixels of that size"
            )
        if self._unreadable:
            named = ", ".join(self._unreadable[:3]) + (", ..." if self._unreadable[3:] else "")
            pictures = "picture was" if len(self._unreadable) == 1 else "pictures were"
            lines.append(f"{len(self._unreadable)} unreadable {pictures} skipped ({named})")
        return lines

    def pictures(self, start_s: Fraction) -> Iterator[Picture]:
        for index, file in enumerate(self._files):
            yield Picture(index / self.fps, index, partial(self._load, file))

    def cut_short(self) -> bool:
        return False  # what cannot be read is told in the notes

    def close(self) -> None:
        """Nothing is open between two pictures."""

    def _load(self, file: Path) -> np.ndarray | None:
        try:
            image = cv2.cvtColor(read_image(file), cv2.COLOR_RGB2BGR)
        except UserError:
            self._unreadable.append(file.name)
            return None
        height, width = image.shape[:2]
        if self._size is None:
            self._size = (width, height)
        if self._size == (width, height):
            return image
        self._letterboxed += 1
        return letterbox(image, *self._size)


def pictures_in(folder: Path) -> list[Path]:
    """Files with a picture's suffix, hidden ones left out; UserError for an unreadable folder."""
    try:
        found = [
            file
            for file in folder.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ]
    except OSError as error:
        raise UserError(folder, f"cannot be read ({error.strerror})", "check it") from None
    return sorted(found, key=natural_order)


def natural_order(path: Path | str) -> list[tuple[int, int, str]]:
    """A sort key that puts frame_2 before frame_10."""
    parts = re.split(r"([0-9]+)", str(path))
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def letterbox(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scaled to fit into (height, width, 3), centred on black."""
    scale = min(width / image.shape[1], height / image.shape[0])
    inner = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    result = np.zeros((height, width, 3), np.uint8)
    result[top : top + inner[1], left : left + inner[0]] = cv2.resize(
        image, inner, interpolation=kind
    )
    return result
