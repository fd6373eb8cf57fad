"""Which moment a finder keeps, on steps made by hand; greedy against the optimum."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase3_tracking.explain.explain_moments import (
    LARGEST_TABLE,
    AssignmentFinder,
    CameraFinder,
    Finder,
    OverlapFinder,
    PredictionFinder,
    greedy_pairs,
)
from phase3_tracking.explain.explain_trace import CameraMotion, Step, TracedSORT, traced_update
from phase3_tracking.trackers.association import assign


def steps_of(frames: list[list[tuple]], frame_rate: float = 10) -> list[Step]:
    """What SORT makes of boxes (x1, y1, x2, y2), frame after frame."""
    tracker = TracedSORT(min_hits=1, max_age=10, frame_rate=frame_rate)
    return [
        traced_update(
            tracker,
            np.array([[*box, 0.9 - index / 100, 1] for index, box in enumerate(boxes)], float),
            *(number, number / frame_rate),
        )
        for number, boxes in enumerate(frames, start=1)
    ]


def box(left: float, top: float = 0, width: float = 100, height: float = 100) -> tuple:
    return (left, top, left + width, top + height)


def test_a_finder_keeps_the_first_of_the_best():
    finder: Finder[str] = Finder()
    assert finder.best is None
    for score, name in [((0, 1), "a"), ((1, 0), "b"), ((1, 0), "c"), ((0, 9), "d")]:
        finder.offer(score, name)
    assert finder.best == "b"


def test_the_iou_nearest_to_the_one_that_shows_most():
    finder = OverlapFinder()
    # 10 of 110, then 25 of 125 pixels apart: IoU 0.818 and 0.6
    for step in steps_of([[box(0)], [box(10)], [box(35)], [box(35)]]):
        finder.take(step)
    assert finder.best.frames == (2, 3)
    assert finder.best.iou == pytest.approx(75 / 125)


def test_boxes_with_a_frame_between_are_not_consecutive():
    finder = OverlapFinder()
    for step in steps_of([[box(0)], [], [box(25)]]):
        finder.take(step)
    assert finder.best is None


def test_small_boxes_are_taken_only_if_there_are_no_others():
    finder = OverlapFinder()
    tiny = [box(500 + 2.5 * number, 0, 10, 10) for number in range(3)]  # IoU 0.6
    for step in steps_of([[box(0), tiny[0]], [box(0), tiny[1]], [box(0), tiny[2]]]):
        finder.take(step)
    assert finder.best.iou == pytest.approx(1)


def test_the_frame_in_which_greedy_is_wrong():
    still = [box(0), box(50)]
    finder = AssignmentFinder(0.3)
    frames = [still, still, still, [box(40), box(65)], still]
    for step in steps_of(frames):
        finder.take(step)
    made = finder.best
    assert (made.number, made.greedy_differs) == (4, True)
    # 60 of 140, 90 of 110, 35 of 165 and 85 of 115
    expected = [[60 / 140, 35 / 165], [90 / 110, 85 / 115]]
    np.testing.assert_allclose(made.iou[np.argsort(made.track_boxes[0])], expected)
    assert made.total(made.chosen) == pytest.approx(60 / 140 + 85 / 115)
    assert made.total(made.greedy) == pytest.approx(90 / 110)


def test_the_most_contested_frame_where_greedy_is_always_right():
    apart, close = [box(0), box(200)], [box(0), box(30)]
    finder = AssignmentFinder(0.3)
    for step in steps_of([apart, apart, apart]):
        finder.take(step)
    assert finder.best.number == 2
    np.testing.assert_allclose(finder.best.iou, [[1, np.nan], [np.nan, 1]])
    for step in steps_of([close, close, close]):
        finder.take(step)
    assert not finder.best.greedy_differs
    assert finder.best.iou.shape == (2, 2)
    assert not np.isnan(finder.best.iou).any()


def test_a_single_object_is_no_assignment():
    finder = AssignmentFinder(0.3)
    for step in steps_of([[box(0)], [box(0)]]):
        finder.take(step)
    assert finder.best is None


def test_a_crowd_that_no_table_can_show_is_left_out():
    crowd = [box(30 * index) for index in range(LARGEST_TABLE + 1)]
    finder = AssignmentFinder(0.3)
    for step in steps_of([crowd, crowd]):
        finder.take(step)
    assert finder.best is None


gains = st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=3, max_size=3).map(
    np.array
)


@given(gains)
def test_greedy_takes_the_best_pair_and_never_more_than_the_optimum(gain):
    row, column = (index.ravel() for index in np.indices(gain.shape))
    pairs = greedy_pairs(row, column, gain.ravel())
    assert len(set(pairs[0].tolist())) == len(set(pairs[1].tolist())) == 3
    assert gain[pairs[0][0], pairs[1][0]] == gain.max()
    best = max(sum(gain[range(3), columns]) for columns in itertools.permutations(range(3)))
    chosen = assign(row, column, gain.ravel(), gain.shape)
    assert gain[chosen].sum() == pytest.approx(best)
    assert gain[pairs].sum() <= best + 1e-9


def test_a_track_that_is_lost_for_a_moment_and_found_again():
    boxes = [[box(10 * number)] for number in range(12)]
    boxes[8] = []
    finder = PredictionFinder()
    for step in steps_of(boxes):
        finder.take(step)
    numbers = [step.number for step in finder.best.steps]
    assert 9 in numbers
    assert numbers == list(range(numbers[0], numbers[0] + 6))
    assert numbers[0] < 9 < numbers[-1]


def test_without_a_gap_the_fastest():
    boxes = [[box(4 * number), box(10 * number, 500)] for number in range(10)]
    finder = PredictionFinder()
    for step in steps_of(boxes):
        finder.take(step)
    column = finder.best.steps[0].column(finder.best.track_id)
    assert finder.best.steps[0].after[1, column] == 500


def test_a_track_too_young_to_have_a_velocity():
    finder = PredictionFinder()
    for step in steps_of([[box(4 * number)] for number in range(8)]):
        finder.take(step)
    assert finder.best is None


def camera_step(number: int, displacements: list[tuple], shift: tuple | None) -> Step:
    """Tracks far from each other, and detections that lie so far from them."""
    count = len(displacements)
    predicted = np.zeros((9, count))
    predicted[:4] = np.array([box(300 * index) for index in range(count)]).T
    predicted[4] = np.arange(1, count + 1)
    detections = np.zeros((6, count))
    detections[:4] = predicted[:4] + np.tile(np.array(displacements, float).T, (2, 1))
    indices = np.arange(count)
    motion = CameraMotion(
        predicted, (indices, indices), None if shift is None else np.array(shift, float)
    )
    return Step(number, number / 10, detections, predicted, (indices, indices), predicted, motion)


def test_the_largest_motion_of_the_camera():
    finder = CameraFinder()
    finder.take(camera_step(1, [(9, 9)] * 3, None))  # too few for the tracker
    assert finder.best is None
    finder.take(camera_step(2, [(1, 0), (2, 1), (2, 0), (8, 8)], (2, 0.5)))
    finder.take(camera_step(3, [(-3, 0)] * 4, (-3, 0)))
    finder.take(camera_step(4, [(0, 1)] * 4, (0, 1)))
    assert (finder.best.number, finder.frames) == (3, 3)
    np.testing.assert_allclose(finder.best.displacements, [[-3] * 4, [0] * 4])


def test_the_median_of_the_displacements_is_the_shift_of_the_tracker():
    """The tracker's own figures, on boxes that stand alone."""
    from phase3_tracking.explain.explain_trace import TracedCMCSORT

    rng, tracker, finder = np.random.default_rng(1), TracedCMCSORT(frame_rate=10), CameraFinder()
    corner = np.array([[200 * index, 0] for index in range(7)], float)
    for number in range(1, 30):
        corner += rng.normal(0, 3, 2) + rng.normal(0, 1, corner.shape)
        ends = corner + np.array([60, 90])
        detections = np.hstack([corner, ends, np.full((7, 1), 0.9), np.ones((7, 1))])
        finder.take(traced_update(tracker, detections, number, number / 10))
    assert finder.frames > 20
    np.testing.assert_allclose(np.median(finder.best.displacements, axis=1), finder.best.shift)
