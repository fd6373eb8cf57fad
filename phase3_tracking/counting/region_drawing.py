"""Drawing lines and zones with their counts on video frames.

Tracks are in colour, regions in white with a black edge, which shows on any picture. A line carries
an arrow that points from its left to its right (see line_crossing.py), so `L>R 5` counts what moved
along the arrow.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from phase3_tracking.counting.line_crossing import LEFT_TO_RIGHT, RIGHT_TO_LEFT, LineCounter
from phase3_tracking.counting.regions import Point
from phase3_tracking.counting.zones import ENTER, EXIT, ZoneCounter
from phase3_tracking.results.drawing import (
    BLACK,
    FONT,
    FONT_SCALE,
    MIN_FONT_SCALE,
    PADDING,
    REFERENCE_HEIGHT,
    WHITE,
    Place,
    drawable,
    overlap,
)

FILL = 0.15  # share of white in a zone
ARROW, ARROW_MIN = 0.04, 14  # length: of the frame's height, and pixels
SHIFT = 4  # OpenCV takes coordinates in 1/16 pixel
MAX_LABEL = 40  # characters of a name
STATUS_EXAMPLE, SPEED_EXAMPLE = "frame 0000/0000  00.0 FPS  00 tracks", "FPS: 000.0"


def draw_regions(
    frame_bgr: np.ndarray, lines: Sequence[LineCounter], zones: Sequence[ZoneCounter]
) -> list[Place]:
    """Draws onto the frame itself, before the tracks, which are then not tinted by a zone.

    Args:
        frame_bgr: uint8 (H, W, 3).
        lines, zones: those of a RegionCounter, with their counts so far.

    Returns:
        Where the counts stand: what the labels of tracks are to keep off.
    """
    for zone in zones:
        _draw_zone(frame_bgr, zone)
    for line in lines:
        _draw_line(frame_bgr, line)
    reserved = _reserved(frame_bgr)
    taken = list(reserved)
    for zone in zones:
        _label(frame_bgr, f"{_short(zone.zone.name)}: {zone_text(zone)}", zone.zone.points, taken)
    for line in lines:
        counts = f"L>R {line.total(LEFT_TO_RIGHT)}  R>L {line.total(RIGHT_TO_LEFT)}"
        _label(frame_bgr, f"{_short(line.line.name)}: {counts}", line.line.points, taken)
    return taken[len(reserved) :]


def zone_text(zone: ZoneCounter) -> str:
    """`2 inside, in 3 + 1 appeared, out 1 + 1 vanished`: as many came as went or are there. What
    did not occur is left out."""
    appeared = f" + {zone.appeared_inside} appeared" if zone.appeared_inside else ""
    vanished = f" + {zone.vanished_inside} vanished" if zone.vanished_inside else ""
    came, went = zone.total(ENTER), zone.total(EXIT)
    return f"{zone.occupancy} inside, in {came}{appeared}, out {went}{vanished}"


def _draw_zone(frame_bgr: np.ndarray, zone: ZoneCounter) -> None:
    polygon = _fixed(zone.zone.points)
    x1, y1 = np.floor(np.min(zone.zone.points, axis=0)).astype(int)
    x2, y2 = np.ceil(np.max(zone.zone.points, axis=0)).astype(int) + 1
    part = frame_bgr[y1:y2, x1:x2]
    if part.size:
        filled = part.copy()
        offset = (-int(x1) << SHIFT, -int(y1) << SHIFT)
        cv2.fillPoly(filled, [polygon + offset], WHITE, cv2.LINE_AA, SHIFT)
        cv2.addWeighted(filled, FILL, part, 1 - FILL, 0, dst=part)
    _stroke(frame_bgr, polygon, closed=True)


def _draw_line(frame_bgr: np.ndarray, line: LineCounter) -> None:
    first, second = np.array(line.line.points)
    along = (second - first) / np.hypot(*(second - first))
    to_right = np.array([-along[1], along[0]])
    length = max(ARROW_MIN, ARROW * frame_bgr.shape[0])
    middle = (first + second) / 2
    tip = middle + length * to_right
    barbs = [tip - length / 3 * (to_right + side * along) for side in (-1, 1)]
    _stroke(frame_bgr, _fixed([first, second]), closed=False)
    _stroke(frame_bgr, _fixed([middle, tip]), closed=False)
    _stroke(frame_bgr, _fixed([barbs[0], tip, barbs[1]]), closed=False)


def _short(name: str) -> str:
    return drawable(name)[:MAX_LABEL]


def _fixed(points: Sequence[Point] | Sequence[np.ndarray]) -> np.ndarray:
    return np.rint(np.array(points) * (1 << SHIFT)).astype(np.int32)


def _scale(frame_bgr: np.ndarray) -> float:
    return frame_bgr.shape[0] / REFERENCE_HEIGHT


def _stroke(frame_bgr: np.ndarray, points: np.ndarray, *, closed: bool) -> None:
    """A white line with a black edge on both sides."""
    width = max(1, round(2 * _scale(frame_bgr)))
    edge = 2 * max(1, round(_scale(frame_bgr)))
    cv2.polylines(frame_bgr, [points], closed, BLACK, width + edge, cv2.LINE_AA, SHIFT)
    cv2.polylines(frame_bgr, [points], closed, WHITE, width, cv2.LINE_AA, SHIFT)


def _text(frame_bgr: np.ndarray) -> tuple[float, int]:
    """Scale and stroke width of the font, as TrackDrawer has them."""
    scale = _scale(frame_bgr)
    return max(MIN_FONT_SCALE, FONT_SCALE * scale), max(1, round(1.3 * scale))


def _text_size(frame_bgr: np.ndarray, text: str) -> tuple[int, int, int]:
    """Width and height of the label with this text, and how far its baseline is from the top."""
    (width, ascent), descent = cv2.getTextSize(text, FONT, *_text(frame_bgr))
    return width + 2 * PADDING, ascent + descent + 2 * PADDING, ascent + PADDING


def _reserved(frame_bgr: np.ndarray) -> list[Place]:
    """What to keep free for TrackDrawer's status line and speed."""
    width, height, _ = _text_size(frame_bgr, STATUS_EXAMPLE)
    speed_width, _, _ = _text_size(frame_bgr, SPEED_EXAMPLE)
    right = frame_bgr.shape[1]
    return [(0, 0, width, height), (right - speed_width, 0, right, height)]


def _label(frame_bgr: np.ndarray, text: str, corners: Sequence[Point], taken: list[Place]) -> None:
    """White text on black at a corner of the region: inside the frame, and off the others if there
    is room. Its place is added to `taken`."""
    width, height, baseline = _text_size(frame_bgr, text)
    gap = 2 * max(1, round(2 * _scale(frame_bgr)))
    right, bottom = max(0, frame_bgr.shape[1] - width), max(0, frame_bgr.shape[0] - height)
    places = []
    for x, y in sorted(corners, key=lambda point: (point[1], point[0])):
        left = round(min(max(0, x), right))
        for top in (round(y - height - gap), round(y + gap)):
            clipped = min(max(0, top), bottom)
            places.append((left, clipped, left + width, clipped + height))
    free = [place for place in places if not any(overlap(place, other) for other in taken)]
    place = next(iter(free or places))
    taken.append(place)
    cv2.rectangle(frame_bgr, place[:2], place[2:], BLACK, cv2.FILLED)
    origin = (place[0] + PADDING, place[1] + baseline)
    font_scale, weight = _text(frame_bgr)
    cv2.putText(frame_bgr, text, origin, FONT, font_scale, WHITE, weight, cv2.LINE_AA)
