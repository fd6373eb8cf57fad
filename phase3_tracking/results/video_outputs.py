"""What is made of every frame of a run: text files, counts, pictures, the video, a live view.

Every file is on the disk, whole, before the first takes its name (see staging.py): a disk that is
full when a run ends leaves an older result as it was. The report takes its name last.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from common import paths, recorded_files
from common.artifacts import put_json
from phase3_tracking.counting.counting import Counting
from phase3_tracking.pipeline import BackgroundWriter
from phase3_tracking.results.contact_sheet import time_stamp
from phase3_tracking.results.output_files import result_files
from phase3_tracking.results.staging import Staging
from phase3_tracking.results.text_streams import named
from phase3_tracking.results.track_writers import TrackWriters, VideoFacts
from phase3_tracking.stage_clock import StageClock

if TYPE_CHECKING:
    import numpy as np

    from common.video import VideoWriter
    from phase3_tracking.inputs.frame_source import Frame, FrameSource
    from phase3_tracking.run_options import OutputOptions


class VideoOutputs:
    """Context manager over the `output_files.result_files` of a run.

        with VideoOutputs(...) as outputs:
            for frame, tracks in ...:
                outputs.take(frame, tracks, clock)
            outputs.complete()
            outputs.publish({...})

    If the block ends before that, none appears, and older ones stay.

    Args:
        staging: of NAME.mp4, after which all files are named.
        source: the opened input.
        class_names: category id -> name.

    Attributes:
        writer: of the video; None without one.

    Raises:
        UserError: a file cannot be written, or a line or zone does not fit the frames.
    """

    def __init__(
        self,
        staging: Staging,
        source: "FrameSource",
        class_names: Mapping[int, str],
        options: "OutputOptions",
    ):
        from phase3_tracking.results.drawing import TrackDrawer

        self._staging, self._source, self._options = staging, source, options
        self._output = staging.output_path
        self._class_names = class_names
        width, height, fps = source.width, source.height, float(source.fps)
        self._counting = Counting(options.counting, class_names, width, height, fps)
        self._drawer = TrackDrawer(class_names, height, fps)
        name = paths.display(source.path) if source.path else source.name
        self._facts = VideoFacts(name, width, height, fps)
        self.writer: VideoWriter | None = None
        self._encoder: BackgroundWriter | None = None

    def __enter__(self) -> "VideoOutputs":
        from common.video import VideoWriter

        source, options, place = self._source, self._options, self._staging.file
        with ExitStack() as stack:  # what is entered first is completed last: the most space
            if options.video:
                size = (source.width, source.height)
                self.writer = VideoWriter(
                    self._output, *size, source.fps, audio_from=source.audio_path, place=place
                )
                stack.enter_context(self.writer)
                self._encoder = stack.enter_context(
                    BackgroundWriter(self.writer, 3 * source.width * source.height)
                )
            with_events = options.counting.has_regions
            self._tracks = TrackWriters(
                self._output, self._class_names, self._facts, with_events=with_events, place=place
            )
            stack.enter_context(self._tracks)
            self._stack = stack.pop_all()
        return self

    def take(self, frame: "Frame", tracks: "np.ndarray", clock: StageClock) -> bool:
        """Everything that is made of one frame; the frame is drawn on and then kept.

        Args:
            tracks: (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence] in pixels.

        Returns:
            False when somebody closed the window.
        """
        image, time_s, number = frame.image_bgr, float(frame.time_s), frame.index + 1
        events = self._counting.update(number, time_s, tracks, image)
        self._tracks.write(number, time_s, tracks, events)
        clock.lap("track")
        if not self._options.draws:
            return True
        counts = self._counting.draw(image)
        self._drawer.draw(image, tracks, status_line(number, time_s, len(tracks)), counts)
        if self._options.draws_fps:
            self._drawer.draw_speed(image, clock.fps_now())
        self._counting.keep(time_s, image)
        clock.lap("draw")
        if self._encoder:
            self._encoder.write(image, frame.time_s)
        return self._show(image, number, len(tracks), clock)

    def _show(self, image: "np.ndarray", number: int, objects: int, clock: StageClock) -> bool:
        """Shows a frame, with the speed of this moment, to whoever is watching."""
        live, window = self._options.live, self._options.window
        if not live and not window:
            return True
        if not self._options.draws_fps:
            image = image.copy()  # the file does not get it
            self._drawer.draw_speed(image, clock.fps_now())
        if live:
            live.publish(image, self._counters(number, objects, clock))
        return not window or window.show(image)

    def _counters(self, number: int, objects: int, clock: StageClock) -> dict[str, Any]:
        """What the live page shows beside the frame."""
        return {
            "fps": clock.fps_now(),
            "frame": number,
            "frames_total": self._source.frames_expected,
            "objects": objects,
            "dropped_frames": self._source.frames_dropped,
            **self._counting.live_counts(),
        }

    @property
    def encode_seconds(self) -> float:
        return self._encoder.seconds if self._encoder else 0.0

    def complete(self) -> None:
        """Puts everything but the report on the disk."""
        for path, content in self._counting.pictures(self._output).items():
            with self._staging.file(path) as staged, named(staged):
                staged.write_bytes(content)
        self._stack.close()

    def publish(self, report: dict[str, Any], replaced: Sequence[Path] = ()) -> None:
        """Writes NAME.json, and lets all files take their places; after `complete`.

        Args:
            report: gains `files`, the size and sha256 of all others.
            replaced: further files, of the run that this one replaces, that go.
        """
        *others, last = result_files(self._output, self._options)
        report[recorded_files.KEY] = recorded_files.record(map(self._staging.staged, others))
        with self._staging.file(last) as staged, named(staged):
            put_json(staged, report)
        self._staging.publish([*others, last], replaced)

    def summary(self) -> dict[str, Any]:
        """What was counted, for the report."""
        return self._counting.summary()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def status_line(frame_number: int, time_s: float, tracks: int) -> str:
    """`frame 12  0:00.4  5 tracks`: where in the input that is, the same in every run."""
    objects = "1 track" if tracks == 1 else f"{tracks} tracks"
    return f"frame {frame_number}  {time_stamp(time_s)}  {objects}"
