"""Frames of whatever kind of input behind one protocol, decoded ahead of the caller in a thread.

    with open_source("street.mp4", SourceOptions(frame_skip=2)) as source:
        for frame in source:
            ...
    for note in source.notes:
        ...

A kind of input is a `Decoder` (`video_file`, `image_folder`, `live_source`); what is common to all
of them is in `BufferedSource`: the thread, the choice of frames, resizing, latency mode.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Protocol

import cv2
import numpy as np

from common.cli import UserError
from phase3_tracking.inputs.source_options import SourceOptions

QUEUE_BYTES = 256 * 2**20  # frames of 8K take 100 MB each, so fewer of them wait
POLL_S = 0.2  # between looks at whether to stop while nothing comes
LIVE_CLOSE_S = 1.0  # a thread that waits for the network longer than this is left behind


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of an input.

    Attributes:
        image_bgr: uint8 (height, width, 3), upright.
        time_s: seconds since the first frame of the input, growing from frame to frame.
        index: number of the frame in the input, from 0, also where frames are left out; after
            a jump to `start_s` it is what time and frame rate say.
        received_s: when the thread that reads handed it over, on the clock of time.perf_counter:
            before it waited for the caller, and was converted and resized. In latency mode only.
    """

    image_bgr: np.ndarray
    time_s: Fraction
    index: int
    received_s: float | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame that a decoder has reached; `load` converts it, or is None when it is unreadable."""

    time_s: Fraction
    index: int
    load: Callable[[], np.ndarray | None]
    received_s: float | None = None  # see Frame


class FrameSource(Protocol):
    """Context manager and iterator over the frames of an input, in order, each once.

    Attributes:
        name: what to call the input in messages; no password is in it.
        path: of a file or folder, else None.
        audio_path: the file whose sound belongs to the times of the frames; None without sound.
        live: whether it goes on for ever, like a camera.
        width, height: pixels of every frame.
        fps: of the frames handed out: a quarter of source_fps when every fourth is read.
        source_fps: of the input, exact: 30000/1001 rather than 29.97. A variable rate is given as
            its average.
        frames_promised: the frame count in the header, an estimate in some containers.
        frames_expected: how many of them the options choose; None when it is not known.
        frames_read: frames handed out so far.
        frames_decoded: frames of the input gone through, also those not handed out.
        frames_dropped: frames left out because newer ones had come, in latency mode.
        decode_seconds: time the thread has spent reading and decoding.
        truncated: whether the input, read to its end, held less than it promises.
        notes: one-line remarks for the report; complete when the last frame has been read.
    """

    name: str
    path: Path | None
    audio_path: Path | None
    live: bool
    width: int
    height: int
    fps: Fraction
    source_fps: Fraction
    frames_promised: int | None
    frames_read: int
    frames_decoded: int
    frames_dropped: int
    decode_seconds: float

    @property
    def frames_expected(self) -> int | None: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def notes(self) -> list[str]: ...
    def __iter__(self) -> Iterator[Frame]: ...
    def close(self) -> None: ...
    def __enter__(self) -> "FrameSource": ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Decoder(Protocol):
    """A kind of input. Attributes as in `FrameSource`, `fps` being that of the input."""

    name: str
    path: Path | None
    audio_path: Path | None
    live: bool
    fps: Fraction
    frames_promised: int | None

    @property
    def notes(self) -> list[str]: ...
    def pictures(self, start_s: Fraction) -> Iterator[Picture]:
        """All frames in order, or those from some point before `start_s` on."""
        ...

    def cut_short(self) -> bool:
        """Whether `pictures`, gone through to its end, held less than the input promises."""
        ...

    def close(self) -> None: ...


class BufferedSource:
    """The FrameSource over any decoder. The thread is at most `queue_size` frames ahead.

    Args:
        decoder: closed with this source, also when the constructor raises.
        should_stop: asked while no frame comes, or none from `start_s` on; True ends the iteration.
            For signals: a stream that hangs would not let the caller notice them.
        stop: set when the source is closed, so that a decoder can stop waiting.

    Raises:
        UserError: no frame is between start and end, or not one can be decoded.
        KeyboardInterrupt: `should_stop` said so before the first frame.
    """

    def __init__(
        self,
        decoder: Decoder,
        options: SourceOptions,
        *,
        should_stop: Callable[[], bool] | None = None,
        stop: threading.Event | None = None,
    ):
        self._decoder, self._options = decoder, options
        self._should_stop = should_stop or (lambda: False)
        self._stop = stop or threading.Event()
        self.name, self.path, self.live = decoder.name, decoder.path, decoder.live
        self.audio_path = decoder.audio_path
        self.source_fps = decoder.fps
        self.fps = decoder.fps / options.frame_skip
        self.frames_promised = decoder.frames_promised
        self.frames_read = self.frames_decoded = self.frames_dropped = 0
        self.decode_seconds = 0.0
        self._at_end = False
        self._began = 0.0  # when playing in real time began
        self._error: BaseException | None = None
        try:
            chosen = self._chosen()
            first = self._first_frame(chosen)
        except BaseException:
            decoder.close()
            raise
        self.height, self.width = first.image_bgr.shape[:2]
        size = max(2, min(options.queue_size, QUEUE_BYTES // first.image_bgr.nbytes))
        self._queue: queue.Queue[Frame | Picture | None] = queue.Queue(
            1 if options.latency_mode else size
        )
        self._iterated = threading.Event()
        self._thread = threading.Thread(
            target=self._decode, args=(first, chosen), name="decode", daemon=True
        )
        self._thread.start()

    @property
    def truncated(self) -> bool:
        return self._at_end and self._decoder.cut_short()

    @property
    def notes(self) -> list[str]:
        dropped = self.frames_dropped
        own = [f"{dropped} frames were dropped to keep up with the input"] if dropped else []
        return [*self._decoder.notes, *own]

    @property
    def frames_expected(self) -> int | None:
        options, count = self._options, self.frames_promised
        if count is not None:
            rate = self.source_fps
            end = count if options.end_s is None else min(count, ceil(options.end_s * rate))
            count = max(1, ceil((end - ceil(options.start_s * rate)) / options.frame_skip))
        return min(filter(None, (count, options.max_frames)), default=None)

    def __iter__(self) -> Iterator[Frame]:
        self._iterated.set()
        while not self._stop.is_set() and self.frames_read != self._options.max_frames:
            try:
                item = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                if self._should_stop():
                    break
                continue
            if item is None:
                break
            frame = self._frame(item) if isinstance(item, Picture) else item
            if frame is not None:
                self.frames_read += 1
                yield frame
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    # --- which frames ---------------------------------------------------------------------------

    def _chosen(self) -> Iterator[Picture]:
        """The pictures between start and end, every Nth of them."""
        options, position = self._options, 0
        for picture in self._decoder.pictures(options.start_s):
            if options.end_s is not None and picture.time_s >= options.end_s:
                return
            self.frames_decoded += 1
            if picture.time_s < options.start_s:
                if self._stop.is_set() or self._should_stop():
                    raise KeyboardInterrupt
                continue
            if position % options.frame_skip == 0:
                yield picture
            position += 1
        self._at_end = True

    def _first_frame(self, chosen: Iterator[Picture]) -> Frame:
        for picture in chosen:
            frame = self._frame(picture)
            if frame is not None:
                return frame
        start, end = self._options.start_s, self._options.end_s
        if self.frames_decoded and start:
            what = f"has no frame after --start {float(start):g}"
            raise UserError(self.name, what, "give an earlier --start")
        if end is not None and not self._at_end:
            what = f"has no frame between {float(start):g} and {float(end):g} seconds"
            raise UserError(self.name, what, "give a later --end")
        raise UserError(self.name, "not one frame can be decoded", "give another input")

    def _frame(self, picture: Picture) -> Frame | None:
        """Converted and resized; None when the picture cannot be read."""
        image = picture.load()
        if image is None:
            return None
        height, width = image.shape[:2]
        if self._options.resize:
            size = self._options.resize.size(width, height)
            if size != (width, height):
                kind = cv2.INTER_AREA if size[0] < width or size[1] < height else cv2.INTER_LINEAR
                image = cv2.resize(image, size, interpolation=kind)
        return Frame(image, picture.time_s, picture.index, picture.received_s)

    # --- the thread -----------------------------------------------------------------------------

    def _decode(self, first: Frame, chosen: Iterator[Picture]) -> None:
        """Puts every frame into the queue, then None."""
        item: Frame | Picture | None = first
        handed_over = 0
        try:
            while not self._stop.is_set():
                if item is not None:
                    self._hand_over(item, first.time_s)
                    handed_over += 1
                if handed_over == self._options.max_frames and not self._options.latency_mode:
                    return
                begin = time.perf_counter()
                picture = next(chosen, None)
                if picture is None:
                    return
                # in latency mode most are dropped, so the caller converts what it takes
                item = picture if self._options.latency_mode else self._frame(picture)
                self.decode_seconds += time.perf_counter() - begin
        except Exception as error:  # noqa: BLE001 – raised again in the caller's thread
            self._error = error
        finally:
            self._decoder.close()
            self._put(None)

    def _hand_over(self, item: Frame | Picture, first_time_s: Fraction) -> None:
        if not self._options.latency_mode:
            self._put(item)
            return
        if not self.live:
            self._keep_pace(float(item.time_s - first_time_s))
        item = replace(item, received_s=time.perf_counter())
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            try:
                self._queue.get_nowait()
                self.frames_dropped += 1
            except queue.Empty:
                pass  # the caller has just taken it
            self._queue.put_nowait(item)

    def _keep_pace(self, position_s: float) -> None:
        """Waits until a player that began with the caller's first request would be there."""
        while not self._iterated.wait(POLL_S):
            if self._stop.is_set():
                return
        if position_s == 0:
            self._began = time.monotonic()
        self._stop.wait(max(0.0, self._began + position_s - time.monotonic()))

    def _put(self, item: Frame | Picture | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def close(self) -> None:
        """Stops decoding and releases the input; harmless when called again."""
        self._stop.set()
        self._thread.join(LIVE_CLOSE_S if self.live else None)

    def __enter__(self) -> "BufferedSource":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
