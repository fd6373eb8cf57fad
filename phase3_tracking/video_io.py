"""Reading video: a thread decodes frames while the caller works on earlier ones.

    with VideoReader(Path("street.mp4")) as reader:
        for frame_bgr in reader:
            ...
    if reader.truncated:
        print(f"{reader.frames_read} of {reader.frames_promised} frames")

Writing is `common.video.VideoWriter`.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from common.cli import UserError

QUEUE_SIZE = 8  # decoded frames waiting: enough to even out slow frames, little memory
NTSC_RATES = {Fraction(1000 * nominal, 1001) for nominal in (24, 30, 48, 60, 120)}
NTSC_TOLERANCE = 1e-3  # containers round 30000/1001 to 29.97
MAX_FPS = 1000
QUIET_FFMPEG = "-8"  # AV_LOG_QUIET: a refused file is told in one line of ours


class VideoReader:
    """Context manager and iterator over the frames of a video file, uint8 (height, width, 3) BGR.

    Frames come upright (rotation metadata applied), in order, each once. Decoding runs ahead of the
    caller by at most `queue_size` frames.

    Args:
        path: a video file of any kind OpenCV's FFmpeg decodes: MP4, MOV, AVI, WebM, MKV, ...
        max_frames: stop after this many frames; None reads to the end.
        queue_size: decoded frames that may wait for the caller, at least 2.

    Attributes:
        width, height: pixels of the upright frame.
        fps: the exact frame rate, 30000/1001 rather than 29.97. A variable rate is given as its
            average.
        frames_promised: the frame count in the header, an estimate in some containers; None when
            there is none.
        frames_read: frames handed out so far.
        decode_seconds: time the thread has spent decoding.

    Raises:
        UserError: `path` is missing or no video that can be decoded.
    """

    def __init__(self, path: Path, *, max_frames: int | None = None, queue_size: int = QUEUE_SIZE):
        self.path = Path(path)
        self.frames_read = 0
        self.decode_seconds = 0.0
        self._max_frames = max_frames
        self._capture, first_frame = _open(self.path)
        self.height, self.width = first_frame.shape[:2]
        self.fps = _frame_rate(self.path, self._capture.get(cv2.CAP_PROP_FPS))
        promised = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frames_promised = int(promised) if promised >= 1 else None  # nonsense is below zero
        self._at_end = False
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(max(2, queue_size))
        self._thread = threading.Thread(target=self._decode, args=(first_frame,), daemon=True)
        self._thread.start()

    @property
    def truncated(self) -> bool:
        """Whether the stream, read to its end, held fewer frames than its header promises."""
        return self._at_end and self.frames_read < (self.frames_promised or 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        while not self._stop.is_set():
            frame = self._queue.get()
            if frame is None:
                self.close()
                if self._error is not None:
                    raise self._error
                return
            self.frames_read += 1
            yield frame

    def _decode(self, frame: np.ndarray) -> None:
        """The thread: puts every frame into the queue, then None."""
        decoded = 0
        try:
            while not self._stop.is_set():
                self._queue.put(frame)
                decoded += 1
                if decoded == self._max_frames:
                    return
                begin = time.perf_counter()
                there_is_one, frame = self._capture.read()
                self.decode_seconds += time.perf_counter() - begin
                if not there_is_one:
                    self._at_end = True
                    return
        except Exception as error:  # noqa: BLE001 – raised again in the caller's thread
            self._error = error
        finally:
            self._queue.put(None)

    def close(self) -> None:
        """Stops decoding and releases the file; harmless when called again."""
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            while True:  # makes room, so that the thread cannot hang in put()
                self._queue.get_nowait()
        self._thread.join()
        self._capture.release()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open(path: Path) -> tuple[cv2.VideoCapture, np.ndarray]:
    """The open capture and its first frame."""
    remedy = "give a video file (MP4, MOV, AVI, WebM, MKV)"
    if not path.is_file():
        what = "no such file" if not path.exists() else "not a regular file"
        raise UserError(path, what, "check the path" if not path.exists() else remedy)
    if not path.stat().st_size:
        raise UserError(path, "is empty", remedy)
    if not os.access(path, os.R_OK):
        raise UserError(path, "may not be read", "check its permissions")
    with _silent_opencv():
        if cv2.haveImageReader(str(path)):  # FFmpeg would call it a video of one frame
            raise UserError(path, "is a picture, not a video", remedy)
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise UserError(path, "is damaged or holds no video", remedy)
        there_is_one, frame = capture.read()
    if not there_is_one:
        capture.release()
        raise UserError(path, "not one frame can be decoded", remedy)
    return capture, frame


@contextlib.contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keeps OpenCV and its FFmpeg from printing their own lines about a file they refuse."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", QUIET_FFMPEG)
    logging = cv2.utils.logging
    previous = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(previous)


def _frame_rate(path: Path, fps: float) -> Fraction:
    if not 0 < fps <= MAX_FPS:  # false for NaN too
        remedy = "write it again with a constant frame rate"
        raise UserError(path, f"declares an unusable frame rate ({fps:g})", remedy)
    nearest = min(NTSC_RATES, key=lambda rate: abs(rate - fps))
    if abs(nearest - fps) < NTSC_TOLERANCE:
        return nearest
    return Fraction(fps).limit_denominator(1001)
