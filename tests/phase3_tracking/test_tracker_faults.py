"""What may go wrong in a video, over all trackers; the names carry the number of the case.

LONG_RUN_FRAMES=100000 makes the long runs as long as a whole day's video is.
"""

import gc
import math
import os
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase3_tracking.object_tracker import ID, Tracker
from phase3_tracking.trackers import association, kalman_filter
from phase3_tracking.trackers.kalman_tracker import STATE, KalmanTracker
from phase3_tracking.trackers.tracker_options import TRACKERS, build_tracker
from tests.long_runs import count, examples

FRAMES = int(os.environ.get("LONG_RUN_FRAMES", "1500"))
MANY = 10_000
EMPTY = np.empty((0, 6))

each_tracker = pytest.mark.parametrize("name", TRACKERS)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """An overflow or a division by zero is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def box(x: float, y: float = 0, *, size: float = 20, score: float = 0.9, label: int = 1):
    return [x, y, x + size, y + size, score, label]


def walkers(number: int, *, count: int = 6, left: float = 0, score: float = 0.9) -> np.ndarray:
    """Objects on rows of their own, all moving at their own speed, at frame `number`."""
    return np.array([box(left + number * (row - 2), 50 * row, score=score) for row in range(count)])


def ids(tracks: np.ndarray) -> list[int]:
    return tracks[:, 4].astype(int).tolist()


def returned(tracker: Tracker, *frames: list | np.ndarray) -> list[list[int]]:
    return [ids(tracker.update(np.array(frame, float).reshape(-1, 6))) for frame in frames]


# --- crowds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spread_px", [0, 100], ids=["identical", "on_each_other"])
@each_tracker
def test_p3_41_ten_thousand_boxes_that_all_overlap(name, spread_px):
    """A hundred million pairs overlap: looking at all of them takes 30 GB."""
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 1, (MANY, 2)) * spread_px
    rest = np.tile([0.9, 0], (MANY, 1))
    tracker, begin = build_tracker(tracker=name, confidence=0.5), time.process_time()
    tracemalloc.start()
    for _ in range(2):
        corners = corners + rng.normal(0, 0.5, corners.shape) * (spread_px > 0)
        tracks = tracker.update(np.hstack([corners, corners + 50, rest]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tracks) == MANY
    assert tracker.tracks_started < 1.02 * MANY  # nearly all are found again
    assert peak < 1 << 30
    assert time.process_time() - begin < 20


@each_tracker
def test_p3_41_ten_thousand_boxes_below_each_other(name):
    """None overlaps another, but they all lie in the stretch of x where overlaps are looked for."""
    corners = np.column_stack([np.zeros(MANY), 40.0 * np.arange(MANY)])
    tracker, begin = build_tracker(tracker=name, confidence=0.5), time.process_time()
    with mock.patch.object(association, "MAX_COMPARED", 1 << 24):
        for step in range(2):
            moved = corners + np.array([step, 0])
            tracks = tracker.update(np.hstack([moved, moved + 30, np.tile([0.9, 0], (MANY, 1))]))
    assert ids(tracks) == list(range(1, MANY + 1))
    assert time.process_time() - begin < 20


@each_tracker
def test_p3_42_identical_boxes_are_as_many_tracks(name):
    tracker = build_tracker(tracker=name, confidence=0.5)
    found = returned(tracker, *[[box(5)] * 4] * 8)
    assert found[3:] == [[1, 2, 3, 4]] * 5
    assert tracker.tracks_started == 4


@pytest.mark.parametrize("side", [0.0, 1e-7, -3.0])
@each_tracker
def test_p3_42_boxes_without_area_are_dropped_and_counted(name, side):
    tracker = build_tracker(tracker=name, confidence=0.5)
    flat = [[5, 5, 5 + side, 25, 0.9, 1], [5, 5, 25, 5 + side, 0.9, 1]]
    assert returned(tracker, *[[*flat, box(0)]] * 4)[-1] == [1]
    assert tracker.dropped_detections == 8
    assert tracker.tracks_started == 1


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [-1.0, 0.0, 0.5, 1.0, 1.5, 100.0, 1e300])
@each_tracker
def test_p3_43_equal_scores_that_mean_nothing(name, score):
    """As evaluate_tracking.py takes them from files whose scores are no probabilities."""
    tracker = build_tracker(tracker=name, confidence=None)
    found = returned(tracker, *[walkers(number, score=score) for number in range(30)])
    assert found[5:] == [[1, 2, 3, 4, 5, 6]] * 25


@pytest.mark.parametrize("score", [0.0, 1.0, 1.5, 100.0, 1e300])
@each_tracker
def test_p3_43_scores_of_0_1_and_above(name, score):
    tracker = build_tracker(tracker=name, confidence=0.5)
    found = returned(tracker, *[walkers(number, score=score) for number in range(30)])
    takes_all = name in ("iou", "sort")  # the detector has left out the weak ones
    assert found[5:] == [[1, 2, 3, 4, 5, 6] if score or takes_all else []] * 25
    assert tracker.dropped_detections == 0


# --- ids --------------------------------------------------------------------------------------


@each_tracker
def test_p3_44_ids_after_an_empty_stretch_are_new(name):
    tracker = build_tracker(tracker=name, confidence=0.5, max_age=2)
    seen: set[int] = set()
    for _ in range(5):
        here = {one for found in returned(tracker, *[walkers(0)] * 6) for one in found}
        assert len(here) == 6
        assert min(here) > max(seen, default=0)
        seen |= here
        returned(tracker, *[EMPTY] * 8)
    assert seen == set(range(1, 31))


hostile = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1e-320, 1e20, -1e20, 1e300, 1e308, math.nan, math.inf]),
    st.integers(0, 40).map(float),
)
hostile_frames = st.lists(
    st.lists(st.tuples(*[hostile] * 6).map(list) | st.builds(box, st.integers(0, 30)), max_size=6),
    max_size=6,
)


@pytest.mark.parametrize("confidence", [0.5, None])
@each_tracker
@pytest.mark.long
@examples(60, 500)
@given(frames=hostile_frames)
def test_p3_45_nothing_but_finite_numbers_reaches_the_assignment(name, confidence, frames):
    count("examples")
    solve = association.linear_sum_assignment

    def checked(table: np.ndarray, maximize: bool):
        assert np.isfinite(table).all()
        return solve(table, maximize=maximize)

    tracker = build_tracker(tracker=name, confidence=confidence)
    with mock.patch.object(association, "linear_sum_assignment", checked):
        for frame in [*frames, [box(0)], *frames]:
            tracks = tracker.update(np.array(frame, float).reshape(-1, 6))
            assert np.isfinite(tracks).all()
    assert np.isfinite(tracker._tracks).all()


class Solver:
    """In the place of one of scipy's, which raise for a NaN: notes that it was asked."""

    def __init__(self, name: str):
        self._solve, self.calls = getattr(association, name), 0
        self.replaced = mock.patch.object(association, name, self)

    def __call__(self, table, maximize: bool):
        self.calls += 1
        assert np.isfinite(getattr(table, "data", table)).all()
        return self._solve(table, maximize=maximize)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("count", "solver"),
    [(6, "linear_sum_assignment"), (150, "min_weight_full_bipartite_matching")],
)
@each_tracker
def test_p3_45_numbers_that_are_not_finite_reach_no_solver(name, count, solver, bad):
    """Beside each object there are copies of its box, each with one such number."""
    good = np.array([box(0.5 * row) for row in range(count)])
    frame = [good]
    for column in range(6):
        hostile = good.copy()
        hostile[:, column] = bad
        frame.append(hostile)
    tracker, noted = build_tracker(tracker=name, confidence=0.5), Solver(solver)
    with noted.replaced:
        for number in range(8):
            tracks = tracker.update(np.vstack(frame), number / 30)
    assert noted.calls >= 7
    assert ids(tracks) == list(range(1, count + 1))
    np.testing.assert_allclose(np.sort(tracks[:, 0]), good[:, 0], atol=0.05)
    assert tracker.dropped_detections == 8 * 6 * count


