"""ContactSheet: a dozen frames spread evenly over a video of any length."""

import cv2
import numpy as np
import pytest

from phase3_tracking.results import contact_sheet
from phase3_tracking.results.contact_sheet import (
    FRAMES,
    KEPT_AT_MOST,
    TILE,
    ContactSheet,
    time_stamp,
)


def shown(count: int, *, width: int = 64, height: int = 48) -> ContactSheet:
    """A sheet that has seen `count` frames, one a second, each of its own grey."""
    sheet = ContactSheet()
    for index in range(count):
        sheet.add(float(index), np.full((height, width, 3), index % 256, np.uint8))
    return sheet


@pytest.mark.parametrize("count", range(1, FRAMES + 1))
def test_a_short_video_is_shown_whole(count):
    assert [time_s for time_s, _ in shown(count).chosen()] == list(range(count))


@pytest.mark.parametrize("count", [13, 24, 47, 48, 49, 95, 96, 97, 1000, 12_345])
def test_frames_are_spread_evenly_over_a_long_one(count):
    times = np.array([time_s for time_s, _ in shown(count).chosen()])
    assert len(times) == FRAMES
    assert times[0] == 0
    gaps = np.diff(times)
    assert gaps.max() <= (1.5 if count >= 2 * FRAMES else 2) * gaps.min()
    assert count - 1 - times[-1] <= gaps.max()  # nothing is missing at the end


def test_every_time_has_its_own_frame():
    for time_s, frame in shown(200).chosen():
        assert (frame == time_s).all()


def test_p3_50_few_frames_are_kept_and_few_shrunk(monkeypatch):
    sheet, frame, most, shrunk = ContactSheet(), np.zeros((4, 4, 3), np.uint8), 0, []
    monkeypatch.setattr(contact_sheet, "shrunk", lambda image, *_: shrunk.append(1) or image)
    for index in range(20_000):
        sheet.add(index / 30, frame)
        most = max(most, len(sheet._kept))
    assert most < KEPT_AT_MOST
    assert len(shrunk) < 10 * KEPT_AT_MOST


def test_kept_frames_are_small_copies():
    sheet = ContactSheet()
    frame = np.full((2160, 3840, 3), 200, np.uint8)
    sheet.add(0.0, frame)
    frame[:] = 0
    ((_, kept),) = sheet.chosen()
    assert kept.shape == (360, TILE, 3)
    assert kept.min() == 200
    small = np.full((48, 64, 3), 200, np.uint8)
    sheet = ContactSheet()
    sheet.add(0.0, small)
    small[:] = 0
    assert sheet.chosen()[0][1].min() == 200


@pytest.mark.parametrize(
    ("count", "width", "height", "grid"),
    [
        (12, 640, 360, (3, 4)),
        (5, 640, 360, (3, 2)),
        (1, 640, 360, (1, 1)),
        (12, 360, 640, (6, 2)),
        (2, 360, 640, (2, 1)),
    ],
)
def test_the_grid(count, width, height, grid):
    picture = shown(count, width=width, height=height).picture()
    columns, rows = grid
    assert picture.shape == (6 + rows * (height + 6), 6 + columns * (width + 6), 3)


def test_tiles_are_in_order_with_a_stamp_each():
    picture = shown(4, width=200, height=100).picture()
    for index in range(4):
        top, left = 6 + (index // 3) * 106, 6 + (index % 3) * 206
        tile = picture[top : top + 100, left : left + 200]
        assert (tile[:60] == index).all()
        assert (tile[70:, :60] == 255).any()  # white text at the bottom left


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0, "0:00.0"),
        (9.96, "0:10.0"),
        (59.96, "1:00.0"),
        (83.44, "1:23.4"),
        (3599.99, "1:00:00.0"),
        (36_061.5, "10:01:01.5"),
    ],
)
def test_time_stamps(time_s, text):
    assert time_stamp(time_s) == text


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (2, 700), (700, 2)])
def test_tiny_and_narrow_frames(size, tmp_path):
    sheet = shown(3, width=size[0], height=size[1])
    (tmp_path / "a.contact.jpg").write_bytes(sheet.encoded())
    assert cv2.imread(str(tmp_path / "a.contact.jpg")) is not None


def test_without_a_frame_there_is_no_picture():
    with pytest.raises(ValueError, match="no frame"):
        ContactSheet().picture()
