"""VideoReader: what it reads, what it says about it, and what it refuses."""

import os
import threading
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from common.cli import UserError
from phase3_tracking.video_io import VideoReader
from tests.phase3_tracking.video_files import HEIGHT, WIDTH, frame, write_video

ROOT = Path(__file__).resolve().parents[2]
TRUNCATED = ROOT.parent / "shared" / "data" / "video" / "person-bicycle-car-detection.mp4"


def test_every_frame_comes_once_and_in_order(tmp_path):
    with VideoReader(write_video(tmp_path / "a.mp4", 30), queue_size=2) as reader:
        frames = list(reader)
        assert list(reader) == []  # at its end for good
    assert len(frames) == reader.frames_read == reader.frames_promised == 30
    assert (reader.width, reader.height, reader.truncated) == (WIDTH, HEIGHT, False)
    assert reader.decode_seconds > 0
    for index, decoded in enumerate(frames):
        assert decoded.dtype == np.uint8
        assert np.abs(decoded.astype(int) - frame(index)).mean() < 6  # lossy, but this very frame


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(24000, 1001), 25, Fraction(25, 2)])
def test_exact_frame_rate(tmp_path, fps):
    with VideoReader(write_video(tmp_path / "a.mp4", 5, fps=Fraction(fps))) as reader:
        assert reader.fps == fps


def test_rounded_ntsc_rate_of_an_avi(tmp_path):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 29.97, (WIDTH, HEIGHT))
    for index in range(4):
        writer.write(frame(index))
    writer.release()
    with VideoReader(path) as reader:
        assert reader.fps == Fraction(30000, 1001)
        assert len(list(reader)) == 4


def test_webm(tmp_path):
    path = tmp_path / "a.webm"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"VP80"), 10, (WIDTH, HEIGHT))
    for index in range(15):
        writer.write(frame(index))
    writer.release()
    with VideoReader(path) as reader:
        assert len(list(reader)) == 15
        assert not reader.truncated


def test_max_frames(tmp_path):
    with VideoReader(write_video(tmp_path / "a.mp4"), max_frames=5) as reader:
        assert len(list(reader)) == 5
        assert not reader.truncated


@pytest.mark.parametrize("size", [(95, 63), (1, 1)])
def test_odd_and_tiny_sizes(tmp_path, size):
    width, height = size
    image = np.full((height, width, 3), 99, np.uint8)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert [decoded.tolist() for decoded in reader] == [image.tolist()] * 2
    assert (reader.width, reader.height) == size


@pytest.mark.skipif(not TRUNCATED.is_file(), reason="the shared test data is not here")
def test_a_truncated_video_is_read_as_far_as_it_goes():
    with VideoReader(TRUNCATED) as reader:
        assert sum(1 for _ in reader) == 459
    assert (reader.frames_promised, reader.truncated) == (467, True)
    assert reader.fps == 12


def test_half_a_file_is_told(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 40).read_bytes()  # fast start: the header is first
    half = tmp_path / "half.mp4"
    half.write_bytes(whole[: len(whole) * 9 // 10])
    with VideoReader(half) as reader:
        frames = sum(1 for _ in reader)
    assert 0 < frames < 40
    assert reader.frames_promised == 40
    assert reader.truncated


def test_leaving_early_ends_the_thread(tmp_path):
    path = write_video(tmp_path / "a.mp4", 40)
    before = threading.active_count()
    for taken in range(4):
        with VideoReader(path, queue_size=2) as reader:
            for _ in zip(range(taken), reader, strict=False):
                pass
        assert threading.active_count() == before
        reader.close()  # once more does no harm
    assert list(reader) == []


def test_an_error_in_the_thread_reaches_the_caller(tmp_path, monkeypatch):
    class Broken:  # a subclass of OpenCV's own class would crash the interpreter when freed
        def __init__(self, *source):
            self.capture, self.reads = capture_type(*source), 0

        def __getattr__(self, name):
            return getattr(self.capture, name)

        def read(self):
            self.reads += 1
            if self.reads > 2:
                raise MemoryError("no room for a frame")
            return self.capture.read()

    capture_type = cv2.VideoCapture
    monkeypatch.setattr("phase3_tracking.video_io.cv2.VideoCapture", Broken)
    with VideoReader(write_video(tmp_path / "a.mp4")) as reader:
        with pytest.raises(MemoryError, match="no room"):
            list(reader)
        assert reader.frames_read == 2


def test_names_with_spaces_percent_and_other_scripts(tmp_path):
    path = write_video(tmp_path / "-straße 100%03d 日本.mp4", 3)
    with VideoReader(path) as reader:
        assert len(list(reader)) == 3


def unreadable(folder: Path, kind: str) -> Path:
    path = folder / "bad.mp4"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("frame,id,x,y\n" * 50)
    elif kind == "picture":
        path.write_bytes(cv2.imencode(".jpg", np.zeros((20, 20, 3), np.uint8))[1].tobytes())
    elif kind == "header at the end, cut":
        whole = folder / "whole.mov"
        writer = cv2.VideoWriter(str(whole), cv2.VideoWriter_fourcc(*"mp4v"), 10, (WIDTH, HEIGHT))
        for index in range(20):
            writer.write(frame(index))
        writer.release()
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    elif kind == "pipe":
        os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "no such file"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("empty", "is empty"),
        ("text", "damaged or holds no video"),
        ("picture", "is a picture"),
        ("header at the end, cut", "damaged or holds no video"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path, kind, reason):
    path = unreadable(tmp_path, kind)
    with pytest.raises(UserError, match=reason) as error:
        VideoReader(path)
    assert str(path) in str(error.value)
