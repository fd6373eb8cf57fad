"""A picture of a dozen frames from all over a video, each with its time."""

import math

import cv2
import numpy as np

from phase3_tracking.results.pictures import encoded, put_text, shrunk, text_size

FRAMES = 12
KEPT_AT_MOST = 4 * FRAMES  # even, as every other one is dropped when there are so many
TILE = 640  # pixels: the longer side of a frame is shrunk to this
COLUMNS, COLUMNS_UPRIGHT = 3, 6
GAP = 6  # pixels
SHEET_BGR = (32, 32, 32)
JPEG_OPTIONS = (cv2.IMWRITE_JPEG_QUALITY, 88)


class ContactSheet:
    """Chooses frames that are evenly spread over a video whose length is not known.

    It keeps every frame at first and, whenever KEPT_AT_MOST are kept, drops every other one and
    from then on keeps half as many; so at the end there are between twice and four times as many as
    shown, and the gaps between those shown differ by half at most.
    """

    def __init__(self) -> None:
        self._stride = 1
        self._frames = 0
        self._kept: list[tuple[float, np.ndarray]] = []  # time, small frame

    def add(self, time_s: float, frame_bgr: np.ndarray) -> None:
        """Shows the sheet one frame, uint8 (H, W, 3) with everything drawn on it.

        Args:
            time_s: of the frame in the video.
        """
        if self._frames % self._stride == 0:
            self._kept.append((time_s, shrunk(frame_bgr, TILE, TILE)))
        self._frames += 1
        if len(self._kept) == KEPT_AT_MOST:
            self._kept = self._kept[::2]
            self._stride *= 2

    def chosen(self) -> list[tuple[float, np.ndarray]]:
        """(time in seconds, small frame) of up to FRAMES frames; the first is always among them."""
        count = min(FRAMES, len(self._kept))
        indices = np.linspace(0, len(self._kept) - 1, count).round().astype(int)
        return [self._kept[index] for index in indices]

    def picture(self) -> np.ndarray:
        """uint8 BGR: the frames in rows.

        Raises:
            ValueError: there was no frame.
        """
        chosen = self.chosen()
        if not chosen:
            raise ValueError("no frame was given")
        height, width = chosen[0][1].shape[:2]
        columns = min(COLUMNS if width >= height else COLUMNS_UPRIGHT, len(chosen))
        rows = math.ceil(len(chosen) / columns)
        size = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
        sheet = np.full(size, SHEET_BGR, np.uint8)
        for number, (time_s, frame) in enumerate(chosen):
            row, column = divmod(number, columns)
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            tile = sheet[top : top + height, left : left + width]
            tile[:] = frame
            stamp = time_stamp(time_s)
            put_text(tile, stamp, 0, height - text_size(stamp)[1])
        return sheet

    def encoded(self) -> bytes:
        """The picture as a JPEG file."""
        return encoded(".jpg", self.picture(), JPEG_OPTIONS)


def time_stamp(time_s: float) -> str:
    """`1:23.4`, or `2:01:23.4` from an hour on."""
    tenths = round(10 * time_s)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{tenths / 10:04.1f}"
    return f"{hours}:{minutes:02d}:{seconds}" if hours else f"{minutes}:{seconds}"
