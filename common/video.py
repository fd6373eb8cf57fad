"""H.264 video that plays in a browser, and what was encoded by then if the process is killed.

OpenCV's wheels cannot write H.264 (`avc1` opens nothing and `write` then does nothing, silently)
and what they can write no browser plays, so encoding goes through PyAV.
"""

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from common import paths
from common.artifacts import atomic_path, output_errors
from common.cli import UserError, log

if TYPE_CHECKING:
    import numpy as np
    from av.video.stream import VideoStream

ENCODER_OPTIONS = {
    "preset": "veryfast",
    "crf": "23",
    "threads": "4",  # x264 divides its work by this number, so a fixed one gives equal bytes
    # Macroblock-tree rate control reads memory nobody has written unless the width is a multiple
    # of 128, so equal pictures would not always give equal bytes.
    "x264-params": "no-mbtree=1",
}
# The first that this build of PyAV has; browsers play both kinds of video, H.264 and VP9.
ENCODERS = {
    "libx264": ENCODER_OPTIONS,
    "libopenh264": {"b": "6M"},
    "libvpx-vp9": {"crf": "33", "b": "0", "deadline": "realtime", "cpu-used": "6"},
}
COLOR_RANGE_LIMITED = 1  # AVCOL_RANGE_MPEG
COLOR_SPACE_BT601 = 6  # AVCOL_SPC_SMPTE170M: what the BGR conversion produces; players guess
# BT.709 for untagged HD video and would shift its colours
FRAGMENT_S = 1  # of video that a killed process loses at most, beside what x264 has in work
PROBE_BYTES = 1 << 20  # written to learn whether the disk is full
TICKS_PER_S = 90_000  # at least, for given times: exact for whole milliseconds and usual rates


