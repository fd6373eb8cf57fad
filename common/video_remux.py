"""From the fragments of a video to the file to keep: index in front, sound added, nothing lost.

Packets are copied, not encoded again, but for sound that an mp4 cannot hold.
"""

import contextlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from math import ceil, floor, lcm
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import av

from common.artifacts import DISK_ERRORS

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

# What an mp4 can hold and browsers or common players know; the rest becomes AAC.
COPIED_AUDIO = {"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}

AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}  # channels: their usual names

BOX_HEAD = struct.Struct(">I4s")  # of a part of an mp4: bytes with this head, and what it is

TimedPacket = tuple[int, av.Packet]  # decoding time in a common time base, and the packet


@dataclass(frozen=True)
class AudioRange:
    """The sound of `path` from `start_s` on, in seconds after its first frame, for `length_s`."""

    path: Path
    start_s: Fraction
    length_s: Fraction


def remux(
    partial: Path, output: Path, fps: Fraction, audio: AudioRange | None
) -> tuple[list[str], str | None]:
    """Writes the packets of `partial`, with the sound if there is any, to the mp4 `output`.

    Args:
        fps: the last frame is shown for 1 / fps.

    Returns:
        One-line remarks, and how the sound was kept, None when there is none.

    Raises:
        OSError: what the file system says of `output`.
    """
    if audio is None:
        _write(partial, output, fps, None)
        return [], None
    try:
        with _opened(audio.path) as source:
            if not source.streams.audio:
                _write(partial, output, fps, None)
                return [], None
            track = _AudioTrack(source, audio)
            _write(partial, output, fps, track)
            return track.notes, track.kept
    except av.FFmpegError as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        _write(partial, output, fps, None)
        return [f"the sound could not be kept ({error.strerror})"], None


def check_video(path: Path) -> int:
    """Opens the video as a player does, decodes its first frame and counts those that are whole."""
    with _opened(path) as container:
        if next(container.decode(video=0), None) is None:
            return 0
    with _opened(path) as container:
        packets = filter(lambda packet: packet.size, container.demux(video=0))
        return sum(1 for packet in packets if not packet.is_discard and not packet.is_corrupt)


def cut_to_fragments(path: Path) -> None:
    """Cuts off what follows the last whole fragment of an mp4 that ends in a part of one, where a
    player would stop with an error."""
    size, position, end = path.stat().st_size, 0, 0
    with open(path, "r+b") as file:
        while position + BOX_HEAD.size <= size:
            file.seek(position)
            length, kind = BOX_HEAD.unpack(file.read(BOX_HEAD.size))
            if length < BOX_HEAD.size or position + length > size:
                break
            position += length
            if kind == b"mdat":  # the pictures, after the box that tells of them
                end = position
        if position < size:
            file.truncate(end)


def _opened(path: Path) -> "InputContainer":
    options = {"protocol_whitelist": "file"}
    return av.open(f"file:{path}", metadata_errors="replace", container_options=options)


def _write(partial: Path, output: Path, fps: Fraction, track: "_AudioTrack | None") -> None:
    options = {"movflags": "+faststart"}
    with (
        _opened(partial) as source,
        av.open(f"file:{output}", "w", format="mp4", options=options) as container,
    ):
        original = source.streams.video[0]
        stream = container.add_stream_from_template(original)
        stream.time_base = original.time_base
        base = original.time_base
        assert base is not None
        pictures = _moved_to_zero(source.demux(original), round(1 / fps / base))
        if track is None:
            for packet in pictures:
                packet.stream = stream
                container.mux(packet)
            return
        scale = lcm(base.denominator, track.scale)  # ticks per second: every time is a whole number
        sound = track.packets(container, scale)
        for _, packet in merge(_timed(pictures, stream, base, scale), sound, key=itemgetter(0)):
            container.mux(packet)


def _moved_to_zero(packets: Iterator[av.Packet], last_ticks: int) -> Iterator[av.Packet]:
    """The packets, moved so that the first picture is shown at 0: fragments begin later, as they
    have no negative times for what is decoded ahead of being shown.

    An mp4 is as long as its decoding times are. When frames come unevenly these end before the
    last picture, which a player would then leave out, so the last packet makes up for it.
    """
    first: tuple[int, int] | None = None
    end = 0
    held: av.Packet | None = None
    for packet in packets:
        if not packet.size or packet.pts is None or packet.dts is None:
            continue  # the last one only says that it was the last
        if held is not None:
            yield held
        first = first or (packet.pts, packet.dts)
        packet.pts -= first[0]
        packet.dts -= first[0]
        end = max(end, packet.pts + last_ticks)
        held = packet
    if held is not None and held.dts is not None and first is not None:
        held.duration = end - (held.dts - (first[1] - first[0]))
        yield held


