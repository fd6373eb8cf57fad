"""BufferedSource: which frames it hands out, in what order, and how it ends."""

import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from common.cli import UserError
from phase3_tracking.inputs.frame_source import BufferedSource, Picture
from phase3_tracking.inputs.source_options import Resize, SourceOptions
from phase3_tracking.inputs.sources import open_source
from tests.phase3_tracking.made_videos import encode, number_in


class MadeUp:
    """A Decoder of `count` grey pictures at 10 frames per second, each as bright as its number.

    Args:
        unreadable: numbers of the pictures that cannot be read.
        fails_at: the number before which reading raises `error`.
        hangs: an event that is waited for before the last picture.
        pause_s: before every picture.
    """

    name, path, audio_path = "made up", None, None
    fps, notes = Fraction(10), ["of the decoder"]

    def __init__(
        self,
        count,
        *,
        live=False,
        unreadable=(),
        fails_at=None,
        hangs=None,
        promised=0,
        pause_s=0.0,
    ):
        self.pause_s = pause_s
        self.count, self.live, self.unreadable = count, live, unreadable
        self.fails_at, self.hangs = fails_at, hangs
        self.frames_promised = promised or None
        self.converted = []
        self.closed = 0
        self.gone_through = 0

    def pictures(self, start_s):
        for index in range(self.count):
            if index == self.fails_at:
                raise MemoryError("no room for a frame")
            if self.hangs and index == self.count - 1:
                self.hangs.wait(20)
            time.sleep(self.pause_s)
            self.gone_through = index + 1
            yield Picture(Fraction(index, 10), index, lambda index=index: self.load(index))

    def load(self, index):
        self.converted.append(index)
        return None if index in self.unreadable else np.full((20, 40, 3), index % 256, np.uint8)

    def cut_short(self):
        return self.gone_through < (self.frames_promised or 0)

    def close(self):
        self.closed += 1


def numbers(source) -> list[int]:
    return [frame.index for frame in source]


def opened(decoder, **options) -> BufferedSource:
    return BufferedSource(decoder, SourceOptions(**options))


def test_every_frame_comes_once_and_in_order():
    decoder = MadeUp(50)
    with opened(decoder, queue_size=2) as source:
        frames = list(source)
        assert list(source) == []  # at its end for good
    assert [frame.index for frame in frames] == list(range(50))
    assert [int(frame.image_bgr[0, 0, 0]) for frame in frames] == list(range(50))
    assert [frame.time_s for frame in frames] == [Fraction(i, 10) for i in range(50)]
    assert (source.frames_read, source.frames_decoded, decoder.closed) == (50, 50, 1)
    assert source.notes == ["of the decoder"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start_s": Fraction(2)}, range(20, 40)),
        ({"end_s": Fraction(2)}, range(20)),
        ({"start_s": Fraction("0.95"), "end_s": Fraction("1.25")}, [10, 11, 12]),
        ({"frame_skip": 7}, range(0, 40, 7)),
        ({"frame_skip": 3, "start_s": Fraction(1)}, range(10, 40, 3)),
        ({"max_frames": 4}, range(4)),
        ({"max_frames": 40}, range(40)),
        ({"max_frames": 3, "frame_skip": 5, "start_s": Fraction(1)}, [10, 15, 20]),
    ],
)
def test_the_options_choose_frames(options, expected):
    with opened(MadeUp(40, promised=40), **options) as source:
        told = source.frames_expected
        assert numbers(source) == list(expected)
    assert told == source.frames_read
    assert source.fps == Fraction(10, options.get("frame_skip", 1))
    assert source.source_fps == 10
    assert not source.truncated


def test_skipped_frames_are_not_converted():
    decoder = MadeUp(40)
    with opened(decoder, frame_skip=8, start_s=Fraction(1)) as source:
        list(source)
    assert decoder.converted == [10, 18, 26, 34]


def test_frames_expected_is_unknown_without_a_promise():
    with opened(MadeUp(9)) as source:
        assert source.frames_expected is None
    with opened(MadeUp(9), max_frames=5) as source:
        assert source.frames_expected == 5


@pytest.mark.parametrize(
    ("resize", "size"), [(Resize(10, 10), (10, 5)), (Resize(80, 80, enlarge=True), (80, 40))]
)
def test_frames_are_resized(resize, size):
    with opened(MadeUp(3), resize=resize) as source:
        assert (source.width, source.height) == size
        assert {frame.image_bgr.shape for frame in source} == {(size[1], size[0], 3)}


def test_unreadable_pictures_are_left_out_and_do_not_count():
    with opened(MadeUp(8, unreadable=(0, 3)), max_frames=4) as source:
        assert numbers(source) == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("options", "truncated"), [({}, True), ({"max_frames": 3}, False), ({"frame_skip": 3}, True)]
)
def test_truncated_only_when_read_to_the_end(options, truncated):
    with opened(MadeUp(9, promised=12), **options) as source:
        list(source)
    assert source.truncated is truncated


