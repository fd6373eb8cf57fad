"""ZoneCounter: who is inside, who came and went, and for how long."""

import matplotlib.path
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from phase3_tracking.counting.regions import Region
from phase3_tracking.counting.zones import ENTER, EXIT, ZoneCounter

SQUARE = Region("yard", ((100, 100), (200, 100), (200, 200), (100, 200)))
MARGIN, FRAME_S = 3.0, 0.5


def walked(path, zone: Region = SQUARE) -> tuple[list[str], ZoneCounter]:
    """Changes of one track that is seen twice a second; None is a frame without it."""
    counter = ZoneCounter(zone, MARGIN, FRAME_S)
    found = []
    for index, point in enumerate(path):
        seen = [] if point is None else [point]
        found += [
            change
            for _, _, change in counter.update(
                FRAME_S * index, [7] * len(seen), ["car"] * len(seen), seen
            )
        ]
    return found, counter


def at(*xs):
    return [None if x is None else (x, 150) for x in xs]


@pytest.mark.parametrize(
    ("path", "changes", "dwell_s", "visits"),
    [
        (at(50, 150, 150, 250), [ENTER, EXIT], 1.0, 1),
        (at(50, 150, 250), [ENTER, EXIT], 0.5, 1),
        (at(50, 150, 250, 150, 150, 250), [ENTER, EXIT, ENTER, EXIT], 1.5, 2),
        (at(150, 150, 250), [EXIT], 1.0, 1),  # appears inside
        (at(100, 50), [EXIT], 0.5, 1),  # appears on the edge
        (at(50, 150), [ENTER], 0.5, 1),  # vanishes inside
        (at(50, 100, 50), [ENTER, EXIT], 0.5, 1),  # the edge is inside
        (at(50, 98, 101, 98, 101, 97, 98, 50), [ENTER, EXIT], 2.5, 1),  # jitter at the edge
        (at(50, 98, 97, 98, 99, 50), [], 0, 0),
        (at(50, 150, None, None, 150, 250), [ENTER, EXIT], 2.0, 1),  # missed inside
        (at(50, 150, None, 250), [ENTER, EXIT], 0.5, 1),  # missed on the way out
        (at(50, 250), [], 0, 0),  # jumps across
    ],
)
def test_paths(path, changes, dwell_s, visits):
    found, counter = walked(path)
    assert found == changes
    visitors = counter.summary()["visitors"]
    expected = [{"track_id": 7, "class": "car", "visits": visits, "dwell_s": dwell_s}]
    assert visitors == (expected if visits else [])


def test_occupancy_and_balance():
    counter = ZoneCounter(SQUARE, MARGIN, FRAME_S)
    inside, outside = (150, 150), (50, 50)
    frames = [
        {1: inside, 2: outside, 3: outside},
        {1: inside, 2: inside, 3: inside},
        {1: outside, 2: inside},  # 3 is lost inside
        {1: outside, 2: inside, 4: inside},
    ]
    occupancy = []
    for index, frame in enumerate(frames):
        names = ["car" if track_id < 3 else "person" for track_id in frame]
        counter.update(index * FRAME_S, list(frame), names, list(frame.values()))
        occupancy.append(counter.occupancy)
    assert occupancy == [1, 3, 1, 2]
    summary = counter.summary()
    assert summary["entries"] == {"total": 2, "by_class": {"car": 1, "person": 1}}
    assert summary["exits"] == {"total": 1, "by_class": {"car": 1}}
    assert (summary["appeared_inside"], summary["vanished_inside"]) == (2, 1)
    assert (summary["occupancy"], summary["max_occupancy"]) == (2, 3)
    assert [one["dwell_s"] for one in summary["visitors"]] == [1.0, 1.5, 0.5, 0.5]
    assert (summary["dwell_median_s"], summary["dwell_max_s"]) == (0.75, 1.5)


def test_an_empty_zone():
    counter = ZoneCounter(SQUARE, MARGIN, FRAME_S)
    counter.update(0, [], [], [])
    summary = counter.summary()
    assert (summary["visitors"], summary["dwell_median_s"], summary["dwell_max_s"]) == (
        [],
        None,
        None,
    )


coordinate = st.integers(0, 200)
corners = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8, unique=True)
anchors = st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=20)


@given(corners, anchors)
def test_membership_is_that_of_an_independent_library_off_the_edge(polygon, path):
    """Also for polygons that cross themselves: both take the even-odd rule."""
    outline = matplotlib.path.Path([*polygon, polygon[0]], closed=True)
    sides = list(zip(polygon, [*polygon[1:], polygon[0]], strict=True))
    assume(all(_distance(point, *one) > MARGIN for point in path for one in sides))
    counter = ZoneCounter(Region("", tuple(polygon)), MARGIN, FRAME_S)
    for index, (point, expected) in enumerate(
        zip(path, outline.contains_points(path), strict=True)
    ):
        counter.update(index * FRAME_S, [7], ["car"], [point])
        assert counter.occupancy == expected


def _distance(point, first, second) -> float:
    """Of a point to a side."""
    (px, py), (ax, ay), (bx, by) = point, first, second
    dx, dy = bx - ax, by - ay
    share = ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy)
    share = min(1.0, max(0.0, share))
    return ((px - ax - share * dx) ** 2 + (py - ay - share * dy) ** 2) ** 0.5


@given(st.lists(st.lists(st.tuples(st.integers(1, 5), coordinate), max_size=6), max_size=20))
def test_what_came_in_went_out_or_is_there(frames):
    counter = ZoneCounter(SQUARE, MARGIN, FRAME_S)
    for index, frame in enumerate(frames):
        seen = dict(frame)
        places = [(x, 150) for x in seen.values()]
        counter.update(index * FRAME_S, list(seen), ["car"] * len(seen), places)
    summary = counter.summary()
    came = summary["entries"]["total"] + summary["appeared_inside"]
    left = summary["exits"]["total"] + summary["vanished_inside"]
    assert came == left + summary["occupancy"]
    assert summary["max_occupancy"] >= summary["occupancy"]
    assert sum(one["visits"] for one in summary["visitors"]) == came