class _AudioTrack:
    """The sound of a file, cut and moved to the times of the output.

    Attributes:
        kept: how; notes: remarks. Complete when the packets have been taken.
        scale: ticks per second in which the times of all packets are whole numbers.
    """

    def __init__(self, source: "InputContainer", audio: AudioRange):
        self.notes: list[str] = []
        self._source = source
        best = source.streams.best("audio")
        self._stream: AudioStream = next(
            (stream for stream in source.streams.audio if stream is best), source.streams.audio[0]
        )
        self._base = self._stream.time_base or Fraction(1)
        self._zero_s = audio.start_s + _start_of_video(source)
        self._length_s = audio.length_s
        self._name = self._stream.codec_context.name
        self._copies = self._stream.codec_context.codec.canonical_name in COPIED_AUDIO
        # AVI and WAV tell the number of channels, but not which they are
        self._rate = self._stream.rate if self._stream.rate in AAC_RATES else 48000
        self._layout = LAYOUTS.get(self._stream.codec_context.channels, "stereo")
        self.scale = self._rate
        if self._copies:
            self.scale = lcm(self._base.denominator, self._zero_s.denominator)
        self.kept: str | None = None

    def packets(self, container: "OutputContainer", scale: int) -> Iterator[TimedPacket]:
        """In the order of their times, which are given in a multiple `scale` of `self.scale`."""
        if self._copies:
            return self._copied(container.add_stream_from_template(self._stream), scale)
        stream = container.add_stream("aac", rate=self._rate, layout=self._layout)
        return _timed(self._encoded(stream), stream, Fraction(1, self._rate), scale)

    def _demuxed(self) -> Iterator[av.Packet]:
        """Packets as far as the file can be read."""
        if self._zero_s > 1:
            with contextlib.suppress(av.FFmpegError):  # where that cannot be done, from the start
                self._source.seek(int((self._zero_s - 1) * av.time_base))
        try:
            yield from self._source.demux(self._stream)
        except (av.FFmpegError, OSError):
            self.notes.append("the sound ends early, where the input is damaged")

    def _copied(self, stream: "AudioStream", scale: int) -> Iterator[TimedPacket]:
        """Packets any part of which is heard; the muxer hides what comes before 0."""
        zero = self._zero_s / self._base
        from_tick, moved = floor(zero), round(zero)
        end_tick = ceil((self._zero_s + self._length_s) / self._base)
        ticks, offset = _whole(self._base * scale), _whole(self._zero_s * scale)
        for packet in self._demuxed():
            pts, dts = packet.pts, packet.dts
            if not packet.size or pts is None or dts is None:
                continue
            if pts + (packet.duration or 0) <= from_tick:
                continue
            if pts >= end_tick:
                return
            packet.pts, packet.dts = pts - moved, dts - moved
            packet.stream = stream
            self.kept = f"{self._name}, copied"
            yield pts * ticks - offset, packet

    def _encoded(self, stream: "AudioStream") -> Iterator[av.Packet]:
        context = stream.codec_context
        resampler = av.AudioResampler("fltp", stream.layout, stream.rate)
        for frame in self._decoded():
            position_s = (frame.pts or 0) * (frame.time_base or Fraction(1)) - self._zero_s
            if position_s < 0:
                continue
            if position_s >= self._length_s:
                break
            frame.pts, frame.time_base = round(position_s * frame.rate), Fraction(1, frame.rate)
            self.kept = f"{self._name}, encoded again as aac"
            for resampled in resampler.resample(frame):
                yield from context.encode(resampled)
        if self.kept:
            yield from context.encode(None)

    def _decoded(self) -> Iterator[av.AudioFrame]:
        damaged = 0
        for packet in self._demuxed():
            try:
                yield from self._stream.codec_context.decode(packet)
            except av.FFmpegError:
                damaged += 1
        if damaged:
            self.notes.append(f"{damaged} damaged parts of the sound were left out")


def _start_of_video(source: "InputContainer") -> Fraction:
    """Where the times of frames are counted from, as in a FrameSource."""
    video = source.streams.best("video")
    if video is None or video.start_time is None or video.time_base is None:
        return Fraction(0)
    return video.start_time * video.time_base


def _timed(
    packets: Iterable[av.Packet], stream: "AudioStream | VideoStream", base: Fraction, scale: int
) -> Iterator[TimedPacket]:
    """Packets of `stream` with their decoding times; those of the packets count in `base`."""
    ticks = _whole(base * scale)
    for packet in packets:
        packet.stream = stream
        yield (packet.dts or 0) * ticks, packet


def _whole(value: Fraction) -> int:
    """A fraction that is a whole number."""
    assert value.denominator == 1
    return value.numerator
