"""One input through detection and tracking to its results."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import artifacts, cli, paths
from common.cli import UserError
from common.stop_signal import StopSignal
from phase3_tracking import pipeline
from phase3_tracking.detection_log import DetectionLog, log_file
from phase3_tracking.results import output_files, run_report
from phase3_tracking.results.staging import Staging
from phase3_tracking.results.video_outputs import VideoOutputs
from phase3_tracking.stage_clock import StageClock

if TYPE_CHECKING:
    import numpy as np

    from phase3_tracking.inputs.frame_source import Frame, FrameSource
    from phase3_tracking.object_tracker import Tracker
    from phase3_tracking.run_options import RunOptions
    from phase3_tracking.video_detector import VideoDetector


class VideoRun:
    """What `VideoDetector.process_video` does; see there."""

    def __init__(
        self,
        detector: "VideoDetector",
        text: str,
        output_path: Path,
        options: "RunOptions",
        inputs: Sequence[Path],
    ):
        self._detector, self._text, self._output = detector, text, output_path
        self._options, self._inputs = options, inputs
        self._clock = StageClock()
        self._stop = StopSignal()
        self._is_closed = False  # the window, by a person
        self._batch_size = detector.batch_size

    def process(self) -> dict[str, Any]:
        """Writes everything and returns the report."""
        files = output_files.result_files(self._output, self._options.outputs)
        inputs = output_files.input_files([self._text], self._inputs)
        output_files.check_may_write(self._output, files, inputs, replace=True)
        with self._stop, Staging(self._output) as staging:
            source = self._opened()
            with source, self._log(source) as log:
                self._check_live(source)
                report = self._process(source, log, staging)
                if report["complete"]:
                    log.finish()
        run_report.tell(source.name, report)
        for path in output_files.strange_files(self._output, files, inputs):
            cli.log.warning("%s is not of this run: it was there before", paths.display(path))
        self._stop.raise_received()
        return report

    def _opened(self) -> "FrameSource":
        """The input. A signal while a network input is connected to ends it as any other does."""
        from phase3_tracking.inputs.sources import open_source

        try:
            return open_source(self._text, self._options.source, should_stop=self._is_stopped)
        except KeyboardInterrupt:
            self._stop.raise_received()
            raise

    def _publish(self, outputs: VideoOutputs, report: dict[str, Any]) -> None:
        """Lets the files take their places; those of an older run go."""
        files = output_files.result_files(self._output, self._options.outputs)
        inputs = output_files.input_files([self._text], self._inputs)
        replaced = output_files.files_replaced(self._output, files, inputs)
        outputs.publish(report, replaced)
        if replaced:
            names = ", ".join(path.name for path in replaced)
            cli.log.info("Removed %s of the run that this one replaces", names)

    def _check_live(self, source: "FrameSource") -> None:
        """Smoothing reads an input twice; and without latency mode a live one may fall behind."""
        if not source.live:
            return
        if self._options.smooths:
            what = "is live, and --smooth has to read its input twice"
            raise UserError(source.name, what, "leave out --smooth")
        if not self._options.source.latency_mode:
            cli.log.info(
                "Every frame is worked on; --latency-mode keeps up with the camera instead"
            )

    def _is_stopped(self) -> bool:
        return self._stop.received is not None

    def _process(
        self, source: "FrameSource", log: DetectionLog, staging: Staging
    ) -> dict[str, Any]:
        """Writes all files; the contents of the report."""
        detector, options = self._detector, self._options.outputs
        self._batch_size = self._frames_at_a_time(source)
        tracker = detector.new_tracker(float(source.fps))
        with VideoOutputs(staging, source, detector.class_names, options) as outputs:
            with ExitStack() as stack:
                tracked = self._tracked(source, tracker, log, stack)
                if self._options.smooths:
                    tracked = self._smoothed(tracked, float(source.fps))
                for frame, tracks in tracked:
                    self._is_closed = not outputs.take(frame, tracks, self._clock)
                    self._clock.frame_done(frame.received_s)
                    if self._is_closed:
                        break
            is_complete = not self._is_stopped() and not self._is_closed
            outputs.complete()
            report = self._report(source, outputs, tracker, complete=is_complete)
            self._publish(outputs, report)
        return report

    def _frames_at_a_time(self, source: "FrameSource") -> int:
        """Given to the model: one where only the newest counts, else as many as was asked for,
        unless they are too large."""
        if self._options.source.latency_mode:
            return 1
        wanted, workers = self._detector.batch_size, self._detector.workers
        size = pipeline.batch_size_within(wanted, workers, 3 * source.width * source.height)
        if size < wanted:
            text = "Batches of %d frames instead of %d: so many of %dx%d pixels would fill %.0f GiB"
            gib = pipeline.BATCH_BYTES / (1 << 30)
            cli.log.info(f"{text} and more", size, wanted, source.width, source.height, gib)
        return size

    def _report(
        self, source: "FrameSource", outputs: VideoOutputs, tracker: "Tracker", *, complete: bool
    ) -> dict[str, Any]:
        detector, clock = self._detector, self._clock
        clock.seconds["encode"] = outputs.encode_seconds
        read = [source.path] if source.path and source.path.is_file() else []
        return {
            **artifacts.provenance("video_tracking", detector.device, [*read, *self._inputs]),
            **run_report.of_video(source, outputs.writer, clock, complete=complete),
            **run_report.of_tracks(outputs.summary(), tracker),
            **detector.settings(tracker, batch_size=self._batch_size, smooth=self._options.smooths),
        }

    def _tracked(
        self, source: "FrameSource", tracker: "Tracker", log: DetectionLog, stack: ExitStack
    ) -> "Iterator[tuple[Frame, np.ndarray]]":
        for frame, detections in self._detected(source, log, stack):
            self._clock.skip()
            tracks = tracker.update(detections, float(frame.time_s))
            self._clock.lap("track")
            yield frame, tracks

    def _smoothed(
        self, tracked: "Iterator[tuple[Frame, np.ndarray]]", frame_rate: float
    ) -> "Iterator[tuple[Frame, np.ndarray]]":
        """The frames once more, with smoothed tracks, until a signal comes; after one that came
        before, all that were tracked."""
        from phase3_tracking.inputs.sources import open_source
        from phase3_tracking.trackers.track_smoothing import smooth_frames

        tracks_per_frame = smooth_frames([tracks for _, tracks in tracked], frame_rate)
        was_stopped = self._is_stopped()
        with open_source(self._text, self._options.source) as again:
            self._clock.skip()
            for pair in zip(again, tracks_per_frame, strict=False):
                yield pair
                if self._is_stopped() and not was_stopped:
                    break
            self._clock.seconds["decode"] += again.decode_seconds

    def _log(self, source: "FrameSource") -> DetectionLog:
        options = self._options.source
        path = source.path if self._detector.may_resume and not options.latency_mode else None
        if path is None:
            return DetectionLog(None, {}, resumes=self._options.resumes)
        described = {
            "input": [path.name, path.stat().st_size, path.stat().st_mtime_ns],
            "start": str(options.start_s),
            "frame_skip": options.frame_skip,
            "resize": str(options.resize),
            "fps": str(options.fps),
            **self._detector.detection_settings(),
        }
        return DetectionLog(log_file(self._output), described, resumes=self._options.resumes)

    def _detected(
        self, source: "FrameSource", log: DetectionLog, stack: ExitStack
    ) -> "Iterator[tuple[Frame, np.ndarray]]":
        """Every frame with its detections, in order, until a signal came; one frame at least."""
        is_live = self._options.source.latency_mode
        total = source.frames_expected
        frames = cli.progress(source, total=total, label=source.name) if total else iter(source)

        def detect(batch: "Sequence[Frame]") -> "list[np.ndarray]":
            known = log.get([frame.index for frame in batch])
            return self._detector.detect_for_tracking(batch) if known is None else known

        batches = pipeline.in_batches(frames, self._batch_size, self._stop)
        # ahead of the caller by a batch or two, but in latency mode, where only the newest counts
        workers = stack.enter_context(
            pipeline.DetectionWorkers(
                detect, 0 if is_live else self._detector.workers, self._detector.device
            )
        )
        for batch, detections in workers.map(batches):
            log.add([frame.index for frame in batch], detections)
            self._clock.seconds["detect"] = workers.seconds
            yield from zip(batch, detections, strict=True)
