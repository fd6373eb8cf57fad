"""Heatmap: seconds in the right place, whatever the frame, and a picture that shows them."""

import math

import cv2
import numpy as np
import pytest

from phase3_tracking.object_tracker import LONGEST_PAUSE_S
from phase3_tracking.results import heatmap
from phase3_tracking.results.heatmap import CELLS, SIGMA_CELLS, Heatmap, _scale_panel, _tick_values
from phase3_tracking.results.pictures import text_size
from tests.phase3_tracking.made_up_tracks import boxes

WIDTH, HEIGHT, FRAME_S = 640, 360, 0.1
GREY = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
EMPTY = np.empty((0, 7))
CELL = WIDTH / CELLS


def collected(*frames: np.ndarray, step_s: float = FRAME_S) -> Heatmap:
    heatmap = Heatmap(WIDTH, HEIGHT, FRAME_S)
    for index, tracks in enumerate(frames):
        heatmap.update(index * step_s, tracks, GREY)
    return heatmap


def test_an_object_that_stands_still_makes_its_seconds_there():
    seconds = collected(*[boxes((1, 322, 202))] * 100).seconds()
    row, column = np.unravel_index(seconds.argmax(), seconds.shape)
    assert (row, column) == (202 // CELL, 322 // CELL)
    assert seconds.max() == pytest.approx(10.0)
    # one sigma to the side
    beside = math.exp(-0.5 * (2 / SIGMA_CELLS) ** 2)
    assert seconds[row, column + 2] == pytest.approx(10 * beside)
    assert seconds[0, 0] == 0


def test_objects_add_up_and_time_is_what_passed():
    together = collected(boxes((1, 100, 100), (2, 100, 100)), boxes((1, 100, 100)), step_s=0.75)
    assert together.seconds().max() == pytest.approx(2 * FRAME_S + 0.75)


def test_a_pause_is_no_time_with_an_object():
    """A camera that was away for an hour; who is there when it is back was not there all along."""
    seconds = collected(boxes((1, 100, 100)), boxes((2, 400, 200)), step_s=3600.0).seconds()
    assert seconds.max() == pytest.approx(LONGEST_PAUSE_S)


def test_frames_that_last_longer_than_a_pause_count_in_full():
    heatmap = Heatmap(WIDTH, HEIGHT, 60.0)
    for time_s in (0.0, 60.0, 3600.0):
        heatmap.update(time_s, boxes((1, 100, 100)), GREY)
    assert heatmap.seconds().max() == pytest.approx(3 * 60.0)


def test_the_value_does_not_depend_on_the_resolution():
    values = []
    for scale in (1, 4):
        heatmap = Heatmap(scale * WIDTH, scale * HEIGHT, FRAME_S)
        tracks = boxes((1, 322, 202), (2, 338, 202))
        tracks[:, :4] *= scale
        frame = np.zeros((scale * HEIGHT, scale * WIDTH, 3), np.uint8)
        heatmap.update(0.0, tracks, frame)
        values.append(heatmap.seconds())
    np.testing.assert_allclose(values[0], values[1])


@pytest.mark.parametrize(
    "place", [(-500, -500), (0, 0), (640, 360), (641, 361), (1e20, 1e20), (-1e20, 50)]
)
def test_objects_at_and_beyond_the_edge_are_counted_at_it(place):
    seconds = collected(boxes((1, *place))).seconds()
    assert seconds.max() == pytest.approx(FRAME_S)


def test_the_picture_is_grey_without_objects_and_coloured_with_them():
    picture = collected(*[boxes((1, 322, 202))] * 10).picture()[:HEIGHT]
    assert (picture[20, 20] == picture[20, 20, 0]).all()
    spread = np.ptp(picture.astype(int), axis=2)
    assert spread[200:206, 318:326].min() > 50
    assert picture[203, 322].sum() > 1.5 * picture[20, 20].sum()  # the hottest is the brightest
    assert spread[:150].max() == 0


def test_the_scale_is_below_the_picture_and_named():
    empty, busy = collected(EMPTY).picture(), collected(*[boxes((1, 322, 202))] * 600).picture()
    assert empty.shape == busy.shape
    panel = busy[HEIGHT:]
    assert panel.shape[0] > 40
    assert (panel[0] == 255).all()
    assert ((panel < 80).all(axis=2)).sum() > 300  # black text
    assert (panel != empty[HEIGHT:]).any()  # other numbers


def test_the_scale_says_that_it_is_one_of_square_roots(monkeypatch):
    """And it is one: a quarter of the most stands in the middle of the bar."""
    middles: dict[str, float] = {}

    def noted(image: np.ndarray, text: str, left: int, top: int, **style) -> None:
        middles[text] = left + text_size(text, style["scale"])[0] / 2

    monkeypatch.setattr(heatmap, "put_text", noted)
    _scale_panel(WIDTH, 40.0)
    assert list(middles) == [heatmap.UNIT, "0", "2", "10", "20", "40"]
    assert middles["10"] == pytest.approx((middles["0"] + middles["40"]) / 2, abs=1)
    assert "square-root scale" in heatmap.UNIT


@pytest.mark.parametrize(
    ("top", "ticks"),
    [
        (45, [0, 2, 10, 20, 40]),
        (0.04, [0, 0.002, 0.01, 0.02, 0.04]),
        (8, [0, 0.5, 2, 4, 8]),
        (12_345, [0, 700, 3000, 6000, 10_000]),
    ],
)
def test_the_ticks_are_round_numbers(top, ticks):
    assert _tick_values(top) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (3840, 2160, (1920, 1080)),
        (1080, 1920, (640, 1080)),  # shrunk to 608 x 1080, with margins
        (320, 240, (640, 480)),
        (1, 1, (640, 640)),
        (2, 4000, (640, 1080)),
        (4000, 2, (1920, 1)),
        (1920, 1080, (1920, 1080)),
    ],
)
def test_sizes(width, height, size):
    heatmap = Heatmap(width, height, FRAME_S)
    heatmap.update(0.0, boxes((1, width / 2, height / 2)), np.zeros((height, width, 3), np.uint8))
    picture = heatmap.picture()
    assert picture.shape == (size[1] + len(_scale_panel(size[0], 1.0)), size[0], 3)


def test_the_first_frame_is_the_background_and_is_copied():
    heatmap = Heatmap(WIDTH, HEIGHT, FRAME_S)
    frame = GREY.copy()
    heatmap.update(0.0, EMPTY, frame)
    frame[:] = 255  # drawn on by others
    heatmap.update(0.1, EMPTY, frame)
    assert heatmap.picture()[:HEIGHT].max() < 120


def test_p3_39_no_detections_make_a_picture_too():
    content = np.frombuffer(collected(EMPTY, EMPTY).encoded(), np.uint8)
    assert content[:8].tobytes() == b"\x89PNG\r\n\x1a\n"
    assert cv2.imdecode(content, cv2.IMREAD_COLOR).shape[1] == WIDTH


def test_without_a_frame_there_is_no_picture():
    with pytest.raises(ValueError, match="no frame"):
        collected().picture()
