"""What trackers with a motion model share, seen through SORT with a longer memory."""

import numpy as np
import pytest

from phase3_tracking.object_tracker import BOX, IOUTracker
from phase3_tracking.trackers import kalman_filter
from phase3_tracking.trackers.kalman_tracker import STATE
from phase3_tracking.trackers.sort_tracker import SORTTracker


def box(x: float, *, y: float = 0.0, width: float = 20.0, height: float = 20.0) -> list[float]:
    return [x, y, x + width, y + height, 0.9, 1]


def frames(*rows_per_frame: list) -> list[np.ndarray]:
    return [np.array(rows, float).reshape(-1, 6) for rows in rows_per_frame]


def ids(tracker, frame: np.ndarray) -> list[int]:
    return tracker.update(frame)[:, 4].astype(int).tolist()


def tracker_of(**options) -> SORTTracker:
    return SORTTracker(max_age=30, min_hits=1, **options)


def test_a_hidden_object_is_found_where_its_velocity_brought_it():
    seen = frames(*([box(4.0 * t)] for t in range(15)))
    hidden, again = frames(*([] for _ in range(8))), frames([box(4.0 * 23)])
    kalman, iou = tracker_of(), IOUTracker()
    history = [(ids(kalman, frame), ids(iou, frame)) for frame in seen + hidden + again]
    assert history[14] == ([1], [1])
    assert history[-1] == ([1], [2])  # 36 px on, no overlap with the box it was last seen in


def test_two_that_pass_each_other_keep_their_ids():
    def crossing(t: int) -> list:
        behind = [] if 9 <= t <= 11 else [box(6.0 * t, y=2.0)]
        return [*behind, box(120 - 6.0 * t)]

    tracker = tracker_of()
    for frame in frames(*(crossing(t) for t in range(21))):
        tracks = tracker.update(frame)
    assert tracks[tracks[:, 1] == 2.0][0, [0, 4]].tolist() == [120.0, 1.0]
    assert tracks[tracks[:, 1] == 0.0][0, [0, 4]].tolist() == [0.0, 2.0]


def test_boxes_returned_are_the_detections():
    tracker = tracker_of()
    for frame in frames([box(0)], [box(3)], [box(4)]):
        assert tracker.update(frame)[:, :4].tolist() == frame[:, :4].tolist()


def test_the_size_of_what_is_out_of_sight_stays():
    tracker = tracker_of()
    for frame in frames(*([box(0, height=40.0 + 2 * t)] for t in range(10)), [], []):
        tracker.update(frame)
    before = tracker._tracks[STATE][kalman_filter.SIZE].copy()
    tracker.update(np.empty((0, 6)))
    assert tracker._tracks[STATE][kalman_filter.SIZE].tolist() == before.tolist()


@pytest.mark.parametrize("frame_rate", [10.0, 30.0, 60.0])
def test_velocity_is_in_pixels_a_thirtieth_of_a_second(frame_rate):
    tracker = tracker_of(frame_rate=frame_rate)
    for number in range(int(3 * frame_rate)):
        tracker.update(np.array([box(90.0 * number / frame_rate)]))  # 90 px a second
    assert tracker._tracks[STATE][kalman_filter.VELOCITY][0, 0] == pytest.approx(3, rel=0.02)


def test_the_filter_has_the_state_of_the_filter_alone():
    tracker, boxes = tracker_of(), [box(3.0 * t, y=t, width=20 + 0.2 * t) for t in range(8)]
    states = None
    for row in boxes:
        tracker.update(np.array([row]))
        measured = kalman_filter.to_cxcywh(np.array([row[:4]]).T)
        if states is None:
            states = kalman_filter.initiate(measured)
        else:
            kalman_filter.predict(states, 1.0, tracker.velocity_noise)
            states = kalman_filter.correct(states, measured)
    np.testing.assert_allclose(tracker._tracks[STATE], states)
    assert tracker._tracks[BOX, 0].tolist() == boxes[-1][:4]


def test_long_runs_stay_finite():
    tracker = tracker_of()
    for t in range(5000):
        tracker.update(np.array([box(0.5 * t % 500), box(300, y=200)]))
    states = tracker._tracks[STATE]
    assert np.isfinite(states).all()
    assert (states[kalman_filter.VAR_POSITION] > 0).all()
    assert (states[kalman_filter.VAR_VELOCITY] > 0).all()
