"""Small videos made on the spot: a bright square that walks over a dark background."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from common.video import VideoWriter

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
