"""Where the lines of a chart run, and pictures and video frames as data URIs."""

import base64
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.reporting.blocks import Lines

if TYPE_CHECKING:
    import numpy as np

# Okabe and Ito (2008): told apart with every kind of colour vision; dashes differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 4", "1 2", "6 2 1 2")
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42
MAX_X_TICKS = 10
STRIP_FRAMES, STRIP_WIDTH, PICTURE_WIDTH, JPEG_QUALITY = 6, 480, 1400, 82


def nice_step(largest: float, steps: int = 4) -> float:
    """1, 2, 2.5 or 5 times a power of ten, so that at most `steps` of them pass `largest`."""
    rough = max(largest, 1e-9) / steps
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


@dataclass(frozen=True)
class Curve:
    """One series in the coordinates of the chart."""

    name: str
    color: str
    dashes: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Plot:
    """What the template draws as SVG: (position, label) of the ticks, and the curves."""

    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    curves: tuple[Curve, ...]
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def plot(chart: Lines) -> Plot:
    """Places a chart: values of x at equal distances, y from 0 to a round number."""
    xs = sorted({x for _, points in chart.series for x, _ in points})
    largest = chart.y_max or max(y for _, points in chart.series for _, y in points)
    step = nice_step(largest)
    steps = math.ceil(largest / step - 1e-9)

    def x_at(x: float) -> float:
        share = xs.index(x) / (len(xs) - 1) if len(xs) > 1 else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y_at(y: float) -> float:
        return round(HEIGHT - BOTTOM - y / (step * steps) * (HEIGHT - TOP - BOTTOM), 1)

    every = math.ceil(len(xs) / MAX_X_TICKS)
    return Plot(
        x_ticks=tuple((x_at(x), f"{x:g}") for x in xs[::every]),
        y_ticks=tuple((y_at(i * step), f"{i * step:g}") for i in range(steps + 1)),
        curves=tuple(
            Curve(
                name,
                COLORS[index % len(COLORS)],
                DASHES[index % len(DASHES)],
                tuple((x_at(x), y_at(y)) for x, y in points),
            )
            for index, (name, points) in enumerate(chart.series)
        ),
    )


# --- pictures ---------------------------------------------------------------------------------


def picture(path: Path, max_width: int = PICTURE_WIDTH) -> str | None:
    """The picture as a JPEG data URI at most `max_width` pixels wide; None when it is not there or
    cannot be read."""
    import cv2

    image = cv2.imread(str(path)) if path.is_file() else None  # which it would tell on stderr
    return None if image is None else _data_uri(image, max_width)


def video_strip(path: Path) -> list[str]:
    """Frames at equal distances through a video, as data URIs; empty when it cannot be read."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        frames = []
        for part in range(STRIP_FRAMES if count > 0 else 0):
            capture.set(cv2.CAP_PROP_POS_FRAMES, int((part + 0.5) * count / STRIP_FRAMES))
            good, frame = capture.read()
            if good:
                frames.append(_data_uri(frame, STRIP_WIDTH))
    finally:
        capture.release()
    return frames


def _data_uri(image: "np.ndarray", max_width: int) -> str:
    """`image` uint8 BGR (H, W, 3)."""
    import cv2

    height, width = image.shape[:2]
    if width > max_width:
        size = (max_width, max(1, round(height * max_width / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode("ascii")
