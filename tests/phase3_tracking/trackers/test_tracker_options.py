import argparse

import numpy as np
import pytest

from phase3_tracking.object_tracker import IOUTracker
from phase3_tracking.trackers.bytetrack_tracker import ByteTrackTracker
from phase3_tracking.trackers.cmcsort_tracker import CMCSORTTracker
from phase3_tracking.trackers.ocsort_tracker import OCSORTTracker
from phase3_tracking.trackers.sort_tracker import SORTTracker
from phase3_tracking.trackers.tracker_options import (
    TRACKERS,
    add_tracker_arguments,
    build_tracker,
    smallest_confidence,
    tracker_settings,
)

CLASSES = {
    "cmcsort": CMCSORTTracker,
    "ocsort": OCSORTTracker,
    "bytetrack": ByteTrackTracker,
    "sort": SORTTracker,
    "iou": IOUTracker,
}


def parser() -> argparse.ArgumentParser:
    one = argparse.ArgumentParser()
    add_tracker_arguments(one)
    return one


def settings_of(*argv: str) -> dict:
    return tracker_settings(parser().parse_args(argv))


@pytest.mark.parametrize("name", TRACKERS)
def test_the_tracker_asked_for_is_built(name):
    options = ("--max-age", "5", "--min-hits", "2", "--iou-threshold", "0.4")
    tracker = build_tracker(confidence=0.5, **settings_of("--tracker", name, *options))
    assert type(tracker) is CLASSES[name]
    assert (tracker.max_age, tracker.min_hits, tracker.iou_threshold) == (5, 2, 0.4)


def test_the_default_and_the_settings_given():
    assert settings_of() == {"tracker": "cmcsort"}
    assert settings_of("--max-age", "0") == {"tracker": "cmcsort", "max_age": 0}


def test_every_tracker_has_defaults_of_its_own():
    found = {}
    for name in TRACKERS:
        tracker = build_tracker(tracker=name, confidence=0.5, frame_rate=10)
        found[name] = (tracker.iou_threshold, tracker.max_age, tracker.min_hits)
    assert found == {  # as the help says
        "cmcsort": (0.2, 20, 2),
        "ocsort": (0.3, 10, 3),
        "bytetrack": (0.2, 10, 2),
        "sort": (0.3, 1, 3),
        "iou": (0.3, 30, 1),
    }


@pytest.mark.parametrize("name", TRACKERS)
def test_without_a_confidence_every_detection_is_strong(name):
    tracker = build_tracker(tracker=name, confidence=None)
    for x in (0, 1, 2):
        tracks = tracker.update(np.array([[x, 0, x + 10, 10, -1.0, 1]]))
        assert tracks[:, 4].tolist() == [1]


@pytest.mark.parametrize("name", ["cmcsort", "bytetrack"])
@pytest.mark.parametrize(
    ("confidence", "start"), [(0.0, 0.4), (0.5, 0.7), (0.8, 0.88), (0.9, 0.94)]
)
def test_a_high_confidence_still_lets_tracks_start(name, confidence, start):
    for score, tracks in ((start + 0.01, 1), (start - 0.01, 0)):
        tracker = build_tracker(tracker=name, confidence=confidence)
        assert len(tracker.update(np.array([[0, 0, 10, 10, score, 1]]))) == tracks


def test_only_trackers_that_use_weak_detections_are_shown_them():
    assert smallest_confidence("cmcsort", 0.5) == 0.1
    assert smallest_confidence("bytetrack", 0.05) == 0.05
    assert [smallest_confidence(name, 0.5) for name in ("ocsort", "sort", "iou")] == [0.5] * 3


def test_a_threshold_of_zero_is_refused(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--iou-threshold", "0"])
    assert "0 would join boxes" in capsys.readouterr().err
