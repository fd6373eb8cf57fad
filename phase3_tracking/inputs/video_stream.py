"""The pictures of one opened video, file or network stream, through PyAV.

Times are those of the container, so a variable frame rate stays what it is. Pictures come upright
(rotation metadata applied), as 8-bit BGR whatever the pixel format, and all in the size of the
first one.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np

from common.cli import UserError
from phase3_tracking.inputs.frame_source import Picture
from phase3_tracking.inputs.source_options import MAX_FPS, exact_rate

if TYPE_CHECKING:
    from av.container import InputContainer

# Demuxers of bare bit streams: what they say of times and duration is guessed from the bit rate.
BARE_STREAMS = {
    "h264",
    "hevc",
    "vvc",
    "m4v",
    "mpegvideo",
    "av1",
    "obu",
    "mjpeg",
    "dirac",
    "cavsvideo",
}
QUARTER_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    -180: cv2.ROTATE_180,
    -90: cv2.ROTATE_90_CLOCKWISE,
    270: cv2.ROTATE_90_CLOCKWISE,
}
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67
BROKEN_READS = 100  # in a row, after which the rest of a file is given up
SAME_RATE = 0.05  # an average further from the nominal rate is that of a variable one
UNEVEN = 0.1  # of an interval: what rounding to the time base cannot explain


class VideoStream:
    """The best video stream of a container.

    Args:
        open_container: opens it; called again for a jump that failed.
        name: for messages.
        fps: the rate to take instead of the container's; times are then counted with it.
        size: (width, height) of pictures instead of that of the first one: what a connection that
            broke has yielded so far.
        tolerant: damaged parts are skipped. False raises what reading raises, for networks.

    Attributes:
        fps, frames_promised: as in `frame_source.FrameSource`.
        frames_decoded, last_time_s: how far `pictures` has come.
        size: (width, height) of all pictures; None before the first one is converted.
        damaged: packets that could not be decoded.

    Raises:
        UserError: no video in it, or no usable frame rate.
        av.FFmpegError: what opening raises.
    """

    def __init__(
        self,
        open_container: "Callable[[], InputContainer]",
        name: str,
        *,
        fps: Fraction | None = None,
        size: tuple[int, int] | None = None,
        tolerant: bool = True,
    ):
        self.name = name
        self._open, self._tolerant = open_container, tolerant
        self.container = open_container()
        try:
            self._take_stream()
            self.fps = fps or _frame_rate(self._stream, name, self._is_bare)
        except BaseException:
            self.container.close()
            raise
        self._counted = fps is not None or self._stream.start_time is None
        self._guessed_rate = fps is None and self._stream.start_time is None
        self.duration_s = self._duration()
        self.frames_promised = self._promised()
        self.frames_decoded = self.damaged = 0
        self.last_time_s: Fraction | None = None
        self._zero: int | None = self._stream.start_time
        self._jumped = False
        self.size = size
        self._shortest = self._longest = Fraction(0)
        self._rescaled = self._repaired = self._concealed = 0
        self._hdr: str | None = None
        self._turned_oddly = False

    @property
    def times_are_counted(self) -> bool:
        """Whether times come from the frame rate, not from the container."""
        return self._counted

    def _take_stream(self) -> None:
        """Chooses the stream and lets its decoder use threads."""
        attached = av.stream.Disposition.attached_pic  # the cover of a piece of music
        videos = [s for s in self.container.streams.video if not s.disposition & attached]
        if not videos:
            has_audio = bool(self.container.streams.audio)
            what = "holds sound, but no video" if has_audio else "holds no video"
            raise UserError(self.name, what, "give a video file (MP4, MOV, AVI, WebM, MKV)")
        best = self.container.streams.best("video")
        self._stream = best if best in videos else videos[0]
        self._stream.thread_type = "AUTO"
        self._is_bare = self.container.format.name in BARE_STREAMS
        # Once the container is closed a stream must not be asked any more: its memory is gone.
        self._time_base = self._stream.time_base or Fraction(0)
        self._header_frames = self._stream.frames
        self.has_audio = bool(self.container.streams.audio)

    def _duration(self) -> Fraction | None:
        """Seconds of the video stream; not of a longer sound beside it."""
        stream = self._stream
        if self._is_bare or self._counted:
            return None
        if stream.duration and stream.time_base:
            return stream.duration * stream.time_base
        tagged = _tagged_duration(stream.metadata.get("DURATION", ""))
        if tagged is not None or self.has_audio or not self.container.duration:
            return tagged
        return Fraction(self.container.duration, av.time_base)

    def _promised(self) -> int | None:
        if self._header_frames > 0:
            return self._header_frames
        return round(self.duration_s * self.fps) or None if self.duration_s else None

    # --- going through it -----------------------------------------------------------------------

    def pictures(self, start_s: Fraction) -> Iterator[Picture]:
        """All pictures, or those from a key frame before `start_s` on."""
        for frame in self._frames_from(start_s):
            time_s = self._time_of(frame)
            index = self.frames_decoded
            self.frames_decoded += 1
            yield Picture(time_s, index, partial(self._to_bgr, frame))

    def _frames_from(self, start_s: Fraction) -> Iterator[av.VideoFrame]:
        stream = self._stream
        if start_s <= 0 or self._counted or stream.start_time is None or not stream.time_base:
            yield from self._frames()
            return
        first = None
        try:
            self.container.seek(stream.start_time + int(start_s / stream.time_base), stream=stream)
            frames = self._frames()
            first = next(frames, None)
        except av.FFmpegError:
            pass  # some containers cannot
        if first is None or first.pts is None or self._since_zero(first) > start_s:
            self.container.close()
            self.container = self._open()
            self._take_stream()
            self.damaged = 0
            yield from self._frames()
            return
        self._jumped = True
        self.frames_decoded = round(self._since_zero(first) * self.fps)
        yield first
        yield from frames

    def _frames(self) -> Iterator[av.VideoFrame]:
        """What can be decoded from here on."""
        broken_reads = 0
        packets = self.container.demux(self._stream)
        while broken_reads < BROKEN_READS:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError):
                if not self._tolerant:
                    raise
                broken_reads += 1
                packets = self.container.demux(self._stream)
                continue
            if packet is None:
                return
            broken_reads = 0
            yield from self._decoded(packet)
        self.damaged += 1
        yield from self._decoded(None)

    def _decoded(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            return self._stream.codec_context.decode(packet)
        except av.FFmpegError:
            self.damaged += 1
            return []

    # --- times ----------------------------------------------------------------------------------

    def _since_zero(self, frame: av.VideoFrame) -> Fraction:
        assert frame.pts is not None
        assert frame.time_base is not None
        if self._zero is None or (frame.pts < self._zero and not self.frames_decoded):
            self._zero = frame.pts
        return (frame.pts - self._zero) * frame.time_base

    def _time_of(self, frame: av.VideoFrame) -> Fraction:
        """Seconds since the first frame; always later than the frame before."""
        before, self.last_time_s = self.last_time_s, None
        if self._counted:
            time_s = self.frames_decoded / self.fps
        elif frame.pts is None:
            time_s = Fraction(0) if before is None else before + 1 / self.fps
        else:
            time_s = self._since_zero(frame)
        if before is not None:
            if time_s <= before:
                time_s = before + 1 / self.fps
                self._repaired += 1
            interval = time_s - before
            self._shortest = min(self._shortest or interval, interval)
            self._longest = max(self._longest, interval)
        self.last_time_s = time_s
        return time_s

    @property
    def variable_rate(self) -> bool:
        """Whether the frames so far were spaced unevenly, beyond what rounding explains."""
        rounding = 2 * self._time_base
        return self._longest - self._shortest > rounding + Fraction(UNEVEN) / self.fps

    def cut_short(self) -> bool:
        """Whether it ended before the frames, or the time, that its header promises."""
        if self.frames_promised is None:
            return False
        if self._header_frames > 0 and not self._jumped:
            missing = self.frames_decoded < self.frames_promised
            return missing and (not self.damaged or self._ends_early())
        return self._ends_early()

    def _ends_early(self) -> bool:
        """By more than an interval, and a half for rounding."""
        if self.duration_s is None:
            return self.frames_decoded + self.damaged < (self.frames_promised or 0)
        interval = max(self._longest, 1 / self.fps)
        return (self.last_time_s or 0) + interval * Fraction(3, 2) < self.duration_s

    # --- pixels ---------------------------------------------------------------------------------

    def _to_bgr(self, frame: av.VideoFrame) -> np.ndarray:
        image: np.ndarray = frame.to_ndarray(format="bgr24")
        self._concealed += frame.is_corrupt
        self._hdr = self._hdr or HDR_TRANSFERS.get(
            int(getattr(frame, "color_trc", 0))
        )  # since PyAV 17
        if frame.rotation:
            turn = QUARTER_TURNS.get(frame.rotation)
            self._turned_oddly |= turn is None
            image = image if turn is None else cv2.rotate(image, turn)
        height, width = image.shape[:2]
        if self.size is None:
            self.size = (width, height)
        elif self.size != (width, height):
            image = cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)
            self._rescaled += 1
        return image

    @property
    def notes(self) -> list[str]:
        """Remarks about what has been read so far."""
        lines = []
        if self._guessed_rate:
            lines.append(f"has no timestamps; read as {float(self.fps):g} frames per second")
        if self.variable_rate and not self.damaged:
            span = f"{1000 * float(self._shortest):.0f} to {1000 * float(self._longest):.0f} ms"
            lines.append(f"variable frame rate ({span} from frame to frame); timestamps are kept")
        if self.damaged:
            lines.append(f"{self.damaged} damaged parts could not be decoded and were skipped")
        if self._concealed:
            lines.append(f"{self._concealed} frames are damaged; what they lack was guessed")
        if self._repaired:
            lines.append(f"{self._repaired} timestamps that did not grow were replaced")
        if self._rescaled and self.size:
            size = "{}x{}".format(*self.size)
            lines.append(f"the size changes; {self._rescaled} frames were rescaled to {size}")
        if self._hdr:
            lines.append(f"HDR ({self._hdr}): read without tone mapping, so it looks pale")
        if self._turned_oddly:
            lines.append("is to be shown at an angle other than a quarter turn; read as stored")
        return lines


def _frame_rate(stream: "av.VideoStream", name: str, is_bare: bool) -> Fraction:
    """The exact nominal rate, or the average of a variable one."""
    average, nominal = stream.average_rate, stream.guessed_rate
    rate = average or nominal
    if average and nominal and (is_bare or abs(average / nominal - 1) < SAME_RATE):
        rate = nominal
    if not rate or not 0 < rate <= MAX_FPS:
        what = f"declares an unusable frame rate ({float(rate or 0):g})"
        raise UserError(name, what, "give the right one with --fps")
    return exact_rate(rate)


def _tagged_duration(text: str) -> Fraction | None:
    """Matroska's `00:01:02.500000000` in seconds."""
    parts = text.split(":")
    if len(parts) != 3:
        return None
    try:
        hours, minutes, seconds = (Fraction(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds
