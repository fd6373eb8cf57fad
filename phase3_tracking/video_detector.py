"""Detects and tracks objects in a video and writes the annotated video, the tracks and a report.

    python phase3_tracking/video_detector.py                    # the demo video, the newest model
    python phase3_tracking/video_detector.py --input street.mp4 --output tracked.mp4
    python phase3_tracking/video_detector.py --input street.mp4 --classes person --confidence 0.3
    python phase3_tracking/video_detector.py --input street.mp4 --detections street.det.txt

Beside NAME.mp4 (H.264) it writes NAME.mot.txt, one line for each tracked box,

    frame, track id, x, y, width, height, confidence, COCO category id, 1

and NAME.json with counts and times. A video that is damaged is processed as far as it goes. SIGINT
(Ctrl-C) or SIGTERM ends the run after the frames in work; what is saved by then can be played.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase3_tracking/video_detector.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log
from phase3_tracking import output_files, pipeline
from phase3_tracking.run_report import tell, track_outcome, video_outcome
from phase3_tracking.stage_clock import StageClock
from phase3_tracking.tracker_options import (
    FRAME_RATE,
    TRACKERS,
    add_tracker_arguments,
    build_tracker,
    smallest_confidence,
    tracker_settings,
)

if TYPE_CHECKING:
    import numpy as np

    from common.models import LoadedModel
    from common.stop_signal import StopSignal
    from common.video import VideoWriter
    from phase3_tracking.object_tracker import Tracker
    from phase3_tracking.recorded_detections import RecordedDetections
    from phase3_tracking.video_io import VideoReader

CONFIDENCE = 0.5
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BATCH_SIZE = 4  # enough to keep a GPU busy, few enough to answer Ctrl-C soon


class VideoDetector:
    """A detector and a tracker, applied to frames or to whole videos.

    Args:
        model: what `common.models.load_model` returns, or any Predictor that also has
            `class_names` and `category_ids`, such as RecordedDetections.
        confidence_threshold: detections below it are left out, in [0, 1]; but some trackers
            may continue a track with a weaker one.
        classes: names or category ids to keep; None keeps all.
        batch_size: frames given to the model at a time.
        workers: batches detected at a time; None chooses for the device.
        precision: of backbone and heads, one of PRECISIONS; boxes are computed in FP32. "auto" is
            the half precision that the device computes natively, or FP32.
        tracker: one of tracker_options.TRACKERS.
        iou_threshold, max_age, min_hits: see the trackers; None is the tracker's own default.

    Raises:
        UserError: a class the model does not have.
        ValueError: a tracker parameter outside its range.
    """

    def __init__(
        self,
        model: "LoadedModel | RecordedDetections",
        confidence_threshold: float = CONFIDENCE,
        *,
        classes: Sequence[str] | None = None,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        precision: str = PRECISIONS[0],
        tracker: str = TRACKERS[0],
        iou_threshold: float | None = None,
        max_age: int | None = None,
        min_hits: int | None = None,
    ):
        import numpy as np

        from common.models import LoadedModel

        self.confidence_threshold = confidence_threshold
        self._tracked_from = smallest_confidence(tracker, confidence_threshold)
        self.batch_size = batch_size
        self.class_names = dict(zip(model.category_ids, model.class_names, strict=True))
        self._tracker_settings: dict[str, Any] = {
            "tracker": tracker,
            "iou_threshold": iou_threshold,
            "max_age": max_age,
            "min_hits": min_hits,
        }
        self.new_tracker()  # refuses bad settings now, not at the first video
        self.device, self.precision = "cpu", "of the detections"
        if isinstance(model, LoadedModel):
            self._predict, self.device, self.precision = pipeline.network(model.model, precision)
            self.workers = workers or pipeline.default_workers(self.device)
        else:
            self._predict = model
            self.workers = workers or 1  # it may answer in the order of the calls
        self._category_of_label = np.array([0, *self.class_names])  # label 0 is the background
        self._kept = np.array(sorted(self._categories(classes)), np.int64)

    def new_tracker(self, frame_rate: float = FRAME_RATE) -> "Tracker":
        """A tracker with the settings of this detector, for one video."""
        return build_tracker(
            confidence=self.confidence_threshold, frame_rate=frame_rate, **self._tracker_settings
        )

    def _categories(self, classes: Sequence[str] | None) -> set[int]:
        if classes is None:
            return set(self.class_names)
        by_text = {name: category for category, name in self.class_names.items()}
        by_text |= {str(category): category for category in self.class_names}
        for wanted in classes:
            if wanted not in by_text:
                known = ", ".join(self.class_names.values())
                raise UserError(f"--classes {wanted}", "not known", f"the classes are: {known}")
        return {by_text[wanted] for wanted in classes}

    def detect_frame(self, frame_bgr: "np.ndarray") -> "np.ndarray":
        """(N, 6) [x1, y1, x2, y2, confidence, category id] in pixels of a uint8 BGR frame."""
        return self.detect_frames([frame_bgr])[0]

    def detect_frames(self, frames_bgr: "Sequence[np.ndarray]") -> "list[np.ndarray]":
        """`detect_frame` for several frames at a time."""
        return self._detect(frames_bgr, self.confidence_threshold)

    def _detect(self, frames_bgr: "Sequence[np.ndarray]", smallest: float) -> "list[np.ndarray]":
        import cv2
        import numpy as np

        found = []
        for boxes_xyxy, scores, labels in self._predict(
            [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames_bgr]
        ):
            categories = self._category_of_label[labels]
            kept = (scores >= smallest) & np.isin(categories, self._kept)
            found.append(np.column_stack([boxes_xyxy, scores, categories])[kept])
        return found

    def process_video(
        self,
        video_path: Path,
        output_path: Path,
        *,
        max_frames: int | None = None,
        write_video: bool = True,
        inputs: Sequence[Path] = (),
    ) -> dict[str, Any]:
        """Tracks one video and writes NAME.mp4, NAME.mot.txt and NAME.json.

        Track ids start at 1 in every video.

        Args:
            output_path: NAME.mp4.
            max_frames: stop after this many frames; None processes all.
            write_video: False leaves out drawing, encoding and NAME.mp4.
            inputs: further files to name in the report, with the video.

        Returns:
            The report, as it is in NAME.json. Stage times are means in milliseconds for a frame.
            The stages overlap (see pipeline.py), so their sum is more than a frame takes.

        Raises:
            UserError: the video cannot be read, or an output is no .mp4 or cannot be written.
            KeyboardInterrupt, Terminated: after SIGINT or SIGTERM, once everything is saved.
        """
        from common.stop_signal import StopSignal
        from common.video import VideoWriter
        from phase3_tracking import mot_files
        from phase3_tracking.video_io import VideoReader

        mot_path, report_path = output_files.result_files(output_path, with_video=False)
        video_path, clock = Path(video_path), StageClock()
        with StopSignal() as stop:
            with ExitStack() as stack:
                reader = stack.enter_context(VideoReader(video_path, max_frames=max_frames))
                writer = None
                if write_video:
                    size = (reader.width, reader.height)
                    writer = stack.enter_context(VideoWriter(output_path, *size, reader.fps))
                total = min(filter(None, (max_frames, reader.frames_promised)), default=None)
                tracker, track_log = self._track(reader, writer, stop, clock, total)
            outcome = video_outcome(reader, writer, clock, complete=stop.received is None)
            mot_files.write_tracks(mot_path, track_log)
            report = {
                **artifacts.provenance("video_tracking", self.device, [video_path, *inputs]),
                **outcome,
                **track_outcome(tracker, track_log, self.class_names),
                **self._settings(tracker),
            }
            artifacts.write_json(report_path, report)
        tell(video_path, report)
        stop.raise_received()
        return report

    def _track(
        self,
        reader: "VideoReader",
        writer: "VideoWriter | None",
        stop: "StopSignal",
        clock: StageClock,
        total: int | None,
    ) -> "tuple[Tracker, list[tuple[int, np.ndarray]]]":
        """The loop over the frames: the tracker at its end, and (frame, tracks) of every frame."""
        from phase3_tracking.drawing import TrackDrawer

        tracker = self.new_tracker(float(reader.fps))
        drawer = TrackDrawer(self.class_names, reader.height, float(reader.fps))
        track_log: list[tuple[int, np.ndarray]] = []
        frames = (
            cli.progress(reader, total=total, label=reader.path.name) if total else iter(reader)
        )
        detect = partial(self._detect, smallest=self._tracked_from)
        with (
            pipeline.DetectionWorkers(detect, self.workers, self.device) as workers,
            pipeline.BackgroundWriter(writer) if writer else nullcontext() as encoder,
        ):
            batches = pipeline.in_batches(frames, self.batch_size, stop)
            for batch, detections_per_frame in workers.map(batches):
                for frame, detections in zip(batch, detections_per_frame, strict=True):
                    clock.skip()
                    tracks = tracker.update(detections)
                    track_log.append((len(track_log) + 1, tracks))
                    clock.lap("track")
                    if encoder:
                        drawer.draw(frame, tracks, clock.status(total, len(tracks)))
                        clock.lap("draw")
                        encoder.write(frame)
                    clock.frame_done()
        clock.seconds["detect"] = workers.seconds
        clock.seconds["encode"] = encoder.seconds if encoder else 0.0
        return tracker, track_log

    def _settings(self, tracker: "Tracker") -> dict[str, Any]:
        """What a result depends on beside the model and the video."""
        return {
            "categories": {
                category: self.class_names[category] for category in self._kept.tolist()
            },
            "settings": {
                "confidence_threshold": self.confidence_threshold,
                "batch_size": self.batch_size,
                "workers": self.workers,
                "precision": self.precision,
                "tracker": self._tracker_settings["tracker"],
                "iou_threshold": tracker.iou_threshold,
                "max_age": tracker.max_age,
                "min_hits": tracker.min_hits,
            },
        }


# --- the command line -----------------------------------------------------------------------


def track_video(
    input_path: Path | None,
    output_path: Path | None,
    *,
    model_path: Path | None,
    detections: Path | None,
    device: str,
    precision: str,
    confidence: float,
    classes: Sequence[str] | None,
    batch_size: int,
    settings: Mapping[str, Any],
    max_frames: int | None,
    write_video: bool,
    overwrite: bool,
) -> None:
    """Checks the paths, loads the detector and tracks one video; see build_parser().

    `settings` are those of `tracker_settings`.
    """
    if input_path is None:
        input_path = paths.DEMO_VIDEO
        log.info("Video: %s", paths.display(input_path))
        if not input_path.is_file():
            remedy = "make it with: python phase1_training/make_demo_data.py"
            raise UserError(input_path, "no such file", remedy)
    is_own_choice = output_path is None
    output_path = output_path or paths.VIDEOS / f"{input_path.stem}_tracked.mp4"
    source = detections or model_path or paths.BEST_MODEL
    saved = output_files.result_files(output_path, with_video=write_video)
    repeats_itself = is_own_choice and output_files.is_result_of(saved[-1], input_path)
    output_files.check_may_write(saved, [input_path, source], replace=overwrite or repeats_itself)

    detector = VideoDetector(
        _load(model_path, detections, device),
        confidence,
        classes=classes,
        batch_size=batch_size,
        precision=precision,
        **settings,
    )
    detector.process_video(
        input_path,
        output_path,
        max_frames=max_frames,
        write_video=write_video,
        inputs=[source],
    )
    is_demo = is_own_choice and input_path == paths.DEMO_VIDEO
    next_script = "phase3_tracking/evaluate_tracking" if is_demo else "phase4_deployment/export_all"
    cli.finished(saved, f"python {next_script}.py")


def _load(
    model_path: Path | None, detections: Path | None, device: str
) -> "LoadedModel | RecordedDetections":
    chosen = environment.select_device(device)
    if detections:
        from phase3_tracking.recorded_detections import RecordedDetections

        return RecordedDetections(detections)
    from common.models import load_model

    log.info(environment.summary_line(str(chosen)))
    return load_model(model_path, chosen)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--input", type=Path, help="video to track (default: the demo video)")
    parser.add_argument(
        "--confidence",
        type=cli.fraction,
        default=CONFIDENCE,
        help="smallest confidence kept; see also --tracker",
    )
    parser.add_argument("--classes", help="comma separated names or category ids to keep")
    parser.add_argument("--max-frames", type=cli.positive_int, help="stop after this many frames")
    parser.add_argument("--no-video", action="store_true", help="write tracks and report only")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    detector = parser.add_argument_group("detector")
    source = detector.add_mutually_exclusive_group()
    source.add_argument(
        "--model-path", type=Path, help="checkpoint (default: outputs/models/best_model.pth)"
    )
    source.add_argument(
        "--detections", type=Path, help="MOT detection file to use instead of a model"
    )
    detector.add_argument(
        "--batch-size", type=cli.positive_int, default=BATCH_SIZE, help="frames for each inference"
    )
    detector.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the networks; boxes are computed in FP32. auto: half where the device has it",
    )
    add_tracker_arguments(parser)
    cli.add_common_arguments(
        parser,
        output=None,
        output_help="mp4 to write (default: outputs/videos/INPUT_tracked.mp4)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else None
    return cli.run(
        lambda: track_video(
            args.input,
            args.output,
            model_path=args.model_path,
            detections=args.detections,
            device=args.device,
            precision=args.precision,
            confidence=args.confidence,
            classes=classes,
            batch_size=args.batch_size,
            settings=tracker_settings(args),
            max_frames=args.max_frames,
            write_video=not args.no_video,
            overwrite=args.overwrite,
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
