"""Lines and zones in a picture: how they are written on the command line and where they lie.

    --line 100,400,900,400          pixels of the frame (after --resize), x right and y down
    --line gate:0.1,0.5,0.9,0.5     the same as shares of width and height, with a name
    --zone "car park:0,0,0.5,0,0.5,1,0,1"

Coordinates that all lie between 0 and 1 are shares of the frame, others are pixels.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from common.cli import UserError

Point = tuple[float, float]

LINE_POINTS, SMALLEST_POLYGON = 2, 3
MAX_CORNERS = 100
MAX_NAME = 80  # characters


@dataclass(frozen=True)
class Region:
    """A line of two points or a zone of three or more.

    Attributes:
        name: "" until `place` numbers it.
        points: (x, y); pixels, or shares of the frame before `place`.
    """

    name: str
    points: tuple[Point, ...]


def parse_line(text: str) -> Region:
    """`[NAME:]x1,y1,x2,y2`, for argparse."""
    region = _parse(text, "x1,y1,x2,y2")
    if len(region.points) != LINE_POINTS:
        count = 2 * len(region.points)
        raise argparse.ArgumentTypeError(f"{text!r} has {count} numbers, a line x1,y1,x2,y2 has 4")
    if region.points[0] == region.points[1]:
        raise argparse.ArgumentTypeError(f"{text!r} begins and ends at the same point")
    return region


def parse_zone(text: str) -> Region:
    """`[NAME:]x1,y1,x2,y2,x3,y3,...`, for argparse."""
    region = _parse(text, "x1,y1,x2,y2,x3,y3,...")
    corners = len(region.points)
    if not SMALLEST_POLYGON <= corners <= MAX_CORNERS:
        what = f"has {corners} corners, a zone has 3 to {MAX_CORNERS}"
        raise argparse.ArgumentTypeError(f"{text!r} {what}")
    if _crosses_itself(region.points):
        what = "has sides that cross; give the corners in their order around the zone"
        raise argparse.ArgumentTypeError(f"{text!r} {what}")
    if _area(region.points) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} has no area")
    return region


def _parse(text: str, form: str) -> Region:
    name, separator, numbers = text.rpartition(":")
    name = name.strip()
    if separator and not name:
        raise argparse.ArgumentTypeError(f"{text!r} has no name before the colon")
    if len(name) > MAX_NAME:
        raise argparse.ArgumentTypeError(f"the name {name[:20]!r}... is over {MAX_NAME} characters")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        what = f"is not {form} with or without NAME: before it"
        raise argparse.ArgumentTypeError(f"{text!r} {what}") from None
    if len(values) % 2:
        raise argparse.ArgumentTypeError(f"{text!r} has {len(values)} numbers, they are pairs x,y")
    if not all(0 <= value < math.inf for value in values):  # false for NaN too
        raise argparse.ArgumentTypeError(f"{text!r} has a coordinate below 0 or not finite")
    return Region(name, tuple(zip(values[::2], values[1::2], strict=True)))


def _crosses_itself(points: Sequence[Point]) -> bool:
    """Whether two sides of the polygon cross in a point that is no corner of theirs."""
    sides = list(zip(points, [*points[1:], points[0]], strict=True))
    return any(_cross(*one, *other) for one, other in combinations(sides, 2))


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    return _turn(a, b, c) * _turn(a, b, d) < 0 and _turn(c, d, a) * _turn(c, d, b) < 0


def _turn(a: Point, b: Point, c: Point) -> float:
    """Twice the area of the triangle, negative where c lies left of the way from a to b."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _area(points: Sequence[Point]) -> float:
    origin = points[0]
    return abs(sum(_turn(origin, *pair) for pair in pairwise(points[1:]))) / 2


def place(regions: Sequence[Region], kind: str, width: int, height: int) -> list[Region]:
    """The regions in pixels of a frame, to a hundredth, each with a name.

    Args:
        kind: "line" or "zone"; those without a name are called `line 1`, `line 2`, ...

    Raises:
        UserError: a region lies outside of the frame, or a name is given twice.
    """
    placed: list[Region] = []
    for number, region in enumerate(regions, start=1):
        are_shares = all(value <= 1 for point in region.points for value in point)
        scale = (width, height) if are_shares else (1, 1)
        points = tuple((round(x * scale[0], 2), round(y * scale[1], 2)) for x, y in region.points)
        named = replace(region, name=region.name or f"{kind} {number}", points=points)
        for x, y in named.points:
            if x > width or y > height:
                what = f"({x:g}, {y:g}) lies outside of the frame of {width}x{height} pixels"
                raise UserError(f"--{kind} {named.name}", what, "correct it")
        if any(named.name == other.name for other in placed):
            raise UserError(f"--{kind} {named.name}", "is given twice", "name them differently")
        placed.append(named)
    return placed
