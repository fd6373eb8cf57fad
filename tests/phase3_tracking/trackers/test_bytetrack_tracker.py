"""ByteTrack's three rounds, one at a time."""

import math

import numpy as np
import pytest

from phase3_tracking.trackers.bytetrack_tracker import ByteTrackTracker


def box(x: float, score: float = 0.9, y: float = 0.0) -> list[float]:
    return [x, y, x + 10, y + 10, score, 1]


def returned(tracker: ByteTrackTracker, *frames: list) -> list[list[int]]:
    return [tracker.update(np.array(frame))[:, 4].astype(int).tolist() for frame in frames]


def test_a_weak_detection_continues_a_track_but_starts_none():
    frames = [[box(0)], [box(1, 0.2), box(50, 0.2)], [box(2)]]
    assert returned(ByteTrackTracker(), *frames) == [[1], [1], [1]]


def test_a_detection_below_low_confidence_is_not_used():
    assert returned(ByteTrackTracker(), [box(0)], [box(0, 0.05)]) == [[1], []]


def test_a_weak_detection_finds_no_track_that_was_lost():
    frames = [[box(0)], [], [box(0, 0.2)], [box(0)]]
    assert returned(ByteTrackTracker(), *frames) == [[1], [], [], [1]]


@pytest.mark.parametrize(("x", "score", "ids"), [(5, 0.9, [1]), (4.9, 0.6, [1]), (5.4, 0.6, [])])
def test_the_first_round_is_by_iou_times_confidence(x, score, ids):
    # IoU 5/15 times 0.9 is 0.3, 5.1/14.9 times 0.6 is 0.205, 4.6/15.4 times 0.6 is 0.179
    assert returned(ByteTrackTracker(), [box(0)], [box(x, score)])[1] == ids


@pytest.mark.parametrize(("x", "ids"), [(3, [1]), (4, [])])
def test_the_second_round_needs_half_the_iou(x, ids):
    assert returned(ByteTrackTracker(), [box(0)], [box(x, 0.5)])[1] == ids  # 7/13, 6/14


def test_a_new_track_is_confirmed_by_its_second_detection():
    frames = [[], [box(0)], [box(0)], [box(50)], [], [box(50)]]
    assert returned(ByteTrackTracker(), *frames) == [[], [], [1], [], [], []]


def test_confirmed_tracks_choose_first():
    # The new track at 4 fits the detection at 3 better, but the old one at 0 comes first.
    frames = [[box(0)], [box(0), box(4)], [box(3)]]
    assert returned(ByteTrackTracker(), *frames) == [[1], [1], [1]]


@pytest.mark.parametrize(("score", "starts"), [(0.65, False), (0.75, True)])
def test_start_confidence(score, starts):
    assert returned(ByteTrackTracker(), [box(0, score)]) == [[1] if starts else []]


def test_confidences_that_mean_nothing():
    tracker = ByteTrackTracker(high_confidence=-math.inf, start_confidence=-math.inf)
    assert returned(tracker, [box(0, -1)], [box(1, -1)]) == [[1], [1]]


@pytest.mark.parametrize("frame_rate", [10, 30])
def test_the_default_memory_is_one_second(frame_rate):
    assert ByteTrackTracker(frame_rate=frame_rate).max_age == frame_rate
