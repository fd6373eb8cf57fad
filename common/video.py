"""H.264 video that plays in a browser, written whole or not at all.

OpenCV's wheels cannot write H.264 (`avc1` opens nothing and `write` then does nothing, silently)
and what they can write no browser plays, so encoding goes through PyAV.
"""

import contextlib
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from common.artifacts import atomic_path

if TYPE_CHECKING:
    import numpy as np

ENCODER_OPTIONS = {
    "preset": "veryfast",
    "crf": "23",
    "threads": "4",  # x264 divides its work by this number, so a fixed one gives equal bytes
    # Macroblock-tree rate control reads memory nobody has written unless the width is a multiple
    # of 128, so equal pictures would not always give equal bytes.
    "x264-params": "no-mbtree=1",
}
COLOR_RANGE_LIMITED = 1  # AVCOL_RANGE_MPEG
COLOR_SPACE_BT601 = 6  # AVCOL_SPC_SMPTE170M: what the BGR conversion produces; players guess
# BT.709 for untagged HD video and would shift its colours


class VideoWriter:
    """Context manager that writes BGR frames as H.264 (yuv420p, fast start) in an mp4.

        with VideoWriter(path, width, height, Fraction(30000, 1001)) as writer:
            writer.write(frame)

    The file appears at `path` when the block ends. If the block raises, nothing appears and an
    older file at `path` stays.

    Args:
        path: the mp4 to write; its folder is made.
        width, height: frame size in pixels. 4:2:0 video needs even sizes, so an odd one gains
            one column or row, a copy of the last.
        fps: frames per second, exact: 30000/1001 must not become 29.

    Raises:
        ValueError: a size or rate that is not positive, a frame of another size or type, or a
            block that ends without having written a frame.
        UserError: `path` cannot be written.
    """

    def __init__(self, path: Path, width: int, height: int, fps: Fraction):
        if width < 1 or height < 1:
            raise ValueError(f"frame size {width}x{height} is not positive")
        if fps <= 0:
            raise ValueError(f"frame rate {fps} is not positive")
        self.path = Path(path)
        self.width, self.height, self.fps = width, height, Fraction(fps)
        self.frames_written = 0

    def __enter__(self) -> "VideoWriter":
        import av  # late: it loads a second FFmpeg beside OpenCV's

        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            options = {"movflags": "+faststart"}
            self._container = stack.enter_context(
                av.open(str(temporary), "w", format="mp4", options=options)
            )
            stream = self._container.add_stream("libx264", rate=self.fps, options=ENCODER_OPTIONS)
            stream.width = self.width + self.width % 2
            stream.height = self.height + self.height % 2
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = 1 / self.fps
            stream.codec_context.color_range = COLOR_RANGE_LIMITED
            stream.codec_context.colorspace = COLOR_SPACE_BT601
            self._stream = stream
            self._stack = stack.pop_all()
        return self

    def write(self, frame_bgr: "np.ndarray") -> None:
        """Appends one frame, uint8 (height, width, 3) in BGR order."""
        import av
        import numpy as np

        expected = (self.height, self.width, 3)
        if frame_bgr.shape != expected or frame_bgr.dtype != np.uint8:
            raise ValueError(
                f"{self.path}: frame {self.frames_written} is {frame_bgr.dtype} "
                f"{frame_bgr.shape}, expected uint8 {expected}"
            )
        if self.width % 2 or self.height % 2:
            padding = ((0, self.height % 2), (0, self.width % 2), (0, 0))
            frame_bgr = np.pad(frame_bgr, padding, mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_bgr), format="bgr24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        frame.pts, frame.time_base = self.frames_written, 1 / self.fps
        self._container.mux(self._stream.encode(frame))
        self.frames_written += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack as stack:
            if error is not None:
                stack.pop_all().__exit__(kind, error, trace)  # discards the temporary file
                return
            if not self.frames_written:
                raise ValueError(f"{self.path}: no frame was written")
            self._container.mux(self._stream.encode(None))