@each_tracker
def test_p3_46_ids_do_not_depend_on_the_order_of_detections(name):
    rng = np.random.default_rng(4)
    straight, shuffled = (build_tracker(tracker=name, confidence=0.5) for _ in "12")
    for number in range(40):
        frame = walkers(number)[rng.random(6) < 0.9]  # equal scores, and some are missing
        expected = straight.update(frame)
        assert shuffled.update(rng.permutation(frame)).tolist() == expected.tolist()


# --- parameters -------------------------------------------------------------------------------


@each_tracker
def test_p3_47_max_age_0_ends_a_track_at_its_first_miss(name):
    tracker = build_tracker(tracker=name, confidence=0.5, max_age=0, min_hits=1)
    frames = [[box(0)], [box(0)], EMPTY, [box(0)], [box(0)]]
    assert returned(tracker, *frames) == [[1], [1], [], [2], [2]]


@each_tracker
def test_p3_47_min_hits_1000_returns_nothing_before(name):
    """But what the authors of SORT, OC-SORT and ByteTrack return in the first frames."""
    tracker = build_tracker(tracker=name, confidence=0.5, min_hits=1000)
    found = returned(tracker, EMPTY, *[[box(0)]] * 1002)
    early = [1] if name in ("sort", "ocsort") else []
    assert found[1:1000] == [early] * 999
    assert found[-1] == [1]


@each_tracker
def test_p3_47_iou_1_continues_identical_boxes_only(name):
    tracker = build_tracker(tracker=name, confidence=0.5, iou_threshold=1, min_hits=1)
    same = [box(0, score=1.0), box(100, score=1.0)]
    assert returned(tracker, *[same] * 5)[-1] == [1, 2]
    moved = [box(1, score=1.0), box(100, score=1.0)]
    last = returned(tracker, moved)[-1]
    assert 2 in last
    assert 1 not in last or name == "cmcsort"


