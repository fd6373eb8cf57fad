"""Small videos made on the spot, a bright square that walks over a dark background, and a detector
that finds it."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from common.models import Detections
from common.video import VideoWriter
from phase3_tracking.backends import Backend

WIDTH, HEIGHT, SIDE = 96, 64, 24


def square_left(index: int) -> int:
    """x of the square's left side in frame `index`, from 0."""
    return 2 * index


def frame(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    image = np.full((height, width, 3), 40, np.uint8)
    image[20 : 20 + SIDE, square_left(index) : square_left(index) + SIDE] = (30, 60, 220)
    return image


def write_video(
    path: Path,
    frames: int = 12,
    *,
    fps: Fraction = Fraction(10),
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Path:
    with VideoWriter(path, width, height, fps) as writer:
        for index in range(frames):
            writer.write(frame(index, width, height))
    return path


def write_detections(path: Path, frames: int = 12, *, label: int = 3) -> Path:
    """A MOT detection file with the square in every frame."""
    path.write_text(
        "".join(
            f"{index + 1},-1,{square_left(index)},20,{SIDE},{SIDE},0.9,{label},1\n"
            for index in range(frames)
        )
    )
    return path


class RedSquareModel:
    """Finds the red square by its colour, so it only works on images that really are RGB.

    Args:
        told: called with the number of every frame, from 0, before it is looked at.
        file: what the model claims to be made of.
    """

    class_names, category_ids = ("person", "car"), (1, 18)

    def __init__(
        self, told: Callable[[int], object] = lambda number: None, file: Path | None = None
    ):
        self.batch_sizes: list[int] = []
        self.frames: list[int] = []
        self._told = told
        self.backend = Backend(self, self.class_names, self.category_ids, file=file)

    def __call__(self, images: Sequence[np.ndarray], numbers: Sequence[int]) -> list[Detections]:
        self.batch_sizes.append(len(images))
        for number in numbers:
            self.frames.append(number)
            self._told(number)
        return [self._find(image) for image in images]

    def _find(self, image: np.ndarray) -> Detections:
        rows, columns = np.nonzero((image[..., 0] > 150) & (image[..., 2] < 100))
        square = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes = np.array([square, [0, 0, 5, 5]], np.float32)
        return Detections(boxes, np.array([0.8, 0.3], np.float32), np.array([2, 1]))


def decoded(path: Path) -> list[np.ndarray]:
    """The frames of a video that browsers play, uint8 BGR."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        return [image.to_ndarray(format="bgr24") for image in container.decode(stream)]


def times_of(path: Path) -> list[Fraction]:
    """When each frame is shown, in seconds, by the container."""
    with av.open(str(path)) as container:
        return [image.pts * image.time_base for image in container.decode(video=0)]
