"""draw_regions: lines, zones and counts are visible on any frame, and nothing makes it fail."""

import re

import numpy as np
import pytest

from phase3_tracking.counting.line_crossing import LineCounter
from phase3_tracking.counting.region_drawing import draw_regions, zone_text
from phase3_tracking.counting.regions import Region
from phase3_tracking.counting.zones import ZoneCounter

FULL_HD = (1080, 1920)


def line(*points, name="gate", crossings=0) -> LineCounter:
    counter = LineCounter(Region(name, points), 2.0)
    counter.counts["left_to_right", "car"] = crossings
    return counter


def zone(*points, name="yard") -> ZoneCounter:
    return ZoneCounter(Region(name, points), 2.0, 0.1)


def places(lines=(), zones=()) -> list[tuple[int, int, int, int]]:
    return draw_regions(np.full((*FULL_HD, 3), 120, np.uint8), lines, zones)


def drawn(lines=(), zones=(), *, size=FULL_HD, grey=120) -> np.ndarray:
    image = np.full((*size, 3), grey, np.uint8)
    draw_regions(image, lines, zones)
    return image


def test_nothing_to_draw_changes_nothing():
    assert (drawn() == 120).all()


@pytest.mark.parametrize("grey", [0, 120, 255])
@pytest.mark.parametrize("size", [(360, 640), FULL_HD, (2160, 3840)])
def test_a_line_shows_on_any_background(grey, size):
    height, width = size
    image = drawn([line((width * 0.2, height * 0.5), (width * 0.8, height * 0.5))], size=size)
    across = image[height // 2 - 12 : height // 2 + 12, int(width * 0.7), 0]
    assert across.max() > 200
    assert across.min() < 30


def test_the_arrow_is_on_the_right_of_the_way():
    """A level line drawn to the right has its right below, see line_crossing."""
    changed = (drawn([line((400, 500), (1500, 500))]) != 120).any(axis=2)
    assert changed[530, 930:970].any()
    assert not changed[470, 930:970].any()
    changed = (drawn([line((1500, 500), (400, 500))]) != 120).any(axis=2)
    assert changed[470, 930:970].any()
    assert not changed[530, 930:970].any()


def test_counts_are_shown():
    few, many = (drawn([line((400, 500), (1500, 500), crossings=n)]) for n in (1, 8))
    assert (few != many).any()


def test_the_text_of_a_zone_says_all_that_came_and_went():
    """As in the report: what appeared inside, or vanished there, has neither entered nor left."""
    yard = zone((0, 0), (100, 0), (100, 100), (0, 100))
    inside, outside = (50, 50), (500, 500)
    frames = [
        ({1: inside, 2: outside}, "1 inside, in 0 + 1 appeared, out 0"),
        ({1: inside, 2: inside}, "2 inside, in 1 + 1 appeared, out 0"),
        ({2: inside, 3: inside}, "2 inside, in 1 + 2 appeared, out 0 + 1 vanished"),
        ({1: outside, 2: outside, 3: inside}, "1 inside, in 1 + 2 appeared, out 2"),
    ]
    assert zone_text(yard) == "0 inside, in 0, out 0"
    for time_s, (seen, expected) in enumerate(frames):
        yard.update(time_s, list(seen), ["car"] * len(seen), list(seen.values()))
        assert zone_text(yard) == expected
        counts = yard.summary()
        came = counts["entries"]["total"] + counts["appeared_inside"]
        gone = counts["exits"]["total"] + counts["vanished_inside"]
        numbers = [int(number) for number in re.findall(r"\d+", zone_text(yard))]
        assert (sum(numbers), numbers[0]) == (counts["occupancy"] + came + gone, came - gone)


def test_a_zone_is_brighter_inside_and_outlined():
    image = drawn(zones=[zone((400, 300), (1200, 300), (1200, 800), (400, 800))])
    assert image[600, 800].tolist() == [round(0.85 * 120 + 0.15 * 255)] * 3
    assert image[600, 1300].tolist() == [120] * 3
    assert image[600, 395:405, 0].max() == 255


def test_the_hollow_of_a_zone_stays_as_it_is():
    hollow = zone((100, 100), (900, 100), (900, 900), (500, 200), (100, 900))
    assert drawn(zones=[hollow])[800, 500].tolist() == [120] * 3


def black(image: np.ndarray) -> int:
    return int((image == 0).all(axis=2).sum())


def test_labels_keep_off_each_other_and_off_the_status_line():
    gate = line((0, 35), (1919, 35))
    image = drawn([gate])
    assert black(image[:20, :300]) == 0  # there TrackDrawer writes the status
    one = black(drawn([line((600, 500), (1500, 500), name="a")]))
    both = [line((600, 500), (1500, 500), name=name) for name in ("a", "b")]
    assert black(drawn(both)) > 1.3 * one


def test_the_places_of_the_labels_are_told():
    yard = zone((300, 300), (900, 300), (900, 800))
    gate = line((1000, 500), (1500, 500))
    image = drawn([gate], [yard])
    of_yard, of_gate = places([gate], [yard])
    for x1, y1, x2, _ in (of_yard, of_gate):
        assert (image[y1, x1:x2] == 0).all()  # its uppermost row, without text
    assert (of_yard[0], of_gate[0]) == (300, 1000)
    assert of_yard[3] < 300
    assert of_gate[3] < 500
    assert places() == []


def test_labels_keep_off_the_speed():
    """TrackDrawer writes it into the upper right corner."""
    corner = zone((1700, 0), (1919, 0), (1919, 400), (1700, 400))
    ((x1, y1, x2, _),) = places(zones=[corner])
    assert x2 > 1900
    assert x1 >= 1400
    assert y1 > 30


@pytest.mark.parametrize(
    "points",
    [
        ((0, 0), (10, 0)),
        ((1919, 0), (1920, 5)),
        ((1910, 1080), (1920, 1080)),
        ((0, 1080), (0, 1000)),
    ],
)
def test_labels_stay_inside_the_frame(points):
    middle = drawn([line((900, 500), (910, 500))])
    assert black(drawn([line(*points)])) >= 0.85 * black(middle)


@pytest.mark.parametrize(
    "name", ["日本語", "🚲", "x" * 500, "$\\frac{1}{2}$", "", "a\nb", "\ud800"]
)
def test_p3_54_any_name_can_be_drawn(name):
    drawn([line((100, 100), (500, 500), name=name)], [zone((0, 0), (9, 0), (9, 9), name=name)])


@pytest.mark.parametrize("size", [(1, 1), (2, 16), (16, 2), (16, 16)])
def test_tiny_frames(size):
    height, width = size
    corners = ((0, 0), (width, 0), (width, height))
    drawn([line((0, 0), (width, height))], [zone(*corners)], size=size)
