"""Makes pictures that explain tracking, from moments of your own video.

    python phase3_tracking/explain_tracking.py                  # the demo video, the newest model
    python phase3_tracking/explain_tracking.py --input street.mp4 --max-frames 300
    python phase3_tracking/explain_tracking.py --input street.mp4 --detections street.det.txt

1_iou.png            two boxes of consecutive frames, their intersection and union
2_assignment.png     the costs of a crowded frame, what the Hungarian method chooses, and greedy
3_prediction.png     a track in six frames: predicted, with its uncertainty, detected, corrected
4_low_score.png      a weak detection that continues a track, and what happens without it
5_camera_motion.png  how far all boxes lie from where they were predicted, and the median of that

Every number on them is what the trackers of this project computed in that frame. They are in
explained.json, too. What a video does not show is left out, with a line that says so. Pictures 1
to 3 are of SORT with a memory of one second, 4 and 5 of cmcsort, the default tracker. The input is
read twice, so it must be a file or a folder of pictures.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase3_tracking/explain_tracking.py` finds common/

from common import artifacts, cli, paths
from common.cli import UserError, log
from phase3_tracking.backends import add_detector_arguments, load_backend
from phase3_tracking.inputs.source_options import SourceOptions, time_position
from phase3_tracking.video_detector import CONFIDENCE, VideoDetector

if TYPE_CHECKING:
    import numpy as np

    from phase3_tracking.explain.explain_chooser import Moments

FOLDER = paths.METRICS / "tracking_explained"
NUMBERS = "explained.json"
IOU, ASSIGNMENT, PREDICTION = "1_iou.png", "2_assignment.png", "3_prediction.png"
LOW_SCORE, CAMERA = "4_low_score.png", "5_camera_motion.png"
PICTURES = {  # file -> what is said when the video does not show it
    IOU: "No IoU picture: no track has detections in two consecutive frames",
    ASSIGNMENT: "No assignment picture: no frame has two tracks and two detections",
    PREDICTION: "No prediction picture: no track is seen for long enough",
    LOW_SCORE: "No low-score picture: no weak detection continues a track",
    CAMERA: "No camera motion picture: never are four tracks apart from all others",
}


def drawers(
    moments: "Moments", frames: "Mapping[int, np.ndarray]"
) -> dict[str, Callable[[Path], object]]:
    """File name -> what draws it, for all that the video shows."""
    from phase3_tracking.explain import explain_motion_pictures as motion
    from phase3_tracking.explain import explain_pictures as pictures
    from phase3_tracking.explain.explain_weak_picture import draw_weak

    drawn = {
        IOU: moments.overlap and partial(pictures.draw_overlap, moments.overlap, frames),
        ASSIGNMENT: moments.assignment
        and partial(pictures.draw_assignment, moments.assignment, frames),
        PREDICTION: moments.prediction
        and partial(motion.draw_prediction, moments.prediction, frames),
        LOW_SCORE: moments.weak and partial(draw_weak, moments.weak, frames),
        CAMERA: moments.camera and partial(motion.draw_camera, moments.camera, frames),
    }
    return {name: draw for name, draw in drawn.items() if draw}


def explain_tracking(
    text: str, detector: VideoDetector, options: SourceOptions, source_file: Path, output: Path
) -> None:
    """Chooses the moments, draws the pictures and writes them and the numbers, all or nothing.

    Args:
        text: a video file, a folder of pictures or an address of a file.
        source_file: the model or the detections.
        output: folder; what an earlier run left there is replaced.

    Raises:
        UserError: the input cannot be read or shows nothing to explain.
    """
    from phase3_tracking.explain.explain_chooser import (
        choose_moments,
        numbers_of_frames,
        read_frames,
    )

    inputs = [path for path in (Path(text), source_file) if path.is_file()]
    _refuse_inputs(output, [Path(text), *inputs])
    moments = choose_moments(text, detector, options)
    frames = read_frames(text, options, numbers_of_frames(moments))
    files = drawers(moments, frames)
    for name, missing in PICTURES.items():
        if name not in files:
            log.info(missing)
    if not files:
        what = f"shows no object that is tracked at --confidence {detector.confidence_threshold:g}"
        raise UserError(text, what, "lower --confidence, or give more frames")
    report = {
        **artifacts.provenance("tracking_explained", detector.device, inputs),
        "pictures": list(files),
        "confidence": detector.confidence_threshold,
        **numbers(moments),
    }
    numbers_file = output / NUMBERS
    earlier = _earlier_pictures(numbers_file)
    writers = {output / name: draw for name, draw in files.items()}
    artifacts.write_together({**writers, numbers_file: partial(artifacts.put_json, content=report)})
    for name in earlier - set(files):  # of another video, or of other options
        (output / name).unlink(missing_ok=True)
    cli.finished([*writers, numbers_file], "python phase3_tracking/video_detector.py")


def _earlier_pictures(numbers_file: Path) -> set[str]:
    """The pictures that an earlier run left beside its numbers."""
    if not numbers_file.is_file():
        return set()
    try:
        names = artifacts.read_json(numbers_file).get("pictures")
    except UserError:
        return set()  # damaged: it is replaced, and nothing is known of the pictures
    return {name for name in PICTURES if isinstance(names, list) and name in names}


def _refuse_inputs(output: Path, inputs: Sequence[Path]) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(output, "is a file", "give a folder with --output")
    for path in inputs:
        if path.is_dir() and output.exists() and path.samefile(output):
            raise UserError(output, "is also the input", "choose another --output")
        for name in (*PICTURES, NUMBERS):
            if path.is_file() and (output / name).exists() and path.samefile(output / name):
                raise UserError(output / name, "is also an input", "choose another --output")


def numbers(moments: "Moments") -> dict[str, Any]:
    """What the pictures show, for explained.json; null where there is none."""
    from phase3_tracking.explain import explain_numbers as of

    return {
        "iou": of.overlap(moments.overlap) if moments.overlap else None,
        "assignment": of.assignment(moments.assignment) if moments.assignment else None,
        "prediction": of.prediction(moments.prediction) if moments.prediction else None,
        "low_score": of.weak(moments.weak) if moments.weak else None,
        "camera_motion": of.camera(moments.camera) if moments.camera else None,
    }


# --- the command line -----------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    """Checks what was asked for, loads the detector and does the work."""
    from phase3_tracking.inputs.sources import demo_video

    text = args.input or demo_video()
    backend = load_backend(
        *(args.model_path, args.detections, args.device, args.precision),
        *(args.max_proposals, args.class_names),
    )
    detector = VideoDetector(backend, args.confidence, batch_size=args.batch_size)
    options = SourceOptions(start_s=args.start or Fraction(0), max_frames=args.max_frames)
    made_of = args.detections or args.model_path or paths.BEST_MODEL
    explain_tracking(text, detector, options, made_of, args.output)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--input", help="video or folder of pictures (default: the demo video)")
    parser.add_argument(
        "--confidence",
        type=cli.fraction,
        default=CONFIDENCE,
        help="smallest confidence of a strong detection; weaker ones only continue tracks",
    )
    parser.add_argument("--max-frames", type=cli.positive_int, help="stop after this many frames")
    parser.add_argument(
        "--start", type=time_position, metavar="TIME", help="begin here: seconds or [HH:]MM:SS"
    )
    add_detector_arguments(parser)
    cli.add_common_arguments(parser, output=FOLDER, output_help="folder for the pictures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: run(args), args)


if __name__ == "__main__":
    sys.exit(main())
