"""Counts which tracks cross a line, and in which direction.

What crosses is the *anchor* of a track, the bottom centre of its box: where an object touches the
ground. Directions are those of somebody who walks along the line from its first point to its
second: `left_to_right` is a crossing from his left hand to his right, as seen in the picture. For a
line drawn from left to right, as 100,400,900,400, left is up, so what moves down the picture
crosses left_to_right; for one drawn upwards, left is the left of the picture.

A box jitters. A track therefore has changed sides only once it is further from the line than
`margin`; a crossing is counted then, once, whatever it did on the line before. A track first seen
within the margin belongs to neither side until it leaves the margin. Where frames are missing, the
way between two sightings is taken as straight. Passing by beyond the ends of the line changes the
side too, but is not counted.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phase3_tracking.counting.regions import Point, Region

LEFT_TO_RIGHT, RIGHT_TO_LEFT = "left_to_right", "right_to_left"
DIRECTIONS = (LEFT_TO_RIGHT, RIGHT_TO_LEFT)


@dataclass(slots=True)
class _Walker:
    """What is remembered of a track.

    Attributes:
        distance: signed, of the last anchor to the endless line; negative on the left.
        along: where the foot of the last anchor lies, 0 at the first point and 1 at the second.
        side: -1 left, 1 right, 0 not known yet: the last side further away than the margin.
        passed: passages through the line itself since then, to the right minus to the left.
    """

    distance: float
    along: float
    side: int = 0
    passed: int = 0


class LineCounter:
    """Counts the crossings of one line.

    Args:
        line: in pixels.
        margin: pixels on both sides in which a track has not changed sides yet.

    Attributes:
        counts: (direction, class) -> crossings.
    """

    def __init__(self, line: Region, margin: float):
        self.line, self.margin = line, margin
        self.counts: Counter[tuple[str, str]] = Counter()
        (self._x, self._y), (x2, y2) = line.points
        self._length = math.hypot(x2 - self._x, y2 - self._y)
        self._dx, self._dy = (x2 - self._x) / self._length, (y2 - self._y) / self._length
        self._walkers: dict[int, _Walker] = {}

    def update(
        self, track_ids: Sequence[int], class_names: Sequence[str], anchors: Sequence[Point]
    ) -> list[tuple[int, str, str]]:
        """(track id, class, direction) of the crossings this frame has completed.

        Args:
            track_ids, class_names, anchors: of the tracks seen in this frame.
        """
        crossings = []
        for track_id, name, anchor in zip(track_ids, class_names, anchors, strict=True):
            direction = self._move(track_id, anchor)
            if direction:
                self.counts[direction, name] += 1
                crossings.append((track_id, name, direction))
        return crossings

    def total(self, direction: str) -> int:
        """Crossings in one of DIRECTIONS, of all classes."""
        return sum(count for (way, _), count in self.counts.items() if way == direction)

    def _move(self, track_id: int, anchor: Point) -> str | None:
        """The direction of the crossing that a track completes by moving to `anchor`, if any."""
        x, y = anchor[0] - self._x, anchor[1] - self._y
        distance = self._dx * y - self._dy * x
        along = (self._dx * x + self._dy * y) / self._length
        walker = self._walkers.get(track_id)
        if walker is None:
            walker = self._walkers[track_id] = _Walker(distance, along)
        walker.passed += _passage(walker, distance, along)
        walker.distance, walker.along = distance, along
        if abs(distance) <= self.margin:
            return None
        side = 1 if distance > 0 else -1
        was_on, passed = walker.side, walker.passed
        walker.side, walker.passed = side, 0
        if was_on in (0, side) or passed * side <= 0:
            return None
        return LEFT_TO_RIGHT if side > 0 else RIGHT_TO_LEFT

    def summary(self) -> dict[str, Any]:
        """`{name, points, left_to_right: {total, by_class}, right_to_left: {...}, net}`, where net
        is left_to_right minus right_to_left."""
        by_direction: dict[str, Any] = {}
        for direction in DIRECTIONS:
            by_class = {name: n for (way, name), n in self.counts.items() if way == direction}
            by_direction[direction] = {
                "total": self.total(direction),
                "by_class": dict(sorted(by_class.items())),
            }
        return {
            "name": self.line.name,
            "points": [list(point) for point in self.line.points],
            **by_direction,
            "net": self.total(LEFT_TO_RIGHT) - self.total(RIGHT_TO_LEFT),
        }


def _passage(walker: _Walker, distance: float, along: float) -> int:
    """1 if the straight way from the last anchor passes the line to the right, -1 to the left.

    A point on the line counts as right of it, so that touching it is either no passage or two.
    """
    if (walker.distance >= 0) == (distance >= 0):
        return 0
    share = walker.distance / (walker.distance - distance)
    where = walker.along + share * (along - walker.along)
    if not 0 <= where <= 1:
        return 0
    return 1 if distance >= 0 else -1
