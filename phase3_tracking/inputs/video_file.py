"""Video files: MP4, MOV, AVI, WebM, MKV, bare H.264 and whatever else FFmpeg knows."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av

from common.cli import UserError
from phase3_tracking.inputs.frame_source import Picture
from phase3_tracking.inputs.video_stream import VideoStream

if TYPE_CHECKING:
    from av.container import InputContainer

REMEDY = "give a video file (MP4, MOV, AVI, WebM, MKV)"
LISTS = {"hls", "concat", "dash", "sdp", "imf"}  # they name other files, which may be anywhere


class VideoFile:
    """The Decoder of a file that is whole, damaged or cut short.

    Args:
        fps: see `VideoStream`.

    Raises:
        UserError: `path` is missing or no video that can be decoded.
    """

    live = False

    def __init__(self, path: Path, *, fps: Fraction | None = None):
        self.path: Path | None = Path(path)
        self.name = str(path)
        _check_file(self.path)
        self._size = self.path.stat().st_size
        try:
            self._stream = VideoStream(self._open, self.name, fps=fps)
        except av.FFmpegError:
            raise UserError(self.path, "is damaged or holds no video", REMEDY) from None
        self.fps = self._stream.fps
        self.frames_promised = self._stream.frames_promised
        has_usable_audio = self._stream.has_audio and not self._stream.times_are_counted
        self.audio_path = self.path if has_usable_audio else None

    def _open(self) -> "InputContainer":
        assert self.path is not None
        # "file:", as a name may look like an address; and a file may lead to other files only
        container = av.open(
            f"file:{self.path}",
            metadata_errors="replace",
            container_options={"protocol_whitelist": "file"},
        )
        kind = container.format.name
        refused = None
        if kind == "image2" or kind.endswith("_pipe"):
            refused = "is a picture, not a video"
        elif kind == "tty":
            refused = "is text, not a video"
        elif kind in LISTS:
            refused = "is a list of other files"
        if refused:
            container.close()
            raise UserError(self.path, refused, REMEDY)
        return container

    @property
    def notes(self) -> list[str]:
        assert self.path is not None
        try:
            grew = self.path.stat().st_size != self._size
        except OSError:
            grew = True
        changed = ["the file changed while it was read"] if grew else []
        return [*self._stream.notes, *changed]

    def pictures(self, start_s: Fraction) -> Iterator[Picture]:
        return self._stream.pictures(start_s)

    def cut_short(self) -> bool:
        return self._stream.cut_short()

    def close(self) -> None:
        self._stream.container.close()


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UserError(path, "no such file", "check the path")
    if not path.is_file():
        raise UserError(path, "not a regular file", REMEDY)
    if not os.access(path, os.R_OK):
        raise UserError(path, "may not be read", "check its permissions")
    if not path.stat().st_size:
        raise UserError(path, "is empty", REMEDY)
