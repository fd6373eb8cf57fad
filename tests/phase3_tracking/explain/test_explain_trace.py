"""A traced tracker decides as the tracker does, and what is kept of an update is true."""

import numpy as np
import pytest

from phase3_tracking.explain.explain_trace import (
    TracedCMCSORT,
    TracedSORT,
    centre_px,
    estimated_box,
    sigmas_px,
    strong_only,
    traced_update,
)
from phase3_tracking.object_tracker import BOX, CLASS, HITS, ID, RETURNED, SINCE
from phase3_tracking.trackers import kalman_filter
from phase3_tracking.trackers.cmcsort_tracker import CMCSORTTracker
from phase3_tracking.trackers.sort_tracker import SORTTracker

SIZE, PUSH = np.array([30, 60]), np.array([6, 2])


def crowd(frames: int, seed: int = 0) -> list[np.ndarray]:
    """Detections (N, 6) of boxes that walk at random, some weak, some missing."""
    rng = np.random.default_rng(seed)
    corner, found = rng.uniform(0, 300, (15, 2)), []
    for _ in range(frames):
        corner = corner + rng.normal(1, 3, corner.shape)
        kept = rng.random(15) < 0.85
        columns = [corner, corner + SIZE, rng.uniform(0.2, 1, (15, 1)), np.zeros((15, 1))]
        found.append(np.hstack(columns)[kept])
    return found


@pytest.mark.parametrize(
    ("traced", "plain"), [(TracedSORT, SORTTracker), (TracedCMCSORT, CMCSORTTracker)]
)
def test_decides_as_the_tracker_does(traced, plain):
    mine, theirs = traced(frame_rate=10), plain(frame_rate=10)
    for number, detections in enumerate(crowd(40), start=1):
        step = traced_update(mine, detections, number, number / 10)
        expected = theirs.update(detections, number / 10)
        seen = [step.column(int(track_id)) for track_id in expected[:, 4]]
        np.testing.assert_array_equal(step.after[RETURNED, seen].T, expected)


def test_a_step_holds_what_was_predicted_paired_and_corrected():
    tracker = TracedSORT(min_hits=1, frame_rate=30)
    traced_update(tracker, np.array([[0, 0, 20, 40, 0.9, 2]]), 1, 0.0)
    # 4 pixels further, and another box that nothing predicted
    detections = np.array([[4, 0, 24, 40, 0.9, 2], [200, 0, 220, 40, 0.8, 2]])
    step = traced_update(tracker, detections, 2, 1 / 30)
    assert (step.number, step.camera) == (2, None)
    np.testing.assert_allclose(step.predicted[BOX, 0], [0, 0, 20, 40])
    assert [pair.tolist() for pair in step.pairs] == [[0], [0]]
    assert step.detection_of(0) == 0
    assert step.detection_of(1) is None
    assert step.after[ID].tolist() == [1, 2]
    assert (step.column(2), step.column(3)) == (1, None)
    assert step.after[CLASS].tolist() == [2, 2]
    # by hand, along x: start 20 * (1/10)^2 + one step of 20 * (1/16)^2 + q, against (20 / 20)^2
    variance = 400 / 100 + 400 / 256 + 400 / 400 + 400 / 160**2 / 3
    assert sigmas_px(step.predicted[:, 0])[0] == pytest.approx(variance**0.5)
    gain = variance / (variance + 1)
    assert centre_px(step.after[:, 0])[0] == pytest.approx(10 + 4 * gain)
    assert sigmas_px(step.after[:, 0])[0] == pytest.approx(((1 - gain) * variance) ** 0.5)
    np.testing.assert_allclose(
        estimated_box(step.after[:, 0]), [4 * gain, 0, 20 + 4 * gain, 40], rtol=1e-12
    )


def test_what_is_kept_does_not_change_later():
    tracker = TracedSORT(min_hits=1, frame_rate=30)
    first = traced_update(tracker, np.array([[0, 0, 20, 40, 0.9, 2]]), 1, 0.0)
    kept = first.after.copy()
    for number in range(2, 6):
        traced_update(
            tracker, np.array([[number, 0, 20 + number, 40, 0.9, 2]]), number, number / 30
        )
    np.testing.assert_array_equal(first.after, kept)
    assert first.after[HITS, 0] == 1
    assert first.after[SINCE, 0] == 0


def test_camera_motion_is_kept_with_the_tracks_before_it():
    tracker = TracedCMCSORT(frame_rate=30)
    corners = np.array([[100 * index, 0] for index in range(5)], float)
    ends = np.array([[0.9, 0]] * 5)
    for number in (1, 2, 3):
        still = np.hstack([corners, corners + SIZE, ends])
        traced_update(tracker, still, number, number / 30)
    pushed = np.hstack([corners + PUSH, corners + PUSH + SIZE, ends])
    step = traced_update(tracker, pushed, 4, 4 / 30)
    assert step.camera is not None
    np.testing.assert_allclose(step.camera.shift, PUSH, atol=1e-9)
    np.testing.assert_allclose(np.sort(step.camera.predicted[0]), 100 * np.arange(5), atol=1e-9)
    np.testing.assert_allclose(step.predicted[:2], step.camera.predicted[:2] + PUSH[:, None])
    assert traced_update(tracker, np.empty((0, 6)), 5, 5 / 30).camera is None


def test_strong_only_keeps_what_is_at_the_threshold():
    rows = np.zeros((3, 6))
    rows[:, 4] = 0.49, 0.5, 0.51
    assert strong_only(rows, 0.5)[:, 4].tolist() == [0.5, 0.51]
    assert kalman_filter.STEPS_PER_SECOND == 30  # what the times above count on
