"""Detects and tracks objects in videos; writes the annotated video, the tracks and a report.

    python phase3_tracking/video_detector.py                    # the demo video, the newest model
    python phase3_tracking/video_detector.py --input street.mp4 --output tracked.mp4
    python phase3_tracking/video_detector.py --input street.mp4 --classes person --confidence 0.3
    python phase3_tracking/video_detector.py --input street.mp4 --detections street.det.txt
    python phase3_tracking/video_detector.py --input street.mp4 --line gate:0.5,0,0.5,1
    python phase3_tracking/video_detector.py --input rtsp://camera/1 --latency-mode --live 8000

An input is a video file, a folder of pictures or of videos, the number of a camera, or an address.
Beside NAME.mp4 (H.264, with the sound of the input) there will be the tracks as NAME.mot.txt,
NAME.csv, NAME.tracks.json and NAME.coco.json, pictures (NAME.heatmap.png, NAME.contact.jpg), with
lines or zones NAME.events.csv, and the report NAME.json with counts and times.

A video that is damaged is processed as far as it goes. SIGINT (Ctrl-C) or SIGTERM ends the run
after the frames in work; what is saved by then can be played, and --resume goes on from there.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase3_tracking/video_detector.py` finds common/

from common import cli, paths
from common.cli import UserError
from phase3_tracking.backends import (
    BATCH_SIZE,
    PRECISIONS,
    Backend,
    add_detector_arguments,
    is_exported,
    load_backend,
    of_model,
)
from phase3_tracking.run_arguments import add_run_arguments, track_inputs
from phase3_tracking.run_options import RunOptions
from phase3_tracking.trackers.tracker_options import (
    FRAME_RATE,
    TRACKERS,
    build_tracker,
    smallest_confidence,
    tracker_settings,
)

if TYPE_CHECKING:
    import numpy as np

    from common.models import LoadedModel
    from phase3_tracking.inputs.frame_source import Frame
    from phase3_tracking.object_tracker import Tracker

CONFIDENCE = 0.5


class VideoDetector:
    """A detector and a tracker, applied to frames or to whole videos.

    Args:
        model: what `common.models.load_model` or `backends.load_backend` returns.
        confidence_threshold: detections below it are left out, in [0, 1]; but some trackers
            may continue a track with a weaker one.
        classes: names or category ids to keep; None keeps all.
        batch_size: frames given to the model at a time; fewer of a video with large ones.
        workers: batches detected at a time; None chooses for the device.
        precision: of a LoadedModel's backbone and heads, one of PRECISIONS; boxes are computed in
            FP32. "auto" is the half precision that the device computes natively, or FP32.
        tracker: one of tracker_options.TRACKERS.
        iou_threshold, max_age, min_hits: see the trackers; None is the tracker's own default.

    Attributes:
        class_names: category id -> name.
        device: where the model runs.
        batch_size, workers: see above.
        may_resume: whether detections are worth keeping for a run that is stopped.

    Raises:
        UserError: a class the model does not have.
        ValueError: a tracker parameter outside its range.
    """

    def __init__(
        self,
        model: "LoadedModel | Backend",
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

        self._backend = model if isinstance(model, Backend) else of_model(model, precision)
        self.confidence_threshold = confidence_threshold
        self._tracked_from = smallest_confidence(tracker, confidence_threshold)
        self.batch_size = batch_size
        self.workers = workers or self._backend.workers
        self.device, self.may_resume = self._backend.device, self._backend.may_resume
        self.class_names = dict(
            zip(self._backend.category_ids, self._backend.class_names, strict=True)
        )
        self._tracker_settings: dict[str, Any] = {
            "tracker": tracker,
            "iou_threshold": iou_threshold,
            "max_age": max_age,
            "min_hits": min_hits,
        }
        self.new_tracker()  # refuses bad settings now, not at the first video
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
        return self._detect(frames_bgr, range(len(frames_bgr)), self.confidence_threshold)

    def detect_for_tracking(self, frames: "Sequence[Frame]") -> "list[np.ndarray]":
        """The same for frames of an input, with the weak detections that the tracker can use."""
        images, numbers = [f.image_bgr for f in frames], [f.index for f in frames]
        return self._detect(images, numbers, self._tracked_from)

    def _detect(
        self, frames_bgr: "Sequence[np.ndarray]", numbers: Sequence[int], smallest: float
    ) -> "list[np.ndarray]":
        import cv2
        import numpy as np

        images = [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames_bgr]
        found = []
        for boxes_xyxy, scores, labels in self._backend.detect(images, numbers):
            categories = self._category_of_label[labels]
            # a score that is no number goes on to the tracker, which counts it
            kept = ~(scores < smallest) & np.isin(categories, self._kept)
            found.append(np.column_stack([boxes_xyxy, scores, categories])[kept])
        return found

    def process_video(
        self,
        video: Path | str,
        output_path: Path,
        options: RunOptions | None = None,
        *,
        inputs: Sequence[Path] = (),
    ) -> dict[str, Any]:
        """Tracks one input and writes NAME.mp4 and the files beside it; see output_files.

        Track ids start at 1 in every video. Frames have the numbers they have in the input, from 1.

        Args:
            video: a file, a folder of pictures, a camera's number or an address.
            output_path: NAME.mp4.
            inputs: further files to name in the report, with the video.

        Returns:
            The report, as it is in NAME.json. Stage times are means in milliseconds for a frame.
            The stages overlap (see pipeline.py), so their sum is more than a frame takes.

        Raises:
            UserError: the video cannot be read, or an output is no .mp4, cannot be written, or is
                being written by another run.
            KeyboardInterrupt, Terminated: after SIGINT or SIGTERM, once everything is saved.
        """
        from phase3_tracking.video_run import VideoRun

        return VideoRun(self, str(video), output_path, options or RunOptions(), inputs).process()

    def detection_settings(self) -> dict[str, Any]:
        """What the detections of a video depend on."""
        file = self._backend.file
        return {
            "model": [file.name, file.stat().st_size, file.stat().st_mtime_ns] if file else None,
            "precision": self._backend.precision,
            "max_proposals": self._backend.max_proposals,
            "device": self.device,
            "batch_size": self.batch_size,
            "confidence": self._tracked_from,
            "classes": self._kept.tolist(),
        }

    def settings(self, tracker: "Tracker", *, batch_size: int, smooth: bool) -> dict[str, Any]:
        """What a result depends on beside the model and the video, for the report.

        Args:
            batch_size: frames that were given to the model at a time.
            smooth: whether the tracks were smoothed afterwards.
        """
        return {
            "categories": {
                category: self.class_names[category] for category in self._kept.tolist()
            },
            "settings": {
                "confidence_threshold": self.confidence_threshold,
                "batch_size": batch_size,
                "workers": self.workers,
                "precision": self._backend.precision,
                "max_proposals": self._backend.max_proposals,
                "tracker": self._tracker_settings["tracker"],
                "iou_threshold": tracker.iou_threshold,
                "max_age": tracker.max_age,
                "min_hits": tracker.min_hits,
                "smooth": smooth,
            },
        }


# --- the command line -----------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Checks what was asked for, loads the detector and does the work; the exit status."""
    from phase3_tracking.inputs.sources import demo_video, expand_inputs

    if args.detections and args.resize:
        raise UserError("--resize", "would not fit the boxes of --detections", "leave it out")
    texts = expand_inputs(args.input) if args.input else [demo_video()]
    if args.detections and len(texts) > 1:
        raise UserError("--detections", f"is of one video, not of {len(texts)}", "give one --input")
    made_of = args.detections or args.model_path or paths.BEST_MODEL
    next_command = _next_command(args, texts[0])
    return track_inputs(args, texts, made_of, lambda: load_detector(args), next_command)


