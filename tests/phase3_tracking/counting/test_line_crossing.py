"""LineCounter: every crossing once, in its direction, whatever the track does on the line."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from phase3_tracking.counting.line_crossing import LEFT_TO_RIGHT, RIGHT_TO_LEFT, LineCounter
from phase3_tracking.counting.regions import Region

MARGIN = 3.0
# Walked from left to right in the picture: its left is up, its right is down.
LEVEL = Region("gate", ((100, 50), (200, 50)))


def crossings(path, line: Region = LEVEL, margin: float = MARGIN) -> list[str]:
    """Directions of the crossings of one track; None in the path is a frame without it."""
    counter = LineCounter(line, margin)
    found = []
    for point in path:
        seen = [] if point is None else [point]
        names = ["car"] * len(seen)
        found += [way for _, _, way in counter.update([7] * len(seen), names, seen)]
    assert counter.total(LEFT_TO_RIGHT) == found.count(LEFT_TO_RIGHT)
    assert counter.total(RIGHT_TO_LEFT) == found.count(RIGHT_TO_LEFT)
    return found


def heights(*ys, x=150):
    return [None if y is None else (x, y) for y in ys]


@pytest.mark.parametrize(
    ("line", "path", "direction"),
    [
        # as the module's docstring says
        (((100, 400), (900, 400)), [(500, 300), (500, 500)], LEFT_TO_RIGHT),  # moves down
        (((900, 400), (100, 400)), [(500, 300), (500, 500)], RIGHT_TO_LEFT),
        (((500, 400), (500, 100)), [(400, 200), (600, 200)], LEFT_TO_RIGHT),  # drawn upwards
        (((500, 100), (500, 400)), [(400, 200), (600, 200)], RIGHT_TO_LEFT),
        (((100, 100), (300, 300)), [(300, 100), (100, 300)], LEFT_TO_RIGHT),
    ],
)
def test_directions(line, path, direction):
    assert crossings(path, Region("", line)) == [direction]
    opposite = RIGHT_TO_LEFT if direction == LEFT_TO_RIGHT else LEFT_TO_RIGHT
    assert crossings(path[::-1], Region("", line)) == [opposite]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (heights(20, 40, 60, 80), [LEFT_TO_RIGHT]),
        (heights(20, 80, 20, 80), [LEFT_TO_RIGHT, RIGHT_TO_LEFT, LEFT_TO_RIGHT]),
        # on the line exactly: first, in between, for a while, at the end
        (heights(20, 50, 80), [LEFT_TO_RIGHT]),
        (heights(80, 50, 20), [RIGHT_TO_LEFT]),
        (heights(20, 50, 50, 50, 80), [LEFT_TO_RIGHT]),
        (heights(20, 50, 20), []),
        (heights(80, 50, 80), []),
        (heights(20, 50), []),
        (heights(50, 80), []),  # nobody knows where it came from
        (heights(50, 20, 80), [LEFT_TO_RIGHT]),
        # jitter within the margin
        (heights(20, 48, 52, 49, 51, 48, 52, 47, 20), []),
        (heights(20, 48, 52, 49, 51, 48, 52, 80), [LEFT_TO_RIGHT]),
        (heights(48, 52, 48, 52), []),
        (heights(20, 53, 47, 53, 47), []),  # the margin itself is within
        (heights(20, 53.1, 46.9), [LEFT_TO_RIGHT, RIGHT_TO_LEFT]),
        # frames without the track
        (heights(20, None, None, 80), [LEFT_TO_RIGHT]),
        (heights(20, 51, None, None, 80), [LEFT_TO_RIGHT]),
        (heights(20, None, 20), []),
        # parallel to the line and along it
        ([(x, 40) for x in range(80, 220, 7)], []),
        ([(x, 50) for x in range(80, 220, 7)], []),
        # beyond the ends, and through the ends
        (heights(20, 80, x=99), []),
        (heights(20, 80, x=201), []),
        (heights(20, 80, x=100), [LEFT_TO_RIGHT]),
        (heights(20, 80, x=200), [LEFT_TO_RIGHT]),
        # around the end and back through the line
        ([(150, 20), (250, 20), (250, 80), (150, 80), (150, 20)], [RIGHT_TO_LEFT]),
        # aslant: what counts is where it passes the line, here at x = 195 and x = 205
        ([(190, 20), (200, 80)], [LEFT_TO_RIGHT]),
        ([(200, 20), (210, 80)], []),
        # onto the line inside, along it within the margin, and off it beyond the end
        ([(150, 20), (150, 51), (250, 51), (250, 80)], [LEFT_TO_RIGHT]),
        ([(250, 20), (250, 51), (150, 51), (150, 80)], []),
        # through the line, back, and then around the end: all within the margin
        ([(150, 20), (150, 51), (150, 49), (250, 49), (250, 51), (150, 80)], []),
    ],
)
def test_paths(path, expected):
    assert crossings(path) == expected


def test_classes_and_tracks_are_counted_apart():
    counter = LineCounter(LEVEL, MARGIN)
    counter.update([1, 2, 3], ["car", "person", "car"], [(110, 20), (120, 20), (130, 80)])
    found = counter.update([3, 1, 2], ["car", "car", "person"], [(130, 20), (110, 80), (120, 80)])
    assert found == [
        (3, "car", RIGHT_TO_LEFT),
        (1, "car", LEFT_TO_RIGHT),
        (2, "person", LEFT_TO_RIGHT),
    ]
    assert counter.summary() == {
        "name": "gate",
        "points": [[100, 50], [200, 50]],
        "left_to_right": {"total": 2, "by_class": {"car": 1, "person": 1}},
        "right_to_left": {"total": 1, "by_class": {"car": 1}},
        "net": 1,
    }


number = st.one_of(st.integers(0, 100), st.floats(0, 100, allow_subnormal=False))
points = st.tuples(number, number)
paths = st.lists(points, min_size=2, max_size=30)


def side(line: Region, point) -> float:
    """Signed distance, negative on the left; written down anew."""
    (x1, y1), (x2, y2) = line.points
    normal = (-(y2 - y1), x2 - x1)
    length = math.hypot(*normal)
    return (normal[0] * (point[0] - x1) + normal[1] * (point[1] - y1)) / length


def lengthened(line: Region) -> Region:
    """The same line so long that nothing passes beyond its ends."""
    (x1, y1), (x2, y2) = line.points
    scale = 1000 / math.hypot(x2 - x1, y2 - y1)
    dx, dy = scale * (x2 - x1), scale * (y2 - y1)
    return Region("", ((x1 - dx, y1 - dy), (x2 + dx, y2 + dy)))


@given(points, points, paths)
def test_the_net_count_is_the_change_of_side(first, second, path):
    assume(math.dist(first, second) > 1)
    line = lengthened(Region("", (first, second)))
    settled = [side(line, point) for point in path if abs(side(line, point)) > MARGIN]
    assume(settled and all(abs(abs(side(line, point)) - MARGIN) > 1e-6 for point in path))
    found = crossings(path, line)
    net = found.count(LEFT_TO_RIGHT) - found.count(RIGHT_TO_LEFT)
    assert net == (settled[-1] > 0) - (settled[0] > 0)
    changes = sum((a > 0) != (b > 0) for a, b in pairwise(settled))
    assert len(found) == changes  # once per crossing
    assert all(a != b for a, b in pairwise(found))  # there and back


@given(points, points, paths)
def test_the_way_back_swaps_the_directions(first, second, path):
    assume(math.dist(first, second) > 1)
    line = Region("", (first, second))
    swapped = {LEFT_TO_RIGHT: RIGHT_TO_LEFT, RIGHT_TO_LEFT: LEFT_TO_RIGHT}
    assume(clear_of_ends(line, path))
    assert crossings(path[::-1], line) == [swapped[way] for way in crossings(path, line)[::-1]]


@given(points, points, paths)
def test_a_line_drawn_the_other_way_swaps_the_directions(first, second, path):
    assume(math.dist(first, second) > 1)
    line = Region("", (first, second))
    swapped = {LEFT_TO_RIGHT: RIGHT_TO_LEFT, RIGHT_TO_LEFT: LEFT_TO_RIGHT}
    # A point on the line counts as right of it: of the two lines that is another side.
    assume(clear_of_ends(line, path) and all(abs(side(line, point)) > 1e-6 for point in path))
    turned = Region("", (second, first))
    assert crossings(path, turned) == [swapped[way] for way in crossings(path, line)]


def clear_of_ends(line: Region, path) -> bool:
    """Whether rounding cannot decide: no step passes the very end, no point is on the margin."""
    for a, b in pairwise(path):
        for end in line.points:
            step = (b[0] - a[0], b[1] - a[1])
            length = math.hypot(*step)
            off = step[0] * (end[1] - a[1]) - step[1] * (end[0] - a[0])
            if abs(off) <= 1e-6 * max(1, length):
                return False
    return all(
        abs(abs(side(line, p)) - MARGIN) > 1e-6
        and (abs(side(line, p)) > 1e-6 or side(line, p) == 0)
        for p in path
    )


def test_crossings_within_the_line_and_beyond_equal_those_of_the_endless_line():
    """A step passes the segment exactly if an independent test of intersection says so."""

    @given(points, points, points, points)
    def one_step(first, second, a, b):
        assume(math.dist(first, second) > 1)
        line = Region("", (first, second))
        assume(clear_of_ends(line, [a, b]) and min(abs(side(line, p)) for p in (a, b)) > MARGIN)
        step = Region("", (a, b))
        apart = math.dist(a, b) > 0 and side(line, a) * side(line, b) < 0
        meets = apart and side(step, first) * side(step, second) < 0
        assert len(crossings([a, b], line)) == meets

    one_step()