@pytest.mark.parametrize(
    ("decoder", "options", "reason"),
    [
        (MadeUp(0), {}, "not one frame"),
        (MadeUp(3, unreadable=(0, 1, 2)), {}, "not one frame"),
        (MadeUp(5), {"start_s": Fraction(1, 2)}, "no frame after --start 0.5"),
        (
            MadeUp(5),
            {"start_s": Fraction("0.11"), "end_s": Fraction("0.19")},
            "no frame (between 0.11 and 0.19|after --start)",
        ),
    ],
)
def test_p3_12_no_frame_is_told_at_once(decoder, options, reason):
    with pytest.raises(UserError, match=f"made up: .*{reason}"):
        opened(decoder, **options)
    assert decoder.closed == 1


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    for taken in range(4):
        decoder = MadeUp(1000)
        with opened(decoder, queue_size=2) as source:
            for _ in zip(range(taken), source, strict=False):
                pass
        assert threading.active_count() == before
        assert (decoder.closed, decoder.gone_through < 10) == (1, True)
        source.close()  # once more does no harm
        assert list(source) == []


def test_an_error_in_the_thread_reaches_the_caller_once():
    decoder = MadeUp(9, fails_at=2)
    with opened(decoder) as source:
        with pytest.raises(MemoryError, match="no room"):
            list(source)
        assert source.frames_read == 2
        assert list(source) == []
    assert decoder.closed == 1


def test_an_error_before_the_first_frame_closes_the_decoder():
    decoder = MadeUp(9, fails_at=0)
    with pytest.raises(MemoryError):
        opened(decoder)
    assert decoder.closed == 1


def test_a_stream_that_hangs_can_be_stopped():
    hangs, stopped = threading.Event(), False
    decoder = MadeUp(3, live=True, hangs=hangs)
    source = BufferedSource(decoder, SourceOptions(), should_stop=lambda: stopped)
    seen = []
    for frame in source:
        seen.append(frame.index)
        stopped = frame.index == 1
    assert seen == [0, 1]  # frames that are there come all the same
    begin = time.monotonic()
    source.close()
    assert time.monotonic() - begin < 15  # the thread is left behind
    hangs.set()


def test_the_way_to_the_start_can_be_stopped():
    asked = iter([False] * 5 + [True] * 99)
    decoder, options = MadeUp(1000), SourceOptions(start_s=Fraction(90))
    with pytest.raises(KeyboardInterrupt):
        BufferedSource(decoder, options, should_stop=lambda: next(asked))
    assert (decoder.gone_through, decoder.closed) == (6, 1)


def test_waiting_frames_are_fewer_when_they_are_large(monkeypatch):
    monkeypatch.setattr("phase3_tracking.inputs.frame_source.QUEUE_BYTES", 1)
    decoder = MadeUp(50)
    with opened(decoder, queue_size=30) as source:
        time.sleep(0.3)
        assert decoder.gone_through <= 5
        assert len(list(source)) == 50


# --- latency mode -----------------------------------------------------------------------------


def test_latency_mode_hands_out_the_newest_and_counts_the_dropped():
    decoder = MadeUp(60, live=True)  # as fast as it can
    with opened(decoder, latency_mode=True) as source:
        seen = []
        for frame in source:
            seen.append(frame.index)
            time.sleep(0.02)
    assert seen == sorted(set(seen))
    assert seen[-1] == 59  # the last one is never dropped
    assert len(seen) + source.frames_dropped == 60
    assert source.frames_dropped > 30
    assert len(decoder.converted) < 30  # nor are dropped ones converted
    assert any(f"{source.frames_dropped} frames were dropped" in note for note in source.notes)


def test_latency_mode_tells_when_a_frame_was_handed_over():
    with opened(MadeUp(5000, live=True, pause_s=0.01), latency_mode=True) as source:
        frames = iter(source)
        for _ in range(3):
            begin = time.perf_counter()
            time.sleep(0.3)  # newer ones take the place of the one that waits
            frame = next(frames)
            assert begin < frame.received_s < time.perf_counter()
    with opened(MadeUp(2)) as source:
        assert [frame.received_s for frame in source] == [None, None]


def test_latency_mode_counts_frames_handed_out():
    decoder = MadeUp(5000, live=True, pause_s=0.01)
    with opened(decoder, latency_mode=True, max_frames=3) as source:
        time.sleep(0.1)  # several are dropped meanwhile
        assert len(list(source)) == 3
    assert 3 < decoder.gone_through < 1000


def test_latency_mode_plays_a_file_in_real_time(tmp_path: Path):
    path = encode(tmp_path / "a.mp4", 10, fps=20)
    with open_source(path, SourceOptions(latency_mode=True)) as source:
        time.sleep(0.3)  # loading a model: playing begins with the first request
        begin = time.monotonic()
        for frame in source:
            assert number_in(frame.image_bgr) == frame.index
            assert time.monotonic() - begin >= float(frame.time_s) - 0.01
    assert source.frames_read + source.frames_dropped == 10


def test_latency_mode_of_a_file_drops_what_a_slow_caller_misses(tmp_path: Path):
    path = encode(tmp_path / "a.mp4", 30, fps=50)
    with open_source(path, SourceOptions(latency_mode=True)) as source:
        for _ in source:
            time.sleep(0.1)
    assert source.frames_dropped >= 15
    assert source.frames_read + source.frames_dropped == 30
    assert not source.truncated


def test_leaving_latency_mode_before_the_first_frame_ends_the_thread(tmp_path: Path):
    before = threading.active_count()
    with open_source(encode(tmp_path / "a.mp4", 30), SourceOptions(latency_mode=True)):
        pass
    assert threading.active_count() == before
