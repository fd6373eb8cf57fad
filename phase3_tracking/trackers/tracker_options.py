"""The choice of tracker and its options, the same for tracking videos and for evaluating."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from common import cli

if TYPE_CHECKING:
    from phase3_tracking.object_tracker import Tracker

TRACKERS = ("cmcsort", "ocsort", "bytetrack", "sort", "iou")
FRAME_RATE = 30.0
WEAK_CONFIDENCE = 0.1  # trackers that make use of weak detections do so down to here
USING_WEAK = ("cmcsort", "bytetrack")
START_SHARE = 0.4  # these start a track this share of the way from the confidence asked to 1


def build_tracker(
    *,
    tracker: str,
    confidence: float | None,
    iou_threshold: float | None = None,
    max_age: int | None = None,
    min_hits: int | None = None,
    frame_rate: float = FRAME_RATE,
) -> "Tracker":
    """Makes the tracker called `tracker`, one of TRACKERS.

    Args:
        confidence: what counts as a strong detection, for trackers that distinguish; None takes all
            detections as strong, for files whose scores mean nothing.
        iou_threshold, max_age, min_hits: see the trackers; None is the tracker's own default.
        frame_rate: frames per second of the video.

    Raises:
        ValueError: a parameter outside its range.
    """
    from phase3_tracking.object_tracker import IOUTracker
    from phase3_tracking.trackers.bytetrack_tracker import ByteTrackTracker
    from phase3_tracking.trackers.cmcsort_tracker import CMCSORTTracker
    from phase3_tracking.trackers.ocsort_tracker import OCSORTTracker
    from phase3_tracking.trackers.sort_tracker import SORTTracker

    given = {"iou_threshold": iou_threshold, "max_age": max_age, "min_hits": min_hits}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options["frame_rate"] = frame_rate
    if tracker == "iou":
        return IOUTracker(**options)
    if tracker == "sort":
        return SORTTracker(**options)
    options["high_confidence"] = -math.inf if confidence is None else confidence
    if tracker == "ocsort":
        return OCSORTTracker(**options)
    options["start_confidence"] = (
        -math.inf if confidence is None else confidence + START_SHARE * (1 - confidence)
    )
    if tracker == "bytetrack":
        return ByteTrackTracker(low_confidence=WEAK_CONFIDENCE, **options)
    # what it is not to use it is not shown, see `smallest_confidence`; the rest all counts
    return CMCSORTTracker(low_confidence=-math.inf, **options)


def smallest_confidence(tracker: str, confidence: float) -> float:
    """The weakest detections the tracker wants to see, when `confidence` was asked for."""
    return min(confidence, WEAK_CONFIDENCE) if tracker in USING_WEAK else confidence


def add_tracker_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --tracker, --iou-threshold, --max-age, --min-hits and --smooth."""
    group = parser.add_argument_group("tracker")
    group.add_argument(
        "--tracker",
        choices=TRACKERS,
        default=TRACKERS[0],
        help="iou looks for a track where it was, the others where it should be by now",
    )
    group.add_argument(
        "--iou-threshold",
        "--iou",
        type=_above_zero_fraction,
        help="smallest overlap (IoU) with which a detection continues a track "
        "(default: 0.2 for cmcsort and bytetrack, 0.3 for the others)",
    )
    group.add_argument(
        "--max-age",
        type=cli.non_negative_int,
        help="frames in a row a track survives without a detection (default: 30 for iou, 1 for "
        "sort, 2 seconds for cmcsort, 1 second for the others)",
    )
    group.add_argument(
        "--min-hits",
        type=cli.positive_int,
        help="detections a track must have had before it counts "
        "(default: 1 for iou, 3 for sort and ocsort, 2 for the others)",
    )
    group.add_argument(
        "--smooth",
        action="store_true",
        help="fill gaps and take out jitter when all frames are tracked; for files",
    )


def tracker_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The tracker and those of its parameters that were given on the command line."""
    names = ("tracker", "iou_threshold", "max_age", "min_hits")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _above_zero_fraction(text: str) -> float:
    value = cli.fraction(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 would join boxes that do not touch; give more than 0")
    return value
