"""From the fragments of a video to the file to keep: index in front, sound added, nothing lost.

Packets are copied, not encoded again, but for sound that an mp4 cannot hold.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
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

TimedPacket = tuple[Fraction, av.Packet]  # decoding time in seconds, and the packet


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
    """Opens the video as a player does, decodes its first frame and counts those it shows."""
    with _opened(path) as container:
        if next(container.decode(video=0), None) is None:
            return 0
    with _opened(path) as container:
        packets = container.demux(video=0)
        return sum(1 for packet in packets if packet.size and not packet.is_discard)


def _opened(path: Path) -> "InputContainer":
    options = {"protocol_whitelist": "file"}
    return av.open(f"file:{path}", metadata_errors="replace", container_options=options)


def _write(partial: Path, output: Path, fps: Fraction, track: "_AudioTrack | None") -> None:
    options = {"movflags": "+faststart"}
    with (
        _opened(partial) as source,
        av.open(f"file:{output}", "w", format="mp4", options=options) as container,
    ):
        video = _video_packets(source, container, fps)
        sound = track.packets(container) if track else iter(())
        for _, packet in merge(video, sound, key=lambda timed: timed[0]):
            container.mux(packet)


def _video_packets(
    source: "InputContainer", container: "OutputContainer", fps: Fraction
) -> Iterator[TimedPacket]:
    original = source.streams.video[0]
    stream = container.add_stream_from_template(original)
    stream.time_base = original.time_base
    assert original.time_base is not None
    last_ticks = round(1 / fps / original.time_base)
    return _timed(_moved_to_zero(source.demux(original), last_ticks), stream)


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
    """

    def __init__(self, source: "InputContainer", audio: AudioRange):
        self.notes: list[str] = []
        self._source = source
        best = source.streams.best("audio")
        self._stream: AudioStream = next(
            (stream for stream in source.streams.audio if stream is best), source.streams.audio[0]
        )
        self._zero_s = audio.start_s + _start_of_video(source)
        self._length_s = audio.length_s
        self._name = self._stream.codec_context.name
        self._copies = self._stream.codec_context.codec.canonical_name in COPIED_AUDIO
        self.kept: str | None = None

    def packets(self, container: "OutputContainer") -> Iterator[TimedPacket]:
        if self._copies:
            return self._copied(container.add_stream_from_template(self._stream))
        rate = self._stream.rate if self._stream.rate in AAC_RATES else 48000
        # AVI and WAV tell the number of channels, but not which they are
        layout = LAYOUTS.get(self._stream.codec_context.channels, "stereo")
        return self._encoded(container.add_stream("aac", rate=rate, layout=layout))

    def _demuxed(self) -> Iterator[av.Packet]:
        """Packets as far as the file can be read."""
        if self._zero_s > 1:
            with contextlib.suppress(av.FFmpegError):  # where that cannot be done, from the start
                self._source.seek(int((self._zero_s - 1) * av.time_base))
        try:
            yield from self._source.demux(self._stream)
        except (av.FFmpegError, OSError):
            self.notes.append("the sound ends early, where the input is damaged")

    def _position(self, packet: "av.Packet | av.AudioFrame") -> Fraction:
        return (packet.pts or 0) * (packet.time_base or Fraction(1)) - self._zero_s

    def _copied(self, stream: "AudioStream") -> Iterator[TimedPacket]:
        """Packets any part of which is heard; the muxer hides what comes before 0."""
        for packet in self._demuxed():
            if not packet.size or packet.pts is None or packet.dts is None:
                continue
            position, base = self._position(packet), packet.time_base
            if position + (packet.duration or 0) * base <= 0:
                continue
            if position >= self._length_s:
                return
            moved = round(self._zero_s / base)
            packet.pts -= moved
            packet.dts -= moved
            packet.stream = stream
            self.kept = f"{self._name}, copied"
            yield position, packet

    def _encoded(self, stream: "AudioStream") -> Iterator[TimedPacket]:
        context = stream.codec_context
        resampler = av.AudioResampler("fltp", stream.layout, stream.rate)
        for frame in self._decoded():
            position = self._position(frame)
            if position < 0:
                continue
            if position >= self._length_s:
                break
            frame.pts, frame.time_base = round(position * frame.rate), Fraction(1, frame.rate)
            self.kept = f"{self._name}, encoded again as aac"
            for resampled in resampler.resample(frame):
                yield from _timed(context.encode(resampled), stream)
        if self.kept:
            yield from _timed(context.encode(None), stream)

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
    packets: Iterable[av.Packet], stream: "AudioStream | VideoStream"
) -> Iterator[TimedPacket]:
    for packet in packets:
        packet.stream = stream
        yield (packet.dts or 0) * packet.time_base, packet
