"""Inputs that come over time: a camera, and an address on the network."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np

from common.addresses import without_secrets
from common.cli import UserError
from phase3_tracking.inputs.frame_source import Picture
from phase3_tracking.inputs.source_options import MAX_FPS, NetworkLimits, exact_rate
from phase3_tracking.inputs.video_stream import VideoStream

if TYPE_CHECKING:
    from av.container import InputContainer

CAMERA_FPS = Fraction(30)  # of a camera that does not tell
HIGHEST_CAMERA = 99  # OpenCV takes hundreds for the choice of a driver
LOST_READS = 30  # failed reads in a row after which a camera counts as unplugged
READ_PAUSE_S = 0.02
END_TOLERANCE_S = 1  # a file over the network that ends so close to its promised end is whole
# What an address may lead to: nothing on this machine.
PROTOCOLS = "http,https,httpproxy,tcp,tls,udp,rtp,rtsp,rtsps,crypto"
WITHOUT_CLOCK = {"mpjpeg"}  # demuxers that make up their times


class Camera:
    """The Decoder of a camera of this machine. Times are those of arrival.

    Raises:
        UserError: there is no such camera, or it gives no picture.
    """

    live = True
    path: Path | None = None
    audio_path: Path | None = None
    frames_promised: int | None = None

    def __init__(
        self, number: int, *, fps: Fraction | None = None, stop: threading.Event | None = None
    ):
        self.name = f"camera {number}"
        self._stop = stop or threading.Event()
        self._lost_after: int | None = None
        with _silent_opencv():
            self._capture = cv2.VideoCapture(min(number, HIGHEST_CAMERA))
        if not self._capture.isOpened():
            self._capture.release()
            raise UserError(self.name, "is not there", "give another number, or a video file")
        told = self._capture.get(cv2.CAP_PROP_FPS)
        self._tells_rate = 0 < told <= MAX_FPS  # false for NaN, too
        self.fps = fps or (exact_rate(told) if self._tells_rate else CAMERA_FPS)
        self._guessed = fps is None and not self._tells_rate

    @property
    def notes(self) -> list[str]:
        lines = []
        if self._guessed:
            lines.append(f"tells no frame rate; {float(self.fps):g} was taken (see --fps)")
        if self._lost_after is not None:
            lines.append(f"stopped answering after {self._lost_after} frames")
        return lines

    def pictures(self, start_s: Fraction) -> Iterator[Picture]:
        index = failed = 0
        began = time.monotonic()
        last = Fraction(-1)
        while not self._stop.is_set():
            there_is_one, image = self._capture.read()
            if there_is_one:
                failed = 0
                now = Fraction(time.monotonic() - began) if index else Fraction(0)
                last = max(now, last + Fraction(1, 10**6))
                yield Picture(last, index, _loaded(image))
                index += 1
                continue
            failed += 1
            if failed == LOST_READS:
                self._lost_after = index
                return
            self._stop.wait(READ_PAUSE_S)

    def cut_short(self) -> bool:
        return self._lost_after is not None

    def close(self) -> None:
        self._capture.release()


@contextlib.contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keeps OpenCV from printing its own lines about a camera that is not there."""
    logging = cv2.utils.logging
    previous = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(previous)


def _loaded(image: np.ndarray):
    return lambda: image


