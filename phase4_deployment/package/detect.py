"""Finds objects in pictures, and follows them through videos, with the detector beside this file.

    python detect.py --verify                                  # is everything here, and right?
    python detect.py --input ~/photo.jpg --output ~/found
    python detect.py --input ~/pictures --output ~/found --confidence 0.7
    python detect.py --input ~/street.mp4 --output ~/tracked.mp4
    python detect.py --input ~/street.mp4 --output ~/results --tracker sort --max-frames 500
    python detect.py --input rtsp://camera/1 --output ~/camera.mp4 --live 8000

Pictures get their boxes drawn into copies, and detections.json. Beside the NAME.mp4 of a video
(H.264, with its sound) there will be the tracks as NAME.mot.txt, NAME.csv, NAME.tracks.json and
NAME.coco.json, pictures (NAME.heatmap.png, NAME.contact.jpg), with lines or zones NAME.events.csv,
and the report NAME.json with counts and times. Ctrl-C ends a video after the frames in work; what
is saved by then can be played, and --resume goes on from there.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # so that it finds common/ from any directory

try:
    from common import cli
    from common.cli import UserError
    from phase3_tracking.backends import BATCH_SIZE, PRECISIONS, load_backend
    from phase3_tracking.run_arguments import add_run_arguments, track_inputs
    from phase3_tracking.trackers.tracker_options import tracker_settings
    from phase3_tracking.video_detector import VideoDetector
    from phase4_deployment.package.command_line import (
        add_detector_arguments,
        check_model,
        missing_module,
    )
except Exception:  # of whatever kind: if a file is damaged, say which, not only the first
    from phase4_deployment.package.file_check import file_findings

    if not (findings := file_findings(HERE)):
        raise
    sys.stderr.writelines(f"error: {finding}\n" for finding in findings)
    sys.exit(2)

MODEL, OUTPUT = HERE / "model.onnx", Path("detections")


def detect(args: argparse.Namespace) -> int:
    """Looks for objects in the pictures, or tracks them in the videos, that --input stands for."""
    from phase3_tracking.inputs.sources import expand_inputs
    from phase4_deployment.package.picture_results import pictures_among

    check_model(args.model)
    texts = expand_inputs([args.input])
    pictures = pictures_among(texts)
    if pictures:
        return detect_pictures(args, pictures)
    is_live = not Path(texts[0]).exists()
    return track_inputs(args, texts, args.model, lambda: load_detector(args, is_live=is_live), None)


def detect_pictures(args: argparse.Namespace, files: Sequence[Path]) -> int:
    """Copies with boxes, and detections.json, in the folder --output."""
    from phase4_deployment.package import picture_results

    for option, given in (("--live", args.live is not None), ("--show", args.show)):
        if given:
            raise UserError(option, "shows videos, cameras and addresses", "leave it out")
    picture_results.check_output(args.output, files, replace=args.overwrite)
    detector = load_detector(args, is_live=False)
    saved = picture_results.detect_pictures(detector, files, args.output, args.model)
    cli.finished(saved, None)
    return cli.EXIT_OK


def load_detector(args: argparse.Namespace, *, is_live: bool) -> VideoDetector:
    """The detector and tracker that the options ask for.

    Args:
        is_live: a camera or an address, whose frames should not wait for one another.
    """
    from phase4_deployment.package.package_check import measured_batch_size

    measured = measured_batch_size(HERE, args.model, "latency" if is_live else "throughput")
    return VideoDetector(
        load_backend(args.model, None, args.device, PRECISIONS[0]),
        args.confidence,
        classes=args.classes,
        batch_size=args.batch_size or measured or BATCH_SIZE,
        **tracker_settings(args),
    )


def work(args: argparse.Namespace) -> int:
    """What was asked for; what cannot be imported is told in one line.

    Raises:
        UserError: something the user can mend.
    """
    try:
        from phase4_deployment.package.package_check import check_package

        return check_package(HERE, args.device) if args.verify else detect(args)
    except ModuleNotFoundError as error:
        raise missing_module(error, HERE) from error


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--input", help="picture, video, a folder or pattern of either, camera number or address"
    )
    what.add_argument(
        "--verify",
        action="store_true",
        help="check every file against package_info.json, and the boxes in a known picture",
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder, or for one video an .mp4"
    )
    add_detector_arguments(parser, MODEL, of_confidence="; see also --tracker")
    add_run_arguments(parser)
    group = parser.add_argument_group("common")
    group.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: work(args), args)


if __name__ == "__main__":
    sys.exit(main())
