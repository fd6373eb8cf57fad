"""Where the lines of a chart run, and pictures and video frames as data URIs."""

import base64
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.reporting.blocks import Lines, Scatter

if TYPE_CHECKING:
    import numpy as np

# Okabe and Ito (2008): told apart with every kind of colour vision; dashes differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 4", "1 2", "6 2 1 2")
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42
STEPS, MAX_X_TICKS = 4, 10
LEAST_SPAN = 0.02  # of y in a scatter chart: what a speed-up may cost in mAP
STRIP_FRAMES, STRIP_WIDTH, PICTURE_WIDTH, JPEG_QUALITY = 6, 480, 1400, 82


def nice_step(largest: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, so that at most STEPS of them pass `largest`."""
    rough = max(largest, 1e-9) / STEPS
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
class Dot:
    """One point of a scatter chart, with where its number stands."""

    name: str
    number: int
    x: float
    y: float
    number_y: float
    is_valid: bool


@dataclass(frozen=True)
class Plot:
    """What the template draws as SVG: (position, label) of the ticks, the curves and the dots."""

    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    curves: tuple[Curve, ...]
    dots: tuple[Dot, ...] = ()
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


@dataclass(frozen=True)
class Scale:
    """From `low`, in `steps` steps of `step`."""

    low: float
    step: float
    steps: int

    @property
    def ticks(self) -> tuple[float, ...]:
        return tuple(self.low + i * self.step for i in range(self.steps + 1))

    def share(self, value: float) -> float:
        return (value - self.low) / (self.step * self.steps)


def scale_from_zero(largest: float) -> Scale:
    step = nice_step(largest)
    return Scale(0.0, step, max(1, math.ceil(largest / step - 1e-9)))


def scale_around(values: Sequence[float]) -> Scale:
    """Round numbers around values of 0 or more, no closer than LEAST_SPAN, so that what differs
    by almost nothing looks like it."""
    low, high = min(values), max(values)
    room = max(0.0, LEAST_SPAN - (high - low)) / 2
    low, high = max(0.0, low - room), high + room
    step = nice_step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, step, max(1, last - first))


def _x_at(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _y_at(share: float) -> float:
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def plot(chart: Lines) -> Plot:
    """Places a chart: y from 0 to a round number."""
    xs = sorted({x for _, points in chart.series for x, _ in points})
    vertical = scale_from_zero(
        chart.y_max or max(y for _, points in chart.series for _, y in points)
    )
    ticks: Sequence[float]
    if chart.is_scale:
        horizontal = scale_from_zero(xs[-1])
        ticks = horizontal.ticks
    else:
        ticks = xs[:: math.ceil(len(xs) / MAX_X_TICKS)]

    def x_at(x: float) -> float:
        if chart.is_scale:
            return _x_at(horizontal.share(x))
        return _x_at(xs.index(x) / (len(xs) - 1) if len(xs) > 1 else 0.5)

    def y_at(y: float) -> float:
        return _y_at(vertical.share(y))

    return Plot(
        x_ticks=tuple((x_at(x), f"{x:g}") for x in ticks),
        y_ticks=tuple((y_at(y), f"{y:g}") for y in vertical.ticks),
        curves=tuple(
            Curve(
                name,
                COLORS[index % len(COLORS)],
                DASHES[(index + index // len(COLORS)) % len(DASHES)],  # no pair comes twice
                tuple((x_at(x), y_at(y)) for x, y in points),
            )
            for index, (name, points) in enumerate(chart.series)
        ),
    )


def scatter(chart: Scatter) -> Plot:
    """Places a chart: x from 0, y around the values, numbers by turns above and below a point."""
    ordered = sorted(chart.points, key=lambda point: point.x)
    horizontal = scale_from_zero(ordered[-1].x)
    vertical = scale_around([point.y for point in ordered])

    def place(x: float, y: float) -> tuple[float, float]:
        return _x_at(horizontal.share(x)), _y_at(vertical.share(y))

    dots = []
    for number, point in enumerate(ordered, start=1):
        x, y = place(point.x, point.y)
        number_y = round(y - 9 if number % 2 else y + 19, 1)
        dots.append(Dot(point.label, number, x, y, number_y, point.is_valid))
    front = pareto_front([(point.x, point.y) for point in ordered if point.is_valid])
    steps = [corner for a, b in itertools.pairwise(front) for corner in (a, (a[0], b[1]))]
    line = tuple(place(x, y) for x, y in [*steps, *front[-1:]])
    return Plot(
        x_ticks=tuple((_x_at(horizontal.share(x)), f"{x:g}") for x in horizontal.ticks),
        y_ticks=tuple((_y_at(vertical.share(y)), f"{y:.4g}") for y in vertical.ticks),
        curves=(Curve("", "#777777", "", line),),
        dots=tuple(dots),
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (speed, accuracy) that no other is at least as good as in both, slowest first."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


PLACES: dict[str, Callable[[Any], Plot]] = {"lines": plot, "scatter": scatter}  # by block.kind


def tint(shade: float) -> str:
    """The background of a cell, pale enough for black words: blue the better, orange the worse."""
    red, green, blue = (0, 114, 178) if shade > 0 else (213, 94, 0)
    return f"rgba({red},{green},{blue},{0.08 + 0.42 * min(1.0, abs(shade)):.2f})"


# --- pictures ---------------------------------------------------------------------------------


def picture(path: Path) -> str | None:
    """The picture as a JPEG data URI at most PICTURE_WIDTH pixels wide; None when it is not there
    or cannot be read."""
    import cv2

    image = cv2.imread(str(path)) if path.is_file() else None  # which it would tell on stderr
    return None if image is None else _data_uri(image, PICTURE_WIDTH)


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
