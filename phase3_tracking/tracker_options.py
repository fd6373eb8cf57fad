"""The tracker's command-line options, the same for tracking videos and for evaluating."""

import argparse

from common import cli

IOU_THRESHOLD, MAX_AGE, MIN_HITS = 0.3, 30, 1


def add_tracker_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --iou-threshold, --max-age and --min-hits; their meaning is that of IOUTracker."""
    group = parser.add_argument_group("tracker")
    group.add_argument(
        "--iou-threshold",
        type=_above_zero_fraction,
        default=IOU_THRESHOLD,
        help="smallest overlap (IoU) with which a detection continues a track",
    )
    group.add_argument(
        "--max-age",
        type=cli.non_negative_int,
        default=MAX_AGE,
        help="frames in a row a track survives without a detection",
    )
    group.add_argument(
        "--min-hits",
        type=cli.positive_int,
        default=MIN_HITS,
        help="detections a track must have had before it counts",
    )


def tracker_settings(args: argparse.Namespace) -> dict[str, float]:
    """The parameters of IOUTracker as given on the command line."""
    return {
        "iou_threshold": args.iou_threshold,
        "max_age": args.max_age,
        "min_hits": args.min_hits,
    }


def _above_zero_fraction(text: str) -> float:
    value = cli.fraction(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 would join boxes that do not touch; give more than 0")
    return value
