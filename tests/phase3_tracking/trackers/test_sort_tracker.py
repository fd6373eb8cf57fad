"""SORT on sequences worked out by hand."""

import numpy as np

from phase3_tracking.trackers.sort_tracker import SORTTracker

BOX = [[0, 0, 10, 10, 0.9, 1]]


def returned(tracker: SORTTracker, *frames: list) -> list[list[int]]:
    return [tracker.update(np.array(frame))[:, 4].astype(int).tolist() for frame in frames]


def test_the_first_frames_return_every_track():
    assert returned(SORTTracker(), BOX, BOX) == [[1], [1]]


def test_later_a_track_needs_three_detections_in_a_row():
    frames = [[], [], [], BOX, BOX, BOX, [], BOX, BOX, BOX]
    none, one = [], [1]
    assert returned(SORTTracker(), *frames) == [
        *(none, none, none, none, none, one),
        *(none, none, none, one),
    ]


def test_two_misses_end_a_track():
    tracker = SORTTracker(min_hits=1)
    assert returned(tracker, BOX, [], BOX, [], [], BOX) == [[1], [], [1], [], [], [2]]
