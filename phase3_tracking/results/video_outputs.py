"""What is made of every frame of a run: text files, counts, pictures, the video, a live view.

Every file is on the disk, whole, before the first takes its name: a disk that is full when a run
ends leaves an older result as it was. The report takes its name last.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from common import paths
from common.artifacts import atomic_path, put_json
from phase3_tracking.counting.counting import Counting
from phase3_tracking.pipeline import BackgroundWriter
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
            outputs.write_report({...})

    They appear when the block ends; if it raises, none does, and older ones stay.

    Args:
        output_path: NAME.mp4, after which all files are named.
        source: the opened input.
        class_names: category id -> name.

    Attributes:
        writer: of the video; None without one.

    Raises:
        UserError: a file cannot be written, or a line or zone does not fit the frames.
    """

    def __init__(
        self,
        output_path: Path,
        source: "FrameSource",
        class_names: Mapping[int, str],
        options: "OutputOptions",
    ):
        from phase3_tracking.results.drawing import TrackDrawer

        self._output, self._source, self._options = output_path, source, options
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

        source = self._source
        with ExitStack() as video, ExitStack() as stack:
            if self._options.video:
                size = (source.width, source.height)
                self.writer = video.enter_context(
                    VideoWriter(self._output, *size, source.fps, audio_from=source.audio_path)
                )
            # what is entered first takes its name last
            self._report = stack.enter_context(atomic_path(self._output.with_suffix(".json")))
            with_events = self._options.counting.has_regions
            self._tracks = stack.enter_context(
                TrackWriters(self._output, self._class_names, self._facts, with_events=with_events)
            )
            self._video = stack.enter_context(video.pop_all())
            if self.writer:
                self._encoder = self._video.enter_context(BackgroundWriter(self.writer))
            self._stack = stack.pop_all()
        return self

    def take(self, frame: "Frame", tracks: "np.ndarray", clock: StageClock) -> bool:
        """Everything that is made of one frame; the frame is drawn on and then kept.

        Args:
            tracks: (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence] in pixels.

        Returns:
            False when somebody closed the window.
        """
        image, time_s = frame.image_bgr, float(frame.time_s)
        number = frame.index + 1
        events = self._counting.update(number, time_s, tracks, image)
        self._tracks.write(number, time_s, tracks, events)
        clock.lap("track")
        if not self._options.draws:
            return True
        self._drawer.draw(image, tracks, clock.status(self._source.frames_expected, len(tracks)))
        self._counting.draw(image)
        self._counting.keep(time_s, image)
        clock.lap("draw")
        if self._encoder:
            self._encoder.write(image, frame.time_s)
        if self._options.live:
            self._options.live.publish(image, self._counters(number, len(tracks), clock))
        return not self._options.window or self._options.window.show(image)

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
        """Puts everything but the report on the disk, the video last: it needs most space."""
        for path, content in self._counting.pictures(self._output).items():
            temporary = self._stack.enter_context(atomic_path(path))
            with named(temporary):
                temporary.write_bytes(content)
        self._tracks.complete()
        self._video.close()

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Writes NAME.json, after `complete`."""
        with named(self._report):
            put_json(self._report, report)

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