class NetworkStream:
    """The Decoder of an rtsp or http(s) address: a live stream, or a file that ends.

    When the connection breaks it is made again, after a pause that doubles each time. A file goes
    on where it broke; of a live stream the time in between is missing.

    Raises:
        UserError: no connection, or no video there.
    """

    path: Path | None = None
    audio_path: Path | None = None

    def __init__(
        self,
        url: str,
        *,
        fps: Fraction | None = None,
        limits: NetworkLimits | None = None,
        stop: threading.Event | None = None,
    ):
        self.name = without_secrets(url)
        self._url, self._given_fps = url, fps
        self._limits, self._stop = limits or NetworkLimits(), stop or threading.Event()
        self._reconnects = 0
        self._lost = False
        self._earlier_notes: list[str] = []
        began = time.monotonic()
        try:
            self._stream = self._connect()
        except (av.FFmpegError, OSError) as error:
            waited_in_vain = time.monotonic() - began >= self._limits.connect_s
            reason = "no answer in time" if waited_in_vain else _reason(error)
            what = f"cannot be opened ({reason})"
            raise UserError(self.name, what, "check the address and the connection") from None
        self.fps = self._stream.fps
        self.live = self._stream.container.duration is None and not _has_size(self._stream)
        self.frames_promised = None if self.live else self._stream.frames_promised

    def _connect(self, size: tuple[int, int] | None = None) -> VideoStream:
        return VideoStream(self._open, self.name, fps=self._given_fps, size=size, tolerant=False)

    def _open(self) -> "InputContainer":
        options = {"protocol_whitelist": PROTOCOLS}
        if self._url.lower().startswith("rtsp"):
            options["rtsp_flags"] = "prefer_tcp"  # lost UDP packets are grey smears
        limits = self._limits
        return av.open(
            self._url,
            timeout=(limits.connect_s, limits.read_s),
            metadata_errors="replace",
            container_options=options,
        )

    @property
    def notes(self) -> list[str]:
        lines = list(dict.fromkeys([*self._earlier_notes, *self._stream.notes]))
        if self._reconnects:
            lines.append(f"the connection was made again {self._reconnects} times")
        if self._lost:
            tries = self._limits.reconnects
            lines.append(f"the connection was lost; {tries} attempts to make it again failed")
        return lines

    def pictures(self, start_s: Fraction) -> Iterator[Picture]:
        began = time.monotonic()
        offset_s, last = Fraction(0), Picture(Fraction(-1), -1, lambda: None)
        seek_s = Fraction(0) if self.live else start_s
        while True:
            try:
                for picture in self._stream.pictures(seek_s):
                    if self.live:
                        time_s = picture.time_s + offset_s
                        if self._stream.container.format.name in WITHOUT_CLOCK:
                            time_s = Fraction(time.monotonic() - began)
                        time_s = max(time_s, last.time_s + Fraction(1, 10**6))
                        picture = replace(picture, time_s=time_s, index=last.index + 1)
                    elif picture.time_s <= last.time_s:
                        continue  # read before the connection broke
                    else:  # after a jump the index is what time and an average rate say
                        picture = replace(picture, index=max(picture.index, last.index + 1))
                    last = picture
                    yield picture
                if not self.live and not self._broke_off(last):
                    return
            except (av.FFmpegError, OSError):
                pass
            if not self._reconnect():
                return
            offset_s = Fraction(time.monotonic() - began)
            seek_s = Fraction(0) if self.live else max(start_s, last.time_s)

    def _broke_off(self, last: Picture) -> bool:
        duration_s = self._stream.duration_s
        return duration_s is not None and last.time_s + END_TOLERANCE_S < duration_s

    def _reconnect(self) -> bool:
        """Whether there is a new connection; it counts as one when it yields a frame."""
        yielded = self._stream.frames_decoded
        if yielded:
            self._attempts = 0
        while self._attempts < self._limits.reconnects and not self._stop.is_set():
            pause = self._limits.backoff_s * 2**self._attempts
            self._attempts += 1
            if self._stop.wait(min(pause, self._limits.longest_backoff_s)):
                break
            try:
                stream = self._connect(self._stream.size)
            except (av.FFmpegError, OSError, UserError):
                continue
            self._earlier_notes += self._stream.notes
            self._stream.container.close()
            self._stream = stream
            self._reconnects += 1
            return True
        self._lost = not self._stop.is_set()
        return False

    _attempts = 0

    def cut_short(self) -> bool:
        return self._lost

    def close(self) -> None:
        self._stream.container.close()


def _has_size(stream: VideoStream) -> bool:
    """Whether the server tells how many bytes there are."""
    try:
        return stream.container.size > 0
    except (av.FFmpegError, OSError):
        return False


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the address, which may hold a password."""
    return re.sub(r"\s+", " ", str(getattr(error, "strerror", None) or "no answer"))
