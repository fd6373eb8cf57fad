"""TrackDrawer: what appears, where it appears, and that nothing makes it fail."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from common import paths
from phase3_tracking.results.drawing import (
    PALETTE_BGR,
    TrackDrawer,
    color_of,
    drawable,
    text_color_on,
)


def track(x1, y1, x2, y2, track_id=1, class_id=1, confidence=0.9):
    return [x1, y1, x2, y2, track_id, class_id, confidence]


def drawn(tracks: list, *, height=200, width=300, names=None, frames=1, status="frame 1"):
    drawer = TrackDrawer(names or {1: "person"}, height, 10)
    for _ in range(frames):
        image = np.full((height, width, 3), 127, np.uint8)
        drawer.draw(image, np.array(tracks, float).reshape(-1, 7), status)
    return image


def changed(image: np.ndarray) -> np.ndarray:
    return (image != 127).any(axis=2)


def test_box_has_the_color_of_the_track():
    image = drawn([track(100, 100, 160, 180, track_id=9)])
    assert image[140, 100].tolist() == list(color_of(9))
    assert image[140, 130].tolist() == [127] * 3  # the object itself stays visible


def test_colors_are_stable():
    assert [color_of(number) for number in range(20, 40)] == [color_of(n) for n in range(20)]


# Linear RGB as the red-blind, and the green-blind, see it: Vienot, Brettel and Mollon 1999.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


def linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize(
    ("sight", "of_any", "of_neighbours"),
    [("normal", 18, 31), ("protanopia", 11, 26), ("deuteranopia", 11, 23)],
)
def test_colors_of_twenty_consecutive_ids_can_be_told_apart(sight, of_any, of_neighbours):
    """By distances in CIELAB, where 2.3 can just be noticed."""
    rgb = np.array([color_of(number)[::-1] for number in range(1, 21)])
    seen = np.clip(linear(rgb / 255) @ np.transpose(SIGHT[sight]), 0, 1)
    srgb = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = cv2.cvtColor(srgb[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0]
    distance = np.linalg.norm(lab[:, None] - lab, axis=2)
    assert distance[~np.eye(20, dtype=bool)].min() > of_any
    assert distance[np.arange(20), np.roll(np.arange(20), 1)].min() > of_neighbours


@pytest.mark.parametrize("color", PALETTE_BGR)
def test_text_contrasts_with_every_color(color):
    def luminance(bgr):  # WCAG 2.1
        return linear(np.array(bgr) / 255) @ [0.0722, 0.7152, 0.2126]

    lighter, darker = sorted((luminance(color), luminance(text_color_on(color))), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


@pytest.mark.parametrize(
    "corner", [(0, 0, 20, 20), (280, 0, 300, 20), (0, 180, 20, 200), (280, 180, 300, 200)]
)
def test_labels_stay_inside_the_frame(corner):
    # A label cut off by the frame would cover less than the same label in the middle.
    blank = changed(drawn([])).sum()
    middle = changed(drawn([track(140, 90, 160, 110)])).sum() - blank
    at_edge = changed(drawn([track(*corner)])).sum() - blank
    assert at_edge >= 0.9 * middle


def test_labels_keep_off_each_other():
    one = changed(drawn([track(100, 100, 140, 150)])).sum()
    labels = [track(100, 100, 140, 150, track_id=number) for number in (1, 21)]  # same color
    assert changed(drawn(labels)).sum() > 1.15 * one


def test_labels_keep_off_places_that_are_avoided():
    """Above the box is where the label would be; it goes below, and the status stays."""
    box = np.array([track(100, 100, 140, 150)], float)
    above = (90, 70, 290, 100)
    image = np.full((200, 300, 3), 127, np.uint8)
    TrackDrawer({1: "person"}, 200, 10).draw(image, box, "frame 1", [above])
    covered = changed(image)
    assert not covered[70:98, 90:290].any()
    assert covered[155:160, 105:135].all()
    assert (changed(drawn([track(100, 100, 140, 150)]))[70:98, 90:290]).any()
    assert covered[:10, :20].any()


@pytest.mark.parametrize(("width", "row"), [(500, 0), (90, 1)])
def test_the_speed_covers_no_other_text(width, row):
    """In the first row of text where the status leaves room, else in the second."""
    drawer, blank = TrackDrawer({}, 200, 10), np.full((200, width, 3), 127, np.uint8)
    status = blank.copy()
    drawer.draw(status, np.empty((0, 7)), "frame 1")
    both = status.copy()
    drawer.draw_speed(both, 123.45)
    new = np.argwhere(changed(both) & ~changed(status))
    height = np.argwhere(changed(status))[:, 0].max() + 1
    assert (both[changed(status)] == status[changed(status)]).all()
    assert new[:, 1].max() == width - 1
    rows = (new[:, 0].min(), new[:, 0].max() + 1)
    assert rows == pytest.approx((row * height, (row + 1) * height), abs=1)


def test_trail_follows_the_bottom_and_is_broken_where_the_object_was_not_seen():
    drawer = TrackDrawer({}, 200, 10)
    for x in (20, 40, None, 120, 140):
        image = np.full((200, 300, 3), 127, np.uint8)
        tracks = [] if x is None else [track(x, 80, x + 20, 100)]
        drawer.draw(image, np.array(tracks, float).reshape(-1, 7), "")
    row = changed(image)[100]
    assert row[35:45].all()  # from 30 to 50
    assert not row[60:120].any()  # the gap
    assert row[135:145].all()


def test_trail_ends_after_two_seconds_and_is_forgotten():
    drawer = TrackDrawer({}, 200, 10)
    for number in range(50):
        tracks = [] if number else [track(20, 80, 40, 100)]
        image = np.full((200, 300, 3), 127, np.uint8)
        drawer.draw(image, np.array(tracks, float).reshape(-1, 7), "")
    assert not drawer._trails


@pytest.mark.parametrize(
    "row",
    [
        track(-50, -60, 20, 30),
        track(-1e20, -1e20, 1e20, 1e20),
        track(290, 190, 500, 700),
        track(1000, 1000, 1100, 1100),
        track(10.4, 10.6, 10.7, 10.8),
    ],
)
def test_any_box_can_be_drawn(row):
    assert drawn([row]).shape == (200, 300, 3)


@pytest.mark.parametrize("name", ["日本語", "🚲", "x" * 500, "$\\frac{1}{2}$", "", "a\nb"])
def test_p3_54_any_class_name_can_be_drawn(name):
    drawn([track(100, 100, 150, 150)], names={1: name})


DRAW_SURROGATES = r"""
import numpy as np
from phase3_tracking.results.drawing import TrackDrawer
names = {1: "\ud83d", 2: "a\udcffb", 3: "\udfff" * 3, 4: "half \ud800"}
tracks = np.array([[20 * n, 40, 20 * n + 15, 80, n, n, 0.5] for n in names], float)
image = np.full((200, 300, 3), 127, np.uint8)
TrackDrawer(names, 200, 10).draw(image, tracks, "status")
print((image != 127).any())
"""


def test_p3_54_half_a_surrogate_pair_can_be_drawn():
    """In a child: OpenCV answers one with a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", DRAW_SURROGATES], cwd=paths.ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_name_is_drawn_on_one_line():
    assert drawable("  a\n b\tc ") == "a b c"
    assert drawable("é日\ud800🚲") == "é日?🚲"


@pytest.mark.parametrize("size", [(1, 1), (2, 16), (16, 2), (16, 16)])
def test_tiny_frames(size):
    drawn([track(0, 0, 5, 5)], height=size[0], width=size[1])


def test_classes_without_a_name():
    drawn([track(100, 100, 150, 150, class_id=77)])


def test_thousands_of_tracks():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 180, (3000, 2))
    drawn([track(x, y, x + 9, y + 9, number) for number, (x, y) in enumerate(corners)])
