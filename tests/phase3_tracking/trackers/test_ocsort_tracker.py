"""OC-SORT's three additions, one at a time."""

import numpy as np
import pytest

from phase3_tracking.trackers import kalman_filter
from phase3_tracking.trackers.kalman_tracker import STATE
from phase3_tracking.trackers.ocsort_tracker import OCSORTTracker
from phase3_tracking.trackers.sort_tracker import SORTTracker


def box(x: float, y: float = 0.0, score: float = 0.9) -> list[float]:
    return [x, y, x + 20, y + 20, score, 1]


def run(tracker, *frames: list) -> np.ndarray:
    for frame in frames:
        tracks = tracker.update(np.array(frame, float).reshape(-1, 6))
    return tracks


def test_weak_detections_are_not_used():
    assert not len(run(OCSORTTracker(), [box(0, score=0.5)]))


@pytest.mark.parametrize(
    ("step", "expected"),
    [((4, 0), 0.5), ((-4, 0), -0.5), ((0, 4), 0.0), ((4, 4), 0.25), ((0, 0), 0.0)],
)
def test_momentum_by_hand(step, expected):
    tracker = OCSORTTracker()
    run(tracker, [box(-4)], [box(-2)], [box(0)])  # oldest centre (6, 10), moving right
    detections = np.array([box(-4 + step[0], step[1], score=1.0)]).T
    momentum = tracker._momentum(detections, np.array([0]), np.array([0]))
    assert momentum == pytest.approx(expected)


def test_recovery_finds_an_object_that_stopped():
    """The prediction runs on while the object stands where it was last seen."""
    moving = [[box(6.0 * t)] for t in range(12)]
    frames = [*moving, *[[]] * 8, *[[box(66)]] * 3]
    assert run(OCSORTTracker(), *frames)[:, 4].tolist() == [1]
    assert run(SORTTracker(max_age=30), *frames)[:, 4].tolist() == [2]


def test_re_update_is_the_filter_run_over_a_straight_line():
    tracker = OCSORTTracker(min_hits=1)
    seen = [box(2.0 * t) for t in range(6)]
    run(tracker, *[[row] for row in seen], *[[]] * 3, [box(10 + 4 * 3.0)])
    line = [*seen, *(box(10 + 3.0 * t) for t in range(1, 5))]
    states = None
    for row in line:
        measured = kalman_filter.to_cxcywh(np.array([row[:4]]).T)
        if states is None:
            states = kalman_filter.initiate(measured)
        else:
            kalman_filter.predict(states, 1.0, tracker.velocity_noise)
            states = kalman_filter.correct(states, measured)
    np.testing.assert_allclose(tracker._tracks[STATE], states)


def test_tracks_lost_for_different_times_are_run_again_together():
    def frames(first_gone: bool, second_gone: bool) -> list:
        return [[box(3.0 * t, 0)] * (not first_gone or not 10 <= t < 14)
                + [box(3.0 * t, 200)] * (not second_gone or not 12 <= t < 14)
                for t in range(18)]  # fmt: skip

    both, first = OCSORTTracker(), OCSORTTracker()
    run(both, *frames(True, True))
    run(first, *frames(True, False))
    np.testing.assert_allclose(both._tracks[STATE][:, 0], first._tracks[STATE][:, 0])
    assert both.tracks_started == 2
