"""The newest frame: encoded when somebody asks, once, and nobody waits for anybody."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from unittest import mock

import cv2
import numpy as np
import pytest

from phase3_tracking.live import live_frames
from phase3_tracking.live.live_frames import MAX_SIDE_PX, NewestFrame, encode


def gray(level: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def level_of(data: bytes) -> float:
    return float(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).mean())


@pytest.fixture
def encoded(monkeypatch):
    """Counts encodings, which take a moment each."""
    calls = []

    def slowly(frame_bgr):
        calls.append(int(frame_bgr[0, 0, 0]))
        time.sleep(0.05)
        return encode(frame_bgr)

    monkeypatch.setattr(live_frames, "encode", slowly)
    return calls


def test_nothing_is_encoded_unless_asked_for(encoded):
    frames = NewestFrame()
    for level in range(100):
        frames.publish(gray(level), {})
    assert not encoded
    jpeg = frames.jpeg()
    assert jpeg is not None
    assert jpeg.number == 100
    assert level_of(jpeg.data) == pytest.approx(99, abs=1)
    assert encoded == [99]


def test_a_frame_is_encoded_once_for_all(encoded):
    frames = NewestFrame()
    frames.publish(gray(7), {})
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: frames.jpeg(), range(12)))
    assert encoded == [7]
    assert all(one is found[0] for one in found)


def test_publishing_does_not_wait_for_encoding():
    frames, encoding, go_on = NewestFrame(), threading.Event(), threading.Event()

    def held(frame_bgr):
        encoding.set()
        assert go_on.wait(10)
        return b""

    frames.publish(gray(1), {})
    with mock.patch.object(live_frames, "encode", held):
        viewer = threading.Thread(target=frames.jpeg)
        viewer.start()
        assert encoding.wait(10)
        for level in range(50):
            frames.publish(gray(level), {"frame": level})  # would never return
        assert frames.status()["frames_published"] == 51
        go_on.set()
        viewer.join()


def test_the_frame_is_kept_not_copied():
    frames, frame = NewestFrame(), gray(3)
    frames.publish(frame, {})
    assert frames._newest is not None
    assert frames._newest.frame_bgr is frame


def test_a_fast_pipeline_is_encoded_at_a_steady_pace(encoded):
    frames = NewestFrame()
    with mock.patch.object(live_frames, "MAX_FPS", 2.0):
        first = frames_of_a_viewer(frames, gray(1), after=0)
        frames.publish(gray(2), {})
        assert frames.jpeg(after=0) is first  # half a second old at most
        begin = time.monotonic()
        second = frames.jpeg(after=1)
    assert second is not None
    assert second.number == 2
    assert time.monotonic() - begin > 0.2
    assert encoded == [1, 2]


def frames_of_a_viewer(frames: NewestFrame, frame: np.ndarray, after: int):
    frames.publish(frame, {})
    return frames.jpeg(after=after)


def test_waiting_ends_with_the_next_frame():
    frames = NewestFrame()
    frames.publish(gray(1), {})
    timer = threading.Timer(0.1, frames.publish, (gray(2), {}))
    timer.start()
    jpeg = frames.jpeg(after=1, wait_s=30)
    timer.join()
    assert jpeg is not None
    assert jpeg.number == 2


def test_without_a_later_frame_the_same_is_returned_again():
    frames = NewestFrame()
    assert frames.jpeg(wait_s=0.01) is None
    frames.publish(gray(1), {})
    first = frames.jpeg()
    assert frames.jpeg(after=1, wait_s=0.01) is first


def test_after_the_end_there_is_the_last_frame_and_nothing_later():
    frames = NewestFrame()
    frames.publish(gray(1), {})
    frames.jpeg()
    frames.publish(gray(2), {})
    frames.close()
    last = frames.jpeg(after=1, wait_s=30)
    assert last is not None
    assert last.number == 2
    assert frames.jpeg(after=2, wait_s=30) is None


def test_closing_wakes_who_waits():
    frames = NewestFrame()
    timer = threading.Timer(0.1, frames.close)
    timer.start()
    assert frames.jpeg(wait_s=30) is None
    timer.join()


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_refused(frame):
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        NewestFrame().publish(frame, {})


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((1, 1), (1, 1)),
        ((1080, 1920), (1080, 1920)),
        ((2160, 3840), (1080, 1920)),
        ((4000, 10), (MAX_SIDE_PX, 5)),
        ((1, 70_000), (1, MAX_SIDE_PX)),  # a JPEG has 65535 at most
    ],
)
def test_large_frames_are_shrunk(shape, shown):
    data = encode(np.zeros((*shape, 3), np.uint8))
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2] == shown


def test_a_part_of_an_array_can_be_shown():
    wide = np.zeros((24, 64, 3), np.uint8)
    wide[:, 1::2] = 200
    assert level_of(encode(wide[:, 1::2])) == pytest.approx(200, abs=1)


def test_counters_are_plain_numbers_and_text():
    frames = NewestFrame()
    assert frames.status() == {"frames_published": 0, "age_s": None, "counters": {}}
    counters = {
        "fps": np.float32(24.5),
        "frame": np.int64(3),
        "late": np.bool_(True),
        "nan": float("nan"),
        "infinite": np.inf,
        "rate": Fraction(1, 4),
        "names": ("a", None),
        "text": "日本\ud800<b>",
        7: {"in": np.uint8(2), "deep": {"x": np.float64("nan")}},
    }
    frames.publish(gray(0), counters)
    status = frames.status()
    assert status["counters"] == {
        "fps": 24.5,
        "frame": 3,
        "late": True,
        "nan": None,
        "infinite": None,
        "rate": 0.25,
        "names": ["a", None],
        "text": "日本\ud800<b>",
        "7": {"in": 2, "deep": {"x": None}},
    }
    json.dumps(status, allow_nan=False).encode("ascii")
    assert 0 <= status["age_s"] < 60


def test_counters_are_those_of_their_frame():
    frames, counts = NewestFrame(), Counter({"person": 1})
    frames.publish(gray(0), {"class_counts": counts, "lines": {"door": {"in": 1}}})
    counts["person"] += 1
    counts["car"] += 1
    assert frames.status()["counters"]["class_counts"] == {"person": 1}
