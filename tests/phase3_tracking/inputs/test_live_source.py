"""Camera and NetworkStream behind open_source: what comes, what breaks, and how it is told."""

import re
import time
from fractions import Fraction

import cv2
import numpy as np
import pytest

from common.cli import UserError
from phase3_tracking.inputs.source_options import NetworkLimits, SourceOptions
from phase3_tracking.inputs.sources import open_source
from tests.phase3_tracking.made_videos import encode, number_in, picture
from tests.phase3_tracking.video_servers import Temper, http_server, rtsp_server, silent_server

FAST = NetworkLimits(connect_s=2.0, read_s=1.0, reconnects=3, backoff_s=0.02)
NOISE = np.random.default_rng(0).integers(0, 255, (72, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Bytes of a video of 40 noisy frames, by container."""
    folder = tmp_path_factory.mktemp("videos")
    images = [np.where(picture(i) > 100, picture(i), NOISE // 4) for i in range(40)]
    fast_start = {"movflags": "+faststart"}
    options = {"g": "10"}
    mp4 = encode(folder / "a.mp4", images=images, container_options=fast_start, options=options)
    stream = encode(folder / "a.ts", images=images, options=options)
    return {"mp4": mp4.read_bytes(), "ts": stream.read_bytes()}


def opened(url: str, **options):
    return open_source(url, SourceOptions(network=FAST, **options))


def read(url: str, **options):
    with opened(url, **options) as source:
        return list(source), source


# --- addresses --------------------------------------------------------------------------------


def test_p3_22_a_file_over_http_just_ends(videos):
    with http_server(Temper(videos["mp4"])) as url:
        frames, source = read(url)
    assert [number_in(frame.image_bgr) for frame in frames] == list(range(40))
    assert [frame.time_s for frame in frames] == [Fraction(i, 10) for i in range(40)]
    assert (source.live, source.truncated, source.frames_promised) == (False, False, 40)
    assert (source.notes, source.path, source.audio_path) == ([], None, None)


def test_p3_22_options_apply_to_addresses(videos):
    with http_server(Temper(videos["mp4"])) as url:
        frames, _ = read(url, start_s=Fraction(2), end_s=Fraction(3), frame_skip=4)
    assert [number_in(frame.image_bgr) for frame in frames] == [20, 24, 28]
    assert [frame.index for frame in frames] == [20, 24, 28]


def test_p3_22_a_broken_connection_goes_on_where_it_broke(videos):
    content = videos["mp4"]
    with http_server(Temper(content, breaks=[len(content) // 2, len(content) // 3])) as url:
        frames, source = read(url)
    assert [number_in(frame.image_bgr) for frame in frames] == list(range(40))
    times = [frame.time_s for frame in frames]
    assert times == [Fraction(i, 10) for i in range(40)]
    assert not source.truncated
    assert any("connection was made again" in note for note in source.notes)


def test_p3_22_a_connection_that_stays_broken_is_given_up_and_told(videos):
    content = videos["mp4"]
    temper = Temper(content, breaks=[len(content) // 2], refuses_after=1)
    with http_server(temper) as url:
        frames, source = read(url)
    assert [number_in(frame.image_bgr) for frame in frames] == list(range(len(frames)))
    assert 5 < len(frames) < 40
    assert source.truncated
    assert "the connection was lost; 3 attempts to make it again failed" in source.notes


def test_p3_22_a_server_that_stops_sending_is_not_waited_for(videos):
    content = videos["mp4"]
    temper = Temper(content, breaks=[len(content) // 2], hangs=True, refuses_after=1)
    begin = time.monotonic()
    with http_server(temper) as url:
        frames, source = read(url)
    assert time.monotonic() - begin < 15
    assert 5 < len(frames) < 40
    assert source.truncated


def test_p3_22_a_stream_over_http_is_live_and_connected_again(videos):
    content = videos["ts"]
    half = len(content) // 2 // 188 * 188
    temper = Temper(content, seekable=False, breaks=[half], refuses_after=2)
    with http_server(temper) as url:
        frames, source = read(url)
    assert (source.live, source.frames_promised) == (True, None)
    assert 50 <= len(frames) <= 60  # half of the stream, and the whole of it
    assert [frame.index for frame in frames] == list(range(len(frames)))
    times = [frame.time_s for frame in frames]
    assert times == sorted(set(times))
    assert "the connection was made again 1 times" in source.notes
    assert source.truncated  # and lost in the end


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_p3_22_a_server_that_says_nothing_is_one_line(scheme):
    begin = time.monotonic()
    with silent_server() as port, pytest.raises(UserError, match="no answer") as error:
        opened(f"{scheme}://name:word@127.0.0.1:{port}/live?key=secret")
    assert time.monotonic() - begin < 10
    assert "word" not in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp"])
def test_p3_22_nobody_there_is_one_line(scheme):
    with silent_server() as port:
        pass  # the port is free again
    with pytest.raises(UserError, match="cannot be opened") as error:
        opened(f"{scheme}://127.0.0.1:{port}/a.mp4")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"<html>no video</html>" * 99, b"", b"#EXTM3U\nfile:/x\n"])
def test_p3_22_an_address_of_something_else_is_one_line(content):
    with http_server(Temper(content)) as url, pytest.raises(UserError, match=r"127\.0\.0\.1"):
        opened(url)


def test_p3_17_a_camera_that_comes_back_with_another_size(videos, tmp_path):
    content, images = videos["ts"], [picture(index, 192, 144) for index in range(20)]
    later = encode(tmp_path / "b.ts", images=images, size=(192, 144)).read_bytes()
    half = len(content) // 2 // 188 * 188
    temper = Temper(content, seekable=False, breaks=[half], refuses_after=2, later=later)
    with http_server(temper) as url:
        frames, source = read(url)
    assert {frame.image_bgr.shape for frame in frames} == {(72, 128, 3)}
    assert (source.width, source.height) == (128, 72)
    assert any(re.search(r"changes; \d+ frames were rescaled to 128x72", n) for n in source.notes)
    assert len(frames) > 30
    assert frames[-1].image_bgr[60, 100, 1] == pytest.approx(90, abs=6)  # not cropped, nor padded
    assert frames[-1].image_bgr[60, 20, 1] == pytest.approx(40, abs=6)


def test_p3_22_frame_numbers_grow_when_a_file_of_a_variable_rate_breaks_off(tmp_path):
    """The first half at 50, the second at 5 frames per second: 9.1 on the average."""
    times = [2 * index if index < 20 else 40 + 20 * (index - 20) for index in range(40)]
    images = [np.where(picture(i) > 100, picture(i), NOISE // 4) for i in range(40)]
    content = encode(
        tmp_path / "a.mp4",
        images=images,
        times=times,
        time_base=Fraction(1, 100),
        options={"g": "10"},
        container_options={"movflags": "+faststart"},
    ).read_bytes()
    with http_server(Temper(content, breaks=[len(content) * 2 // 3])) as url:
        frames, source = read(url)
    assert any("connection was made again" in note for note in source.notes)
    assert [number_in(frame.image_bgr) for frame in frames] == list(range(40))
    assert [frame.index for frame in frames] == list(range(40))


def test_p3_22_rtsp_is_read_and_connected_again(tmp_path):
    images = [picture(index) for index in range(20)]
    with rtsp_server(images, tmp_path, sessions=[20, 20]) as url:
        frames, source = read(url)
    assert (source.live, source.fps) == (True, 20)
    seen = [number_in(frame.image_bgr) for frame in frames]
    assert seen[:10] == list(range(seen[0], seen[0] + 10))
    assert len(frames) >= 30
    times = [frame.time_s for frame in frames]
    assert times == sorted(set(times))
    assert "the connection was made again 1 times" in source.notes
    assert source.name.startswith("rtsp://127.0.0.1:")


def test_closing_does_not_wait_for_the_network(videos):
    content = videos["ts"]
    temper = Temper(content, seekable=False, breaks=[len(content) * 3 // 4], hangs=True)
    slow = NetworkLimits(connect_s=5.0, read_s=20.0)
    with http_server(temper) as url:
        stopped = False
        source = open_source(url, SourceOptions(network=slow), should_stop=lambda: stopped)
        begin = time.monotonic()
        for frame in source:
            stopped = frame.index >= 5  # what is there still comes, then it is noticed
        assert time.monotonic() - begin < 10
        source.close()


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_connecting_can_be_stopped(scheme):
    slow, begin = NetworkLimits(connect_s=20.0, read_s=20.0), time.monotonic()
    with silent_server() as port, pytest.raises(KeyboardInterrupt):
        open_source(
            f"{scheme}://127.0.0.1:{port}/live",
            SourceOptions(network=slow),
            should_stop=lambda: time.monotonic() - begin > 0.3,
        )
    assert time.monotonic() - begin < 10


def test_waiting_for_the_first_frame_can_be_stopped(videos):
    """Of a server that says what is to come, and then nothing."""
    slow, begin = NetworkLimits(connect_s=20.0, read_s=20.0), time.monotonic()
    with http_server(Temper(videos["mp4"], breaks=[3000], hangs=True)) as url:
        with pytest.raises(KeyboardInterrupt):
            open_source(
                url,
                SourceOptions(network=slow),
                should_stop=lambda: time.monotonic() - begin > 0.5,
            )
        assert time.monotonic() - begin < 10


def test_an_address_that_is_watched_while_it_opens_fails_in_one_line(videos):
    with http_server(Temper(b"no video")) as url, pytest.raises(UserError, match="127"):
        open_source(url, SourceOptions(network=FAST), should_stop=lambda: False)


# --- cameras ----------------------------------------------------------------------------------


class MadeUpCamera:
    """In the place of cv2.VideoCapture: `count` pictures, with some failed reads in between."""

    count, fps, there = 8, 25.0, True

    def __init__(self, number: int):
        self.number, self.reads, self.released = number, 0, False

    def isOpened(self) -> bool:  # noqa: N802 – OpenCV's name
        return self.there

    def get(self, _: int) -> float:
        return self.fps

    def read(self):
        self.reads += 1
        index = self.reads - 1 - self.reads // 4  # every fourth read fails
        if self.reads % 4 == 0 or index >= self.count:
            return False, None
        return True, picture(index)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def camera(monkeypatch):
    class One(MadeUpCamera):
        pass

    monkeypatch.setattr(cv2, "VideoCapture", One)
    monkeypatch.setattr("phase3_tracking.inputs.live_source.READ_PAUSE_S", 0.001)
    return One


def test_a_camera_gives_frames_until_it_is_unplugged(camera):
    frames, source = read("0")
    assert [number_in(frame.image_bgr) for frame in frames] == list(range(8))
    times = [frame.time_s for frame in frames]
    assert times[0] == 0
    assert times == sorted(set(times))
    assert (source.live, source.fps, source.name) == (True, 25, "camera 0")
    assert source.truncated
    assert source.notes == ["stopped answering after 8 frames"]


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), 1e5])
def test_p3_14_a_camera_without_a_rate(camera, fps):
    camera.fps = fps
    frames, source = read("3", max_frames=5)
    assert (len(frames), source.fps, source.truncated) == (5, 30, False)
    assert source.notes == ["tells no frame rate; 30 was taken (see --fps)"]
    assert read("3", fps=Fraction(15), max_frames=2)[1].fps == 15


@pytest.mark.parametrize("text", ["0", "7", "99999999999999999999"])
def test_p3_21_an_absent_camera_is_one_line(camera, text):
    camera.there = False
    with pytest.raises(UserError, match=f"camera {text}: is not there"):
        open_source(text)


def test_p3_21_opencv_says_nothing_of_an_absent_camera(capfd):
    with pytest.raises(UserError, match="camera 98: is not there"):
        open_source("98")
    assert capfd.readouterr() == ("", "")