class VideoWriter:
    """Context manager that writes BGR frames as H.264 (yuv420p, fast start) in an mp4.

        with VideoWriter(path, width, height, Fraction(30000, 1001)) as writer:
            writer.write(frame)

    The file appears at `path` when the block ends. If the block raises, nothing appears and an
    older file at `path` stays. Until then the frames are in `partial_path(path)`, in fragments
    that can be played at any moment. A process that is killed leaves it behind, and so does a disk
    that is full, whether this file tells so or another one that the block writes; the next one that
    writes to `path` replaces it.

    Args:
        path: the mp4 to write; its folder is made.
        width, height: frame size in pixels. 4:2:0 video needs even sizes, so an odd one gains
            one column or row, a copy of the last.
        fps: frames per second, exact: 30000/1001 must not become 29.
        audio_from: a video file whose sound is kept, as long as the frames last. The times given
            to `write` are those of this file, from its first frame; without times it is taken from
            the beginning.
        place: gives the path to write the finished file to, for `path`.

    Attributes:
        frames_written: so far.
        audio_kept: how the sound was kept, such as "aac, copied"; None without sound.
        notes: one-line remarks for a report; complete after the block.

    Raises:
        ValueError: a size or rate that is not positive, a frame of another size or type, a time
            that is not after the one before, or a block that ends without having written a frame.
        UserError: `path` is no .mp4 or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: Fraction,
        *,
        audio_from: Path | None = None,
        place: Callable[[Path], AbstractContextManager[Path]] = atomic_path,
    ):
        if width < 1 or height < 1:
            raise ValueError(f"frame size {width}x{height} is not positive")
        if fps <= 0:
            raise ValueError(f"frame rate {fps} is not positive")
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise UserError(self.path, "is no .mp4", "let the output end in .mp4")
        self.width, self.height, self.fps = width, height, Fraction(fps)
        self.audio_from, self._place = audio_from, place
        self.frames_written = 0
        self.audio_kept: str | None = None
        self.notes: list[str] = []
        self._partial = partial_path(self.path)
        self._scale = 0  # ticks per second; 0: frames are counted
        self._first_s = self._last_s = Fraction(0)
        self._last_tick = -1

    def __enter__(self) -> "VideoWriter":
        import av  # late: it loads a second FFmpeg beside OpenCV's

        with output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._partial.exists():
                self._remove_leftover()
            self._partial.touch()  # PyAV opens it with the first frame only
            fragments = {
                "movflags": "frag_keyframe+empty_moov+default_base_moof",
                "frag_duration": str(FRAGMENT_S * 10**6),
                "flush_packets": "1",
            }
            self._container = av.open(_url(self._partial), "w", format="mp4", options=fragments)
        self._stream: VideoStream | None = None
        return self

    def _remove_leftover(self) -> None:
        """What a killed process left is replaced, unless it is what is being read."""
        source = self.audio_from
        if source is not None and source.exists() and self._partial.samefile(source):
            raise UserError(self._partial, "would be replaced", "rename it first")
        self._partial.unlink()

    def write(self, frame_bgr: "np.ndarray", time_s: "Fraction | float | None" = None) -> None:
        """Appends one frame, uint8 (height, width, 3) in BGR order.

        Args:
            time_s: when it is shown, in seconds, the first at any time and each one later than the
                one before. Without times frames follow each other at `fps`. All frames have one,
                or none has.
        """
        import av
        import numpy as np

        expected = (self.height, self.width, 3)
        if frame_bgr.shape != expected or frame_bgr.dtype != np.uint8:
            raise ValueError(
                f"{self.path}: frame {self.frames_written} is {frame_bgr.dtype} "
                f"{frame_bgr.shape}, expected uint8 {expected}"
            )
        tick = self._tick(time_s)
        if self._stream is None:
            self._stream = self._add_stream()
        if self.width % 2 or self.height % 2:
            padding = ((0, self.height % 2), (0, self.width % 2), (0, 0))
            frame_bgr = np.pad(frame_bgr, padding, mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_bgr), format="bgr24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        frame.pts, frame.time_base = tick, self._time_base
        with output_errors(self.path):
            self._container.mux(self._stream.encode(frame))
        self.frames_written += 1

    @property
    def _time_base(self) -> Fraction:
        return Fraction(1, self._scale) if self._scale else 1 / self.fps

    def _tick(self, time_s: "Fraction | float | None") -> int:
        """The presentation time of the next frame, in units of the time base."""
        if self.frames_written and (time_s is not None) != bool(self._scale):
            raise ValueError(f"{self.path}: either every frame has a time, or none has")
        if time_s is None:
            return self.frames_written
        time_s = Fraction(time_s)
        if not self.frames_written:
            rate = self.fps.numerator
            self._scale = rate * ceil(Fraction(TICKS_PER_S, rate))
            self._first_s = time_s
        elif time_s <= self._last_s:
            what = f"at {float(time_s):g} s does not come after {float(self._last_s):g} s"
            raise ValueError(f"{self.path}: frame {self.frames_written} {what}")
        self._last_s = time_s
        exact = round((time_s - self._first_s) * self._scale)
        self._last_tick = max(exact, self._last_tick + 1)
        return self._last_tick

    def _add_stream(self) -> "VideoStream":
        name: Any = self._encoder()  # PyAV's types tell video from audio by literal names only
        stream = self._container.add_stream(name, rate=self.fps, options=dict(ENCODERS[name]))
        stream.width = self.width + self.width % 2
        stream.height = self.height + self.height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = self._time_base
        stream.codec_context.color_range = COLOR_RANGE_LIMITED
        stream.codec_context.colorspace = COLOR_SPACE_BT601
        return stream

    def _encoder(self) -> str:
        """The name of the first encoder there is; another than the usual one is announced."""
        from av.codec import codec

        for name in ENCODERS:
            with contextlib.suppress(codec.UnknownCodecError):
                codec.Codec(name, "w")
                note = f"encoded by {name}, as this PyAV has no libx264"
                if name != "libx264" and note not in self.notes:
                    log.warning("%s: %s", self.path.name, note)
                    self.notes.append(note)
                return name
        what = "this PyAV can encode neither H.264 nor VP9"
        raise UserError(self.path, what, "install PyAV from its wheels: pip install av")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._partial.unlink, missing_ok=True)
            failure = error
            try:
                self._close(failed=error is not None)
                if error is None:
                    self._finish()
            except UserError as own:
                failure = own
            kept = self._playable_after(failure)
            if kept:
                stack.pop_all()  # the only place where the frames are
                raise kept from kept.__cause__
            if failure is not None and failure is not error:
                raise failure

    def _close(self, *, failed: bool) -> None:
        """Writes what the encoder has in work, and the end. Where the block failed the former is
        lost: PyAV crashes if more is written after the disk was full."""
        if failed:
            with contextlib.suppress(Exception):  # the block's own error is the one to tell
                self._container.close()
            return
        if not self.frames_written or self._stream is None:
            self._container.close()
            raise ValueError(f"{self.path}: no frame was written")
        with output_errors(self.path):
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def _playable_after(self, failure: BaseException | None) -> UserError | None:
        """The failure of a disk, of this or another file, with how much can be played; None for
        others, or when nothing can. FFmpeg's muxer hides that a disk was full, so it is counted."""
        import av

        from common.video_remux import check_video, cut_to_fragments

        if not isinstance(failure, UserError) or not isinstance(failure.__cause__, OSError):
            return None
        try:
            cut_to_fragments(self._partial)
            frames = check_video(self._partial)
        except (av.FFmpegError, OSError):
            return None
        if not frames:
            return None
        place = paths.display(self._partial)
        more = f"; {frames} of {self.frames_written} frames can be played in {place}"
        told = UserError(failure.where, f"{failure.what}{more}", failure.remedy)
        told.__cause__ = failure.__cause__
        return told

    def _finish(self) -> None:
        """From the fragments to the file that was asked for."""
        import av

        from common.video_remux import AudioRange, check_video, remux

        audio = None
        if self.audio_from is not None:
            length_s = self.frames_written / self.fps
            if self._scale:
                length_s = self._last_s - self._first_s + 1 / self.fps
            audio = AudioRange(self.audio_from, self._first_s, length_s)
        with output_errors(self.path), self._place(self.path) as temporary:
            try:
                notes, self.audio_kept = remux(self._partial, temporary, self.fps, audio)
                frames = check_video(temporary)
            except av.FFmpegError:
                frames, notes = 0, []
            self.notes += notes
            if frames != self.frames_written:
                _ask_disk(temporary)
                what = f"holds {frames} of {self.frames_written} frames after writing"
                raise UserError(self.path, what, "check the disk; does another run write there?")


def _ask_disk(path: Path) -> None:
    """Raises OSError when nothing more can be written there, which FFmpeg's muxer hides."""
    with open(path, "ab") as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def partial_path(path: Path) -> Path:
    """NAME.mp4 -> NAME.partial.mp4, where the frames are until NAME.mp4 is finished."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def _url(path: Path) -> str:
    """For FFmpeg, which would take `a:b.mp4` for an address."""
    return f"file:{path}"
