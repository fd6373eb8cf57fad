"""The choice of tracker and its options, the same for tracking videos and for evaluating."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from common import cli

if TYPE_CHECKING:
    from phase3_tracking.object_tracker import Tracker

TRACKERS = ("kalman", "iou")
IOU_THRESHOLD, MAX_AGE, MIN_HITS = 0.3, 30, 1
WEAK_CONFIDENCE = 0.1  # the Kalman tracker makes use of detections down to here
START_SHARE = 0.4  # it starts a track this share of the way from the confidence asked to 1


def build_tracker(
    *, tracker: str, confidence: float | None, iou_threshold: float, max_age: int, min_hits: int
) -> "Tracker":
    """Makes the tracker called `tracker`, one of TRACKERS.

    Args:
        confidence: what counts as a strong detection for the Kalman tracker; None takes all
            detections as strong, for files whose scores mean nothing.
        iou_threshold, max_age, min_hits: see the trackers.

    Raises:
        ValueError: a parameter outside its range.
    """
    if tracker == "iou":
        from phase3_tracking.object_tracker import IOUTracker

        return IOUTracker(iou_threshold, max_age, min_hits)
    from phase3_tracking.kalman_tracker import KalmanTracker

    if confidence is None:
        return KalmanTracker(iou_threshold, max_age, min_hits, -math.inf, -math.inf)
    start = confidence + START_SHARE * (1 - confidence)
    return KalmanTracker(iou_threshold, max_age, min_hits, confidence, start)


def smallest_confidence(tracker: str, confidence: float) -> float:
    """The weakest detections the tracker wants to see, when `confidence` was asked for."""
    return min(confidence, WEAK_CONFIDENCE) if tracker == "kalman" else confidence


def add_tracker_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --tracker, --iou-threshold, --max-age and --min-hits."""
    group = parser.add_argument_group("tracker")
    group.add_argument(
        "--tracker",
        choices=TRACKERS,
        default=TRACKERS[0],
        help="kalman predicts where a track will be; iou looks where it was",
    )
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


def tracker_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The tracker and its parameters as given on the command line."""
    return {
        "tracker": args.tracker,
        "iou_threshold": args.iou_threshold,
        "max_age": args.max_age,
        "min_hits": args.min_hits,
    }


def _above_zero_fraction(text: str) -> float:
    value = cli.fraction(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 would join boxes that do not touch; give more than 0")
    return value