def _next_command(args: argparse.Namespace, text: str) -> str:
    """What to run next, with the files there are: nothing that needs a model after --detections.

    Args:
        text: the first input.
    """
    words = ["-m", "common.report"]
    if not args.input and args.output is None:
        words = ["phase3_tracking/evaluate_tracking.py"]
    elif args.detections and Path(text).exists():  # what a camera shows cannot be read again
        words = ["phase3_tracking/explain_tracking.py", "--input", text]
        words += ["--detections", str(args.detections)]
    elif not args.detections and not is_exported(args.model_path):
        words = ["phase4_deployment/export_all.py"]
        words += ["--model-path", str(args.model_path)] if args.model_path else []
    return shlex.join(["python", *words])


def load_detector(args: argparse.Namespace) -> VideoDetector:
    """The detector and tracker that the options ask for.

    Raises:
        UserError: an option does not fit, a file is missing, or the device is not there.
    """
    backend = load_backend(
        *(args.model_path, args.detections, args.device, args.precision),
        *(args.max_proposals, args.class_names),
    )
    return VideoDetector(
        backend,
        args.confidence,
        classes=args.classes,
        batch_size=args.batch_size,
        **tracker_settings(args),
    )


def add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --confidence and --classes."""
    parser.add_argument(
        "--confidence",
        type=cli.fraction,
        default=CONFIDENCE,
        help="smallest confidence kept; see also --tracker",
    )
    parser.add_argument(
        "--classes", type=cli.names, help="comma separated names or category ids to keep"
    )


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="INPUT",
        help="videos, folders, patterns, cameras or addresses (default: the demo video)",
    )
    add_selection_arguments(parser)
    add_detector_arguments(parser)
    add_run_arguments(parser)
    cli.add_common_arguments(
        parser,
        output=None,
        output_help="mp4 to write, or a folder (default: outputs/videos/INPUT_tracked.mp4)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: run(args), args)


if __name__ == "__main__":
    sys.exit(main())
