import argparse

import numpy as np
import pytest

from phase3_tracking.kalman_tracker import KalmanTracker
from phase3_tracking.object_tracker import IOUTracker
from phase3_tracking.tracker_options import (
    add_tracker_arguments,
    build_tracker,
    smallest_confidence,
    tracker_settings,
)


def settings_of(*argv: str) -> dict:
    parser = argparse.ArgumentParser()
    add_tracker_arguments(parser)
    return tracker_settings(parser.parse_args(argv))


@pytest.mark.parametrize(
    ("argv", "kind"), [((), KalmanTracker), (("--tracker", "iou"), IOUTracker)]
)
def test_the_tracker_asked_for_is_built(argv, kind):
    settings = settings_of(*argv, "--max-age", "5", "--min-hits", "2", "--iou-threshold", "0.4")
    tracker = build_tracker(confidence=0.5, **settings)
    assert type(tracker) is kind
    assert (tracker.max_age, tracker.min_hits, tracker.iou_threshold) == (5, 2, 0.4)


def test_without_a_confidence_every_detection_is_strong():
    tracker = build_tracker(confidence=None, **settings_of())
    assert len(tracker.update(np.array([[0, 0, 10, 10, -1.0, 1]]))) == 1


@pytest.mark.parametrize(
    ("confidence", "start"), [(0.0, 0.4), (0.5, 0.7), (0.8, 0.88), (0.9, 0.94)]
)
def test_a_high_confidence_still_lets_tracks_start(confidence, start):
    for score, tracks in ((start + 0.01, 1), (start - 0.01, 0)):
        tracker = build_tracker(confidence=confidence, **settings_of())
        assert len(tracker.update(np.array([[0, 0, 10, 10, score, 1]]))) == tracks


def test_only_the_kalman_tracker_is_shown_weak_detections():
    assert smallest_confidence("kalman", 0.5) == 0.1
    assert smallest_confidence("kalman", 0.05) == 0.05
    assert smallest_confidence("iou", 0.5) == 0.5