@each_tracker
@pytest.mark.parametrize("bad", [{"iou_threshold": 0.0}, {"iou_threshold": -1.0}, {"min_hits": 0}])
def test_p3_47_impossible_parameters_are_refused(name, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        build_tracker(tracker=name, confidence=0.5, **bad)


# --- time -------------------------------------------------------------------------------------


@pytest.mark.long
def test_p3_48_the_filter_stays_positive():
    """Measured, then half of the time, then never again."""
    rng = np.random.default_rng(2)
    boxes = np.array([[100.0, -1e9, 5], [100, 1e9, 5], [40, 1e9, 1], [80, 1, 1]])
    states = kalman_filter.initiate(boxes)
    for number in range(3 * FRAMES):
        kalman_filter.predict(states, 1.0, KalmanTracker.velocity_noise)
        if number < FRAMES or (number < 2 * FRAMES and number % 2):
            noise = rng.normal(0, 0.01, boxes.shape) * boxes[[2, 3, 2, 3]]
            states = kalman_filter.correct(states, boxes + noise)
        assert (states[kalman_filter.VAR_POSITION] > 0).all()
        assert (states[kalman_filter.VAR_VELOCITY] > 0).all()
        correlation = states[kalman_filter.COVARIANCE] ** 2
        limit = states[kalman_filter.VAR_POSITION] * states[kalman_filter.VAR_VELOCITY]
        assert (correlation < limit).all()
    assert np.isfinite(states).all()


def held_by_trackers() -> int:
    """Bytes that trackers and what they call have allocated; threads of other tests do so, too."""
    rooms = ("*/phase3_tracking/*", "*/common/*", "*/numpy/*", "*/scipy/*")
    snapshot = tracemalloc.take_snapshot()
    ours = snapshot.filter_traces([tracemalloc.Filter(True, room) for room in rooms])
    return sum(trace.size for trace in ours.traces)


@pytest.mark.long
@each_tracker
def test_p3_48_p3_50_a_long_run_neither_overflows_nor_grows(name):
    """Some walk in circles, one comes and goes, one is never where it was. Memory is compared at
    the same phase of those; a byte a frame would be 100 kB in 10^5 frames."""
    tracker = build_tracker(tracker=name, confidence=0.5, max_age=10)
    first, last = (number // 40 * 40 for number in (FRAMES // 3, FRAMES - 1))
    held = {}
    tracemalloc.start()
    for number in range(FRAMES):
        angle = number / 50
        rows = [box(300 + 200 * math.cos(angle), 300 + 200 * math.sin(angle)), box(10, 10)]
        rows += [box(600, 10)] * (number % 40 < 20) + [box(9e8 * ((number * 0.618) % 1), 900)]
        tracks = tracker.update(np.array(rows), number / 30)
        if number in (first, last):
            gc.collect()
            held[number] = held_by_trackers()
    tracemalloc.stop()
    assert {2, 3} <= set(ids(tracks))  # who stands, and who walks in circles, since the beginning
    assert np.isfinite(tracker._tracks).all()
    assert tracker._tracks.shape[1] < 20
    assert held[last] - held[first] < last - first
    if isinstance(tracker, KalmanTracker):
        states = tracker._tracks[STATE]
        assert (states[kalman_filter.VAR_POSITION] > 0).all()
        assert (states[kalman_filter.VAR_VELOCITY] > 0).all()


@each_tracker
def test_p3_49_after_a_scene_cut_everybody_is_new(name):
    tracker = build_tracker(tracker=name, confidence=0.5)
    before = returned(tracker, *[walkers(number) for number in range(30)])
    assert before[-1] == [1, 2, 3, 4, 5, 6]
    cut = [walkers(number, count=4, left=2000) for number in range(30)]
    after = returned(tracker, *cut)
    shown_on = 3  # frames in which cmcsort still shows those it has just lost
    assert after[shown_on:][-1] == [7, 8, 9, 10]
    assert all(set(found) <= {7, 8, 9, 10} for found in after[shown_on:])
    assert not any(
        {1, 2, 3, 4, 5, 6} & set(found) for found in after[: shown_on * (name != "cmcsort")]
    )


@each_tracker
def test_p3_49_the_scene_before_the_cut_comes_back(name):
    """Within the memory an object that stands may have its id again, but nobody another's."""
    tracker = build_tracker(tracker=name, confidence=0.5)
    first = np.array([box(0, 50 * row) for row in range(6)])
    second = np.array([box(2000, 50 * row) for row in range(6)])
    returned(tracker, *[first] * 20, *[second] * 20)
    last = returned(tracker, *[first] * 20)[-1]
    assert last == ([13, 14, 15, 16, 17, 18] if name == "sort" else [1, 2, 3, 4, 5, 6])
    assert set(tracker._tracks[ID]) >= set(last)
