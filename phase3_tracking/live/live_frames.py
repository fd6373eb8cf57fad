"""The newest frame of a run, encoded for whoever looks: the pipeline never waits for a viewer.

The pipeline swaps a reference and goes on. A frame becomes a JPEG in the thread of the viewer who
first asks for it, the others get the same bytes, and frames nobody asked for are never encoded.
"""

import math
import numbers
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MAX_FPS = 30.0  # frames encoded in a second at most, however fast the pipeline is
MAX_SIDE_PX = 1920  # larger frames are shrunk to this: a viewer's screen and network are no larger
JPEG_QUALITY = 80


class Jpeg(NamedTuple):
    """An encoded frame; `number` counts the published frames from 1."""

    number: int
    data: bytes
    encoded_s: float  # on the monotonic clock


class _Published(NamedTuple):
    number: int
    frame_bgr: np.ndarray
    counters: dict[str, Any]
    when_s: float


class NewestFrame:
    """Holds the frame published last. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._newest: _Published | None = None
        self._jpeg: Jpeg | None = None
        self._changed = threading.Condition()  # never held for longer than a swap
        self._encoding = threading.Lock()
        self._closed = threading.Event()

    @property
    def is_closed(self) -> bool:
        """Whether no further frame will come."""
        return self._closed.is_set()

    def publish(self, frame_bgr: np.ndarray, counters: Mapping[str, Any]) -> None:
        """See LiveView.publish."""
        shape = frame_bgr.shape
        if frame_bgr.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or not frame_bgr.size:
            raise ValueError(f"a frame is uint8 (H, W, 3), not {frame_bgr.dtype} {shape}")
        copied = _copied(counters)
        with self._changed:
            number = 1 if self._newest is None else self._newest.number + 1
            self._newest = _Published(number, frame_bgr, copied, time.monotonic())
            self._changed.notify_all()

    def close(self) -> None:
        """No further frame comes; whoever waits for one wakes up."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()

    def status(self) -> dict[str, Any]:
        """`frames_published`, `age_s` of the newest (None without one), and its `counters`."""
        newest = self._newest
        if newest is None:
            return {"frames_published": 0, "age_s": None, "counters": {}}
        return {
            "frames_published": newest.number,
            "age_s": round(time.monotonic() - newest.when_s, 3),
            "counters": _plain(newest.counters),
        }

    def jpeg(self, *, after: int = 0, wait_s: float = 0.0) -> Jpeg | None:
        """The newest frame; of a fast pipeline one that was the newest 1 / MAX_FPS seconds ago.

        Args:
            after: the number of a frame the caller has already.
            wait_s: how long to wait for a later one. If none comes, the same is returned again.

        Returns:
            None if nothing was published yet, or if no later frame will come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.is_closed or self._is_later(after), wait_s)
        with self._encoding:  # whoever comes meanwhile gets the same one
            if self._newest is None or (self.is_closed and not self._is_later(after)):
                return None
            kept = self._jpeg
            if kept is not None and kept.number != self._newest.number and not self.is_closed:
                rest_s = kept.encoded_s + 1 / MAX_FPS - time.monotonic()
                if rest_s > 0 and kept.number > after:
                    return kept
                if rest_s > 0:
                    self._closed.wait(rest_s)
            newest = self._newest
            if kept is None or kept.number != newest.number:
                data = encode(newest.frame_bgr)
                kept = self._jpeg = Jpeg(newest.number, data, time.monotonic())
            return kept

    def _is_later(self, number: int) -> bool:
        return self._newest is not None and self._newest.number > number


def encode(frame_bgr: np.ndarray) -> bytes:
    """The JPEG of a uint8 (H, W, 3) frame, its longer side at most MAX_SIDE_PX."""
    import cv2

    height, width = frame_bgr.shape[:2]
    scale = MAX_SIDE_PX / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        frame_bgr = cv2.resize(frame_bgr, size, interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return cv2.imencode(".jpg", np.ascontiguousarray(frame_bgr), options)[1].tobytes()


def _copied(counters: Mapping[str, Any]) -> dict[str, Any]:
    """Own dictionaries, as the pipeline goes on counting in its own."""
    return {
        name: _copied(value) if isinstance(value, dict) else value
        for name, value in counters.items()
    }


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers of NumPy become Python's, one that is not finite None."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value)
