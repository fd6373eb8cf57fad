"""The finished file: sound kept and in its place, every frame there."""

import cProfile
import pstats
from collections.abc import Callable
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from common import video, video_remux
from common.cli import UserError
from common.video import VideoWriter
from common.video_remux import AudioRange, remux

RATE = 48000


def loudness(t: float) -> float:
    """Of the made sound at `t` seconds: another one in every half second."""
    return 0.05 + 0.05 * (int(2 * t) % 10)


def clip(path: Path, seconds: float, codec: Any, *, video_from_s: float = 0) -> Path:
    """A video of 10 frames per second with a tone whose loudness tells the time.

    Args:
        video_from_s: when the first frame is shown, in the times of the file.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(codec, rate=RATE, layout="mono")
        for index in range(int(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="bgr24")
            frame.pts = index + round(10 * video_from_s)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for packet in tone(sound, seconds):
            container.mux(packet)
    return path


def tone(stream: Any, seconds: float):
    kind = "s16" if stream.codec_context.name in ("pcm_s16le", "flac") else "fltp"
    for start in range(0, int(seconds * RATE), 960):
        t = (start + np.arange(960)) / RATE
        wave = np.array([loudness(value) for value in t]) * np.sin(2 * np.pi * 1000 * t)
        samples = (wave * 32767).astype(np.int16) if kind == "s16" else wave.astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples[None], format=kind, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def sound_of(path: Path) -> tuple[str, Callable[[float], float], float]:
    """Codec, loudness at a time, and the end in seconds."""
    pieces: list[tuple[float, np.ndarray]] = []
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        codec = stream.codec_context.name
        resampler = av.AudioResampler("flt", "mono", RATE)
        for frame in container.decode(stream):
            for mono in resampler.resample(frame):
                pieces.append((float(mono.time), mono.to_ndarray()[0]))

    def at(t: float) -> float:
        near = np.concatenate([p for s, p in pieces if s - 0.06 <= t <= s + 0.06])
        return float(near.max())

    start, last = pieces[-1]
    return codec, at, start + len(last) / RATE


def write(path: Path, source: Path, *, first: int, count: int, timed: bool = True) -> VideoWriter:
    """Frames `first`, ... of a video of 10 frames per second."""
    with VideoWriter(path, 64, 48, Fraction(10), audio_from=source) as writer:
        for index in range(first, first + count):
            frame = np.full((48, 64, 3), index % 250, np.uint8)
            writer.write(frame, Fraction(index, 10) if timed else None)
    return writer


@pytest.mark.parametrize(
    ("name", "codec", "kept"),
    [
        ("a.mp4", "aac", "copied"),
        ("a.mkv", "libopus", "copied"),
        ("a.mp4", "libmp3lame", "copied"),
        ("a.mkv", "ac3", "copied"),
        ("a.mkv", "flac", "copied"),
        ("a.avi", "pcm_s16le", "encoded again as aac"),
    ],
)
@pytest.mark.parametrize("first", [0, 17])
def test_sound_stays_with_its_frames_and_ends_with_them(tmp_path, name, codec, kept, first):
    source = clip(tmp_path / name, 5, codec)
    writer = write(tmp_path / "out.mp4", source, first=first, count=22)
    assert writer.audio_kept is not None
    assert writer.audio_kept.endswith(kept)
    assert writer.notes == []
    found, loudness_at, end = sound_of(tmp_path / "out.mp4")
    assert kept == "copied" or found == "aac"
    assert end == pytest.approx(2.2, abs=0.1)
    _, of_source, _ = sound_of(source)
    for t in (0.25, 0.6, 1.0, 1.45, 1.9):
        if abs((2 * (t + first / 10)) % 1 - 0.5) < 0.3:  # not near a change of loudness
            assert loudness_at(t) == pytest.approx(of_source(t + first / 10), abs=0.035)


def test_without_times_the_sound_begins_with_the_first_frame(tmp_path):
    source = clip(tmp_path / "a.mp4", 4, "aac")
    write(tmp_path / "out.mp4", source, first=0, count=15, timed=False)
    _, loudness_at, end = sound_of(tmp_path / "out.mp4")
    assert end == pytest.approx(1.5, abs=0.1)
    assert loudness_at(0.75) == pytest.approx(loudness(0.75), abs=0.035)


def test_a_video_that_begins_after_its_sound(tmp_path):
    source = clip(tmp_path / "a.mkv", 4, "libopus", video_from_s=1.5)
    write(tmp_path / "out.mp4", source, first=0, count=15)
    _, loudness_at, _ = sound_of(tmp_path / "out.mp4")
    for t in (0.25, 0.75, 1.25):
        assert loudness_at(t) == pytest.approx(loudness(t + 1.5), abs=0.035)


def test_a_source_without_sound_gives_none(tmp_path):
    write(tmp_path / "silent.mp4", tmp_path / "absent.mp4", first=0, count=3)
    writer = write(tmp_path / "out.mp4", tmp_path / "silent.mp4", first=0, count=3)
    assert (writer.audio_kept, writer.notes) == (None, [])
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio


def test_sound_shorter_than_the_frames_ends_earlier(tmp_path):
    source = clip(tmp_path / "a.mp4", 1, "aac")
    write(tmp_path / "out.mp4", source, first=0, count=30)
    assert sound_of(tmp_path / "out.mp4")[2] == pytest.approx(1, abs=0.1)
    assert video_remux.check_video(tmp_path / "out.mp4") == 30


@pytest.mark.parametrize("kind", ["absent", "text"])
def test_sound_that_cannot_be_read_is_noted_and_the_video_kept(tmp_path, kind):
    source = tmp_path / "a.mp4"
    if kind == "text":
        source.write_text("text")
    writer = write(tmp_path / "out.mp4", source, first=0, count=12)
    assert writer.audio_kept is None
    (note,) = writer.notes
    assert note.startswith("the sound could not be kept")
    assert video_remux.check_video(tmp_path / "out.mp4") == 12


def test_sound_of_a_file_cut_short_is_kept_as_far_as_it_goes(tmp_path):
    whole = clip(tmp_path / "a.mkv", 5, "libopus").read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
    write(tmp_path / "out.mp4", tmp_path / "half.mkv", first=0, count=50)
    assert 1 < sound_of(tmp_path / "out.mp4")[2] < 4


def test_equal_input_gives_equal_bytes_with_sound_and_times(tmp_path):
    source = clip(tmp_path / "a.mp4", 3, "aac")
    for name in ("1.mp4", "2.mp4"):
        write(tmp_path / name, source, first=5, count=20)
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "2.mp4").read_bytes()


def test_p3_32_a_file_that_lacks_frames_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "out.mp4").write_bytes(b"older")
    whole = video_remux._moved_to_zero

    def losing(packets, last_ticks):
        for number, packet in enumerate(whole(packets, last_ticks)):
            if number != 7:
                yield packet

    monkeypatch.setattr(video_remux, "_moved_to_zero", losing)
    with pytest.raises(UserError, match="holds 11 of 12 frames after writing"):
        write(tmp_path / "out.mp4", tmp_path / "absent.mp4", first=0, count=12)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"older"


def test_p3_32_another_encoder_is_announced_and_plays(tmp_path, monkeypatch):
    without = {name: options for name, options in video.ENCODERS.items() if name == "libvpx-vp9"}
    monkeypatch.setattr(video, "ENCODERS", {"absent": {}, **without})
    writer = write(tmp_path / "out.mp4", tmp_path / "absent.mp4", first=0, count=5)
    assert any("encoded by libvpx-vp9" in note for note in writer.notes)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "vp9"
        assert sum(1 for _ in container.decode(video=0)) == 5
    monkeypatch.setattr(video, "ENCODERS", {"absent": {}})
    with pytest.raises(UserError, match="can encode neither"):
        write(tmp_path / "other.mp4", tmp_path / "absent.mp4", first=0, count=1)
    assert not list(tmp_path.glob("other*"))


# --- times as whole numbers ---------------------------------------------------------------------


def packets_of(path: Path, kind: str) -> list[tuple[Fraction, Fraction, Fraction, bytes]]:
    """Presentation and decoding time and duration in seconds, and the bytes, of every packet."""
    with av.open(str(path)) as container:
        return [
            (
                packet.pts * packet.time_base,
                packet.dts * packet.time_base,
                packet.duration * packet.time_base,
                bytes(packet),
            )
            for packet in container.demux(container.streams.best(kind))
            if packet.size
        ]


@pytest.fixture
def taken(monkeypatch) -> list[tuple[Fraction, str]]:
    """(time by the packet itself in seconds, kind) in the order in which packets are written."""
    order: list[tuple[Fraction, str]] = []

    def noted(*streams, key):
        for number, packet in merge(*streams, key=key):
            order.append((packet.dts * packet.time_base, packet.stream.type))
            yield number, packet

    monkeypatch.setattr(video_remux, "merge", noted)
    return order


RANGES = [(Fraction(0), Fraction(9)), (Fraction(1, 3), Fraction(2)), (Fraction(1001, 700), 1)]


@pytest.mark.parametrize(("start", "length"), RANGES)
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus")])
def test_packets_are_those_that_exact_seconds_choose(tmp_path, taken, start, length, name, codec):
    """The rules in fractions of a second, packet by packet, as the oracle of whole ticks."""
    source = clip(tmp_path / name, 3, codec)
    write(tmp_path / "plain.mp4", tmp_path / "absent.mp4", first=0, count=25)
    taken.clear()
    notes, kept = remux(
        *(tmp_path / "plain.mp4", tmp_path / "out.mp4", Fraction(10)),
        AudioRange(source, start, length),
    )
    assert (notes, kept is not None) == ([], True)
    sound = packets_of(source, "audio")
    zero = packets_of(source, "video")[0][0] + start
    heard = [one for one in sound if one[0] + one[2] > zero and one[0] < zero + length]
    written = packets_of(tmp_path / "out.mp4", "audio")
    assert [one[3] for one in written] == [one[3] for one in heard]
    pictures = [(one[1], "video") for one in packets_of(tmp_path / "plain.mp4", "video")]
    assert [one for one in taken if one[1] == "video"] == pictures
    of_sound = [time for time, kind in taken if kind == "audio"]
    half_tick = Fraction(1, 2 * 1000 if name == "a.mkv" else 2 * RATE)
    assert all(
        abs(time - (one[1] - zero)) <= half_tick for time, one in zip(of_sound, heard, strict=True)
    )
    exact = merge(pictures, [(one[0] - zero, "audio") for one in heard], key=lambda timed: timed[0])
    assert [kind for _, kind in exact] == [kind for _, kind in taken]


def test_sound_that_is_encoded_again_is_written_in_the_order_of_its_times(tmp_path, taken):
    source = clip(tmp_path / "a.avi", 3, "pcm_s16le")
    write(tmp_path / "out.mp4", source, first=3, count=22)
    assert {kind for _, kind in taken} == {"audio", "video"}
    assert taken == sorted(taken, key=lambda timed: timed[0])


def test_times_of_packets_are_not_computed_as_fractions(tmp_path):
    """As many calls into `fractions` for a hundred frames as for ten."""

    def calls(frames: int) -> int:
        plain = tmp_path / "plain.mp4"
        write(plain, tmp_path / "absent.mp4", first=0, count=frames)
        audio = AudioRange(source, Fraction(1, 3), Fraction(frames, 10))
        with cProfile.Profile() as profile:
            remux(plain, tmp_path / "out.mp4", Fraction(10), audio)
            remux(plain, tmp_path / "silent.mp4", Fraction(10), None)
        found: dict[tuple[str, int, str], tuple[int, ...]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
        return sum(one[1] for key, one in found.items() if key[0].endswith("fractions.py"))

    source = clip(tmp_path / "a.mp4", 11, "aac")
    assert 0 < calls(10) == calls(100)
