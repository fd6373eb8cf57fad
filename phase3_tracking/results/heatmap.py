"""A picture of where objects were, and for how long.

Every object adds the time it was seen to the place where its box touches the ground. The value at
a place is the time of the objects that stood there, and of those nearby with a weight that falls
like a Gaussian, 1 at the place itself: an object that stands still for ten seconds makes ten
seconds there.
"""

import math

import cv2
import numpy as np

from phase3_tracking.counting.region_events import anchors_of
from phase3_tracking.object_tracker import LONGEST_PAUSE_S
from phase3_tracking.results.drawing import BLACK
from phase3_tracking.results.pictures import (
    TEXT_SCALE,
    TextStyle,
    encoded,
    put_text,
    shrunk,
    text_size,
)

CELLS = 160  # along the longer side of the frame
SIGMA_CELLS = 2.5  # of the Gaussian: 1.6 % of the longer side
PICTURE_SIZE = (1920, 1080)  # pixels; larger frames are shrunk to fit
SMALLEST_WIDTH = 640  # pixels; narrower frames are enlarged, or get margins, to show the scale
COLOR_MAP = cv2.COLORMAP_INFERNO  # perceptually uniform, and distinct for the colour-blind
GAMMA = 0.5  # a place shows the square root of its time: paths stay visible beside standing objects
OPACITY, FULL_OPACITY_FROM = 0.85, 0.15  # below this share of the scale colours fade out
DIMMED = 0.7  # brightness of the grey frame below the colours
TICKS = 5
BAR_HEIGHT, MARGIN = 14, 12  # pixels, in a picture of TEXT_WIDTH; more in a wider one
TEXT_WIDTH = 960
PAPER = 255
UNIT = "seconds with an object, on a square-root scale"


class Heatmap:
    """Collects where objects were.

    Args:
        width, height: of the frames, in pixels.
        frame_s: seconds that a frame lasts.
    """

    def __init__(self, width: int, height: int, frame_s: float):
        self._width, self._height, self._frame_s = width, height, frame_s
        self._cell = max(width, height) / CELLS  # pixels
        rows, columns = math.ceil(height / self._cell), math.ceil(width / self._cell)
        self._seconds = np.zeros((max(1, rows), max(1, columns)))
        self._last_s: float | None = None
        self._background: np.ndarray | None = None

    def update(self, time_s: float, tracks: np.ndarray, frame_bgr: np.ndarray) -> None:
        """Adds one frame.

        Args:
            time_s: of the frame; objects count for the time since the last one, but not for a
                pause, in which nobody knows where they were.
            tracks: (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence] in pixels.
            frame_bgr: uint8 (height, width, 3) before anything is drawn on it; the first becomes
                the background.
        """
        if self._background is None:
            self._background = shrunk(frame_bgr, *PICTURE_SIZE)
        passed_s = self._frame_s if self._last_s is None else time_s - self._last_s
        passed_s = min(passed_s, max(LONGEST_PAUSE_S, self._frame_s))
        self._last_s = time_s
        rows, columns = self._seconds.shape
        cells = np.floor(anchors_of(tracks) / self._cell)
        cells = np.clip(cells, 0, (columns - 1, rows - 1)).astype(np.int64)
        np.add.at(self._seconds, (cells[:, 1], cells[:, 0]), passed_s)

    def seconds(self) -> np.ndarray:
        """(rows, columns) float64: the value at every cell of the grid."""
        radius = math.ceil(4 * SIGMA_CELLS)
        offsets = np.arange(-radius, radius + 1)
        kernel = np.exp(-0.5 * (offsets / SIGMA_CELLS) ** 2)
        return cv2.sepFilter2D(
            self._seconds, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_CONSTANT
        )

    def picture(self) -> np.ndarray:
        """uint8 BGR: the first frame in grey, the colours over it, the scale below.

        Raises:
            ValueError: there was no frame.
        """
        if self._background is None:
            raise ValueError("no frame was given")
        frame = _enlarged(self._background)
        seconds = self.seconds()
        top = max(float(seconds.max()), self._frame_s)
        picture = _blended(frame, seconds / top)
        missing = max(0, SMALLEST_WIDTH - frame.shape[1])
        sides = ((0, 0), (missing // 2, missing - missing // 2), (0, 0))
        picture = np.pad(picture, sides, constant_values=PAPER)
        return np.vstack([picture, _scale_panel(picture.shape[1], top)])

    def encoded(self) -> bytes:
        """The picture as a PNG file."""
        return encoded(".png", self.picture())


def _enlarged(frame_bgr: np.ndarray) -> np.ndarray:
    """A small frame as wide as SMALLEST_WIDTH, or as high as PICTURE_SIZE allows."""
    height, width = frame_bgr.shape[:2]
    scale = min(SMALLEST_WIDTH / width, PICTURE_SIZE[1] / height)
    if scale <= 1:
        return frame_bgr
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return cv2.resize(frame_bgr, size, interpolation=cv2.INTER_LINEAR)


def _blended(frame_bgr: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Colours of values in [0, 1] over a frame; 0 leaves the frame, in grey, as it is."""
    height, width = frame_bgr.shape[:2]
    shown = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    shown = np.clip(shown, 0, 1) ** GAMMA
    colors = cv2.applyColorMap(np.rint(255 * shown).astype(np.uint8), COLOR_MAP)
    grey = cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2GRAY)[..., None].repeat(3, axis=2)
    opacity = OPACITY * np.minimum(1, shown / FULL_OPACITY_FROM)[..., None]
    return np.rint(opacity * colors + (1 - opacity) * (DIMMED * grey)).astype(np.uint8)


def _scale_panel(width: int, top: float) -> np.ndarray:
    """The colour bar from 0 to `top` seconds, with its numbers and unit."""
    scale = max(1.0, width / TEXT_WIDTH)
    margin, bar_height, tick = round(scale * MARGIN), round(scale * BAR_HEIGHT), round(4 * scale)
    style: TextStyle = {"color": BLACK, "background": None, "scale": scale * TEXT_SCALE}
    text_height = text_size("0", style["scale"])[1]
    panel = np.full((3 * margin + bar_height + 2 * text_height, width, 3), PAPER, np.uint8)
    put_text(panel, UNIT, 2 * margin, margin // 2, **style)
    bar_top, bar_width = margin + text_height, width - 4 * margin
    foot = bar_top + bar_height
    levels = np.linspace(0, 255, bar_width).round().astype(np.uint8)[None].repeat(bar_height, 0)
    panel[bar_top:foot, 2 * margin : 2 * margin + bar_width] = cv2.applyColorMap(levels, COLOR_MAP)
    for value in _tick_values(top):
        x = 2 * margin + round((value / top) ** GAMMA * (bar_width - 1))
        cv2.line(panel, (x, foot), (x, foot + tick), BLACK, max(1, round(scale)))
        text = f"{value:.0f}" if value >= 1 else f"{value:g}"
        text_width = text_size(text, style["scale"])[0]
        left = min(max(0, x - text_width // 2), width - text_width)
        put_text(panel, text, left, foot + tick, **style)
    return panel


def _tick_values(top: float) -> list[float]:
    """Round numbers, about evenly spread over the bar: for 45 seconds 0, 2, 10, 20 and 40."""
    values = {0.0}
    for share in np.linspace(0, 1, TICKS)[1:]:
        value = top * share ** (1 / GAMMA)
        unit = 10.0 ** math.floor(math.log10(value))
        values.add(round(math.floor(value / unit) * unit, 12))
    return sorted(values)
