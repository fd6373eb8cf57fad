"""Objects over time in a bounded number of bins, however long the video is."""

from typing import Any

import numpy as np

MAX_BINS = 600
FIRST_WIDTH_S = 1.0


class TimeBins:
    """Mean and greatest number of objects in each second of a video.

    A video of more than MAX_BINS seconds has wider bins: when one lies beyond the last bin, each
    two neighbours become one, and the width doubles.

    Attributes:
        width_s: seconds that a bin covers; the first begins at 0.
    """

    def __init__(self) -> None:
        self.width_s = FIRST_WIDTH_S
        self._frames = np.zeros(MAX_BINS, np.int64)
        self._boxes = np.zeros(MAX_BINS, np.int64)
        self._most = np.zeros(MAX_BINS, np.int64)

    def add(self, time_s: float, objects: int) -> None:
        """Books a frame with so many objects; `time_s` is finite and not negative."""
        while time_s >= MAX_BINS * self.width_s:
            self._halve()
        index = int(time_s / self.width_s)
        self._frames[index] += 1
        self._boxes[index] += objects
        self._most[index] = max(self._most[index], objects)

    def _halve(self) -> None:
        rest = np.zeros(MAX_BINS // 2, np.int64)
        self._frames = np.concatenate([self._frames.reshape(-1, 2).sum(axis=1), rest])
        self._boxes = np.concatenate([self._boxes.reshape(-1, 2).sum(axis=1), rest])
        self._most = np.concatenate([self._most.reshape(-1, 2).max(axis=1), rest])
        self.width_s *= 2

    def summary(self) -> dict[str, Any]:
        """`{bin_s, mean, max}`: lists from the start of the video to its last frame; None stands
        for a bin without a frame."""
        used = int(np.flatnonzero(self._frames)[-1]) + 1 if self._frames.any() else 0
        frames, boxes = self._frames[:used].tolist(), self._boxes[:used].tolist()
        most = self._most[:used].tolist()
        return {
            "bin_s": self.width_s,
            "mean": [b / n if n else None for n, b in zip(frames, boxes, strict=True)],
            "max": [m if n else None for n, m in zip(frames, most, strict=True)],
        }
