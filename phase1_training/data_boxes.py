"""In which format the boxes of a file are: exporters mix up x,y,width,height with other ones.

A single box rarely tells; all of them together do, by whether they lie inside their images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.coco_format import Problem

UNIT = 1.5  # normalised coordinates lie in 0..1, some a little outside
NEARLY_ALL = 0.98  # of the boxes
LEAVING, MIN_BOXES = 0.05, 5  # a share of the boxes and a number of them that is no accident
FEW_PIXELS, ROUNDING = 3, 1  # beyond the image: what is worth an alarm, what still fits

XYWH, XYXY, CENTRE, SWAPPED = "x,y,width,height", "x1,y1,x2,y2", "cx,cy,w,h", "y,x,h,w"
READINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    XYWH: lambda boxes: boxes,
    XYXY: lambda boxes: np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]),
    CENTRE: lambda boxes: np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]]),
    SWAPPED: lambda boxes: boxes[:, [1, 0, 3, 2]],
}
HINTS = {
    CENTRE: " (centre and size)",
    SWAPPED: " (or width and height of the images are exchanged)",
}


@dataclass(frozen=True)
class BoxFormat:
    """What the four numbers of the boxes are, as far as the boxes tell.

    Attributes:
        boxes_xywh: float64 (N, 4), pixels; as written unless exactly one other format explains
            them.
        readings: the formats that explain the boxes; one only where it is certain.
        normalised: the numbers are fractions of the width and height of the image.
        leaving: boxes that leave their image by more than a few pixels when read as xywh.
        whole_objects: they do so on opposite sides, as annotations of whole objects do that reach
            beyond the picture (MOT17, CrowdHuman).
        count: boxes with positive sides, which alone are judged.
    """

    boxes_xywh: np.ndarray
    readings: tuple[str, ...]
    normalised: bool
    leaving: int
    whole_objects: bool
    count: int

    @property
    def is_xywh(self) -> bool:
        """The boxes are what COCO calls for."""
        return self.readings == (XYWH,) and not self.normalised


def sizes_wh(images: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """int64 (I, 2), width and height as annotated."""
    sizes = [(image["width"], image["height"]) for image in images]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def box_format(boxes_xywh: np.ndarray, limits_wh: np.ndarray) -> BoxFormat:
    """Judges all boxes of a file together.

    Args:
        boxes_xywh: float64 (N, 4), finite, as written.
        limits_wh: (N, 2), pixels, the image of each.
    """
    judged = (boxes_xywh[:, 2:] > 0).all(axis=1)  # the others are no boxes in any case
    count = int(judged.sum())
    if not count:
        return BoxFormat(boxes_xywh, (XYWH,), False, 0, False, 0)
    unit = (np.abs(boxes_xywh) <= UNIT).all(axis=1) & (limits_wh > UNIT).all(axis=1)
    normalised = bool(unit[judged].mean() >= NEARLY_ALL)
    pixels = boxes_xywh.copy()
    if normalised:  # what is no fraction stays, to be found as a fault of its own
        pixels[unit] *= np.hstack([limits_wh, limits_wh])[unit]
    with np.errstate(over="ignore", invalid="ignore"):  # 1e308 + 1e308
        low = (pixels[judged, :2] < -FEW_PIXELS).any(axis=1)
        end = pixels[judged, :2] + pixels[judged, 2:]
        high = (end > limits_wh[judged] + FEW_PIXELS).any(axis=1)
        leaving = int((low | high).sum())
        leaves = leaving >= max(MIN_BOXES, LEAVING * count)
        # No other format has negative numbers to offer on one side and too large ones on the other.
        whole_objects = leaves and min(low.sum(), high.sum()) >= 0.1 * leaving
        if whole_objects or not (leaves or normalised):
            readings: tuple[str, ...] = (XYWH,)
        else:
            # Where all images are square, exchanged axes fit as well as the right ones.
            candidates = (XYXY, CENTRE, SWAPPED) if leaves else (XYWH, XYXY, CENTRE)
            readings = _explaining(pixels[judged], limits_wh[judged], candidates)
        if len(readings) == 1:
            boxes_xywh = READINGS[readings[0]](pixels)
    return BoxFormat(boxes_xywh, readings, normalised, leaving, bool(whole_objects), count)


def _explaining(
    boxes: np.ndarray, limits_wh: np.ndarray, candidates: Sequence[str]
) -> tuple[str, ...]:
    """The formats in which nearly all boxes lie inside; of several those that fit as well as the
    best. Small boxes fit in a wrong format too, but for the ones at the border."""
    outside = {}
    for name in candidates:
        boxes_xywh = READINGS[name](boxes)
        start, side = boxes_xywh[:, :2], boxes_xywh[:, 2:]
        fits = (side > 0) & (start >= -ROUNDING) & (start + side <= limits_wh + ROUNDING)
        number = int((~fits.all(axis=1)).sum())
        if number <= (1 - NEARLY_ALL) * len(boxes):
            outside[name] = number
    least = min(outside.values(), default=0)
    return tuple(name for name, number in outside.items() if number < 2 * least + MIN_BOXES)


# --- in words ---------------------------------------------------------------------------------


def format_problems(found: BoxFormat) -> list[Problem]:
    """At most one finding, about the file as a whole."""
    if found.whole_objects and not found.normalised:
        message = f"{found.leaving} of {found.count} boxes leave their images, on opposite sides: "
        message += "taken for whole objects that the border cuts, and clipped"
        return [Problem("boxes leave images", "warning", message)]
    if found.is_xywh:
        return []
    remedy = "--fix converts" if len(found.readings) == 1 else "export them as pixel x,y,w,h"
    if found.normalised:
        message = "the boxes look normalised (0 to 1): multiplied by width and height "
        message += f"{_explanation(found)}. Read as pixels they are specks in a corner, nothing "
        message += f"would be learnt; {remedy}"
        return [Problem("normalised boxes", "error", message)]
    message = f"{found.leaving} of {found.count} boxes leave their images read as {XYWH}: "
    message += f"{_explanation(found)}. Wrong boxes would be taught; {remedy}"
    certain = len(found.readings) == 1
    kind = f"boxes as {found.readings[0]}" if certain else "boxes leave images"
    return [Problem(kind, "error", message)]


def _explanation(found: BoxFormat) -> str:
    """What the boxes are, or why it cannot be told."""
    if not found.readings:
        others = "; ".join((XYXY, CENTRE, SWAPPED))
        return f"they fit neither so nor as {others} (is the size of the images another one?)"
    named = [name + HINTS.get(name, "") for name in found.readings]
    return (
        f"they fit as {named[0]}" if len(named) == 1 else f"they fit as each of {'; '.join(named)}"
    )


def refusal(found: BoxFormat) -> str:
    """Why a repair would be a guess."""
    return f"its boxes cannot be converted without a guess: {_explanation(found)}"


def conversion(found: BoxFormat) -> str:
    """What a repair does to the boxes."""
    fractions = "fractions of their images as " if found.normalised else ""
    return f"{found.count} boxes were {fractions}{found.readings[0]} and are {XYWH} in pixels now"
