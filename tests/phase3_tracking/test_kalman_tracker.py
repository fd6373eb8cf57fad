"""KalmanTracker: a plain matrix filter as the oracle, and sequences worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase3_tracking.kalman_tracker import (
    POSITION_NOISE,
    START_POSITION_NOISE,
    START_VELOCITY_NOISE,
    VELOCITY_NOISE,
    KalmanTracker,
    to_cxcywh,
    to_xyxy,
)
from phase3_tracking.object_tracker import IOUTracker


def detection(x: float, *, y: float = 0.0, side: float = 10.0, score: float = 0.9, cls: int = 1):
    return [x, y, x + side, y + side, score, cls]


def frames(*rows_per_frame: list) -> list[np.ndarray]:
    return [np.array(rows, float).reshape(-1, 6) for rows in rows_per_frame]


def ids(tracker, frame: np.ndarray) -> list[int]:
    return tracker.update(frame)[:, 4].astype(int).tolist()


def matrix_filter(measurements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position and velocity (4,) after these (n, 4) cxcywh boxes, by textbook matrices."""
    transition = np.eye(8) + np.eye(8, k=4)
    observe = np.eye(4, 8)
    size = np.tile(measurements[0, 2:], 2)
    state = np.concatenate([measurements[0], np.zeros(4)])
    start = np.concatenate([START_POSITION_NOISE * size, START_VELOCITY_NOISE * size])
    covariance = np.diag(start**2)
    for measured in measurements[1:]:
        size = np.tile(state[2:4], 2)
        noise = np.concatenate([POSITION_NOISE * size, VELOCITY_NOISE * size])
        state = transition @ state
        covariance = transition @ covariance @ transition.T + np.diag(noise**2)
        size = np.tile(measured[2:], 2)
        total = observe @ covariance @ observe.T + np.diag((POSITION_NOISE * size) ** 2)
        gain = covariance @ observe.T @ np.linalg.inv(total)
        state = state + gain @ (measured - observe @ state)
        covariance = (np.eye(8) - gain @ observe) @ covariance
    return state[:4], state[4:]


def test_the_batched_filter_equals_the_matrix_filter():
    rng = np.random.default_rng(3)
    steps = np.cumsum(rng.normal([2, 1, 0.2, 0.1], 0.3, size=(12, 4)), axis=0)
    boxes = np.array([50.0, 60.0, 30.0, 40.0]) + steps
    tracker = KalmanTracker()
    for box in boxes:
        tracker.update(np.array([[*to_xyxy(box[None])[0], 0.9, 1]]))
    position, velocity = matrix_filter(boxes)
    np.testing.assert_allclose(tracker._position[0], position, rtol=1e-9)
    np.testing.assert_allclose(tracker._velocity[0], velocity, rtol=1e-9)


def test_a_hidden_object_is_found_where_its_velocity_brought_it():
    seen = frames(*([detection(3.0 * t)] for t in range(10)))
    hidden = frames(*([] for _ in range(6)))
    again = frames([detection(3.0 * 16)])
    kalman, iou = KalmanTracker(), IOUTracker()
    history = [(ids(kalman, frame), ids(iou, frame)) for frame in seen + hidden + again]
    assert history[9] == ([1], [1])
    assert history[-1] == ([1], [2])  # 18 px on, no overlap with the box it was last seen in


def test_two_that_pass_each_other_keep_their_ids():
    def crossing(t: int) -> list:
        rows = []
        if not 9 <= t <= 11:  # the one behind is hidden
            rows.append(detection(4.0 * t, y=2.0))
        return [*rows, detection(80 - 4.0 * t)]

    tracker = KalmanTracker()
    for frame in frames(*(crossing(t) for t in range(21))):
        tracks = tracker.update(frame)
    left_to_right = tracks[tracks[:, 1] == 2.0][0]
    assert left_to_right[[0, 4]].tolist() == [80.0, 1.0]
    assert tracks[tracks[:, 1] == 0.0][0, [0, 4]].tolist() == [0.0, 2.0]


def test_a_weak_detection_continues_a_track_but_starts_none():
    tracker = KalmanTracker()
    first, weak, strong = frames(
        [detection(0)], [detection(1, score=0.2), detection(100, score=0.2)], [detection(2)]
    )
    assert ids(tracker, first) == [1]
    tracks = tracker.update(weak)
    assert tracks[:, [0, 4, 6]].tolist() == [[1.0, 1.0, 0.2]]
    assert ids(tracker, strong) == [1]


def test_a_detection_between_high_and_start_confidence_starts_no_track():
    tracker = KalmanTracker(high_confidence=0.5, start_confidence=0.7)
    assert ids(tracker, *frames([detection(0, score=0.6)])) == []
    assert ids(tracker, *frames([detection(0, score=0.7)])) == [1]


def test_classes_are_never_joined():
    tracker = KalmanTracker()
    assert ids(tracker, *frames([detection(0, cls=1)])) == [1]
    assert ids(tracker, *frames([detection(0, cls=2)])) == [2]


def test_max_age_and_min_hits():
    tracker = KalmanTracker(max_age=2, min_hits=2)
    box, nothing = frames([detection(0)], [])
    found = [ids(tracker, f) for f in (box, box, nothing, nothing, box, nothing, nothing, nothing)]
    assert found == [[], [1], [], [], [1], [], [], []]
    assert ids(tracker, box) == []  # three misses in a row ended the track: a new one begins
    assert ids(tracker, box) == [2]


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 8), st.integers(2, 8))
def test_the_order_of_detections_does_not_matter(random, objects, length):
    rng = np.random.default_rng(random.randrange(2**32))
    in_order, shuffled = KalmanTracker(), KalmanTracker()
    for _ in range(length):
        corner = rng.uniform(0, 60, size=(objects, 2))
        side = rng.uniform(5, 30, size=(objects, 2))
        score, cls = rng.uniform(0, 1, objects), rng.integers(1, 3, objects)
        frame = np.column_stack([corner, corner + side, score, cls])
        expected = in_order.update(frame)
        np.testing.assert_array_equal(shuffled.update(frame[rng.permutation(objects)]), expected)


def test_long_runs_stay_finite_and_flat():
    tracker = KalmanTracker()
    for t in range(3000):
        tracker.update(np.array([detection(0.5 * t % 500), detection(300, y=200)]))
    state = (tracker._position, tracker._velocity, tracker._var_position, tracker._var_velocity)
    assert all(np.isfinite(values).all() for values in state)
    assert (tracker._var_position > 0).all()
    assert (tracker._var_velocity > 0).all()
    assert len(tracker._position) <= 3


def test_box_forms_are_inverse():
    boxes = np.array([[1.0, 2.0, 5.0, 10.0], [0.0, 0.0, 1.0, 1.0]])
    assert to_cxcywh(boxes)[0].tolist() == [3.0, 6.0, 4.0, 8.0]
    np.testing.assert_array_equal(to_xyxy(to_cxcywh(boxes)), boxes)


@pytest.mark.parametrize("wrong", [{"iou_threshold": 0}, {"max_age": -1}, {"min_hits": 0}])
def test_parameters_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KalmanTracker(**wrong)
