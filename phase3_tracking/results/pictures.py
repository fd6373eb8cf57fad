"""What heat map and contact sheet have in common: sizes that fit, legible text, encoding."""

from typing import TypedDict

import cv2
import numpy as np

from phase3_tracking.results.drawing import BLACK, FONT, PADDING, WHITE, Color

TEXT_SCALE = 0.6  # of the font, in pictures that are looked at whole


class TextStyle(TypedDict):
    """The keywords of `put_text`."""

    color: Color
    background: Color | None
    scale: float


def shrunk(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """A copy that fits into width x height, in its own proportions and never larger than it was."""
    rows, columns = image.shape[:2]
    scale = min(1.0, width / columns, height / rows)
    if scale == 1:
        return image.copy()
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def put_text(
    image: np.ndarray,
    text: str,
    left: int,
    top: int,
    *,
    color: Color = WHITE,
    background: Color | None = BLACK,
    scale: float = TEXT_SCALE,
) -> None:
    """Draws text with its top left corner at a point, on a filled rectangle unless told not to."""
    (width, ascent), descent = cv2.getTextSize(text, FONT, scale, _stroke(scale))
    if background is not None:
        corner = (left + width + 2 * PADDING, top + ascent + descent + 2 * PADDING)
        cv2.rectangle(image, (left, top), corner, background, cv2.FILLED)
    origin = (left + PADDING, top + PADDING + ascent)
    cv2.putText(image, text, origin, FONT, scale, color, _stroke(scale), cv2.LINE_AA)


def text_size(text: str, scale: float = TEXT_SCALE) -> tuple[int, int]:
    """Width and height in pixels that `put_text` covers."""
    (width, ascent), descent = cv2.getTextSize(text, FONT, scale, _stroke(scale))
    return width + 2 * PADDING, ascent + descent + 2 * PADDING


def _stroke(scale: float) -> int:
    return max(1, round(scale / TEXT_SCALE))


def encoded(suffix: str, image: np.ndarray, options: tuple[int, ...] = ()) -> bytes:
    """The file of a uint8 BGR image in the format of the suffix.

    Args:
        options: OpenCV's pairs of encoder flag and value.
    """
    return cv2.imencode(suffix, image, options)[1].tobytes()
