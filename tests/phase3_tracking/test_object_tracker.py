"""IOUTracker: hand-computed sequences, properties, and the assignment against scipy's dense one."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from phase3_tracking.object_tracker import IOUTracker, associate, paired_iou


def box(x: float, y: float = 0, *, size: float = 10, score: float = 0.9, label: int = 1):
    return [x, y, x + size, y + size, score, label]


def run(tracker: IOUTracker, *frames: list) -> list[list[int]]:
    """The ids returned in each frame."""
    return [tracker.update(np.array(frame))[:, 4].astype(int).tolist() for frame in frames]


def test_output_columns():
    tracks = IOUTracker().update(np.array([[1, 2, 11, 22, 0.75, 3]]))
    assert tracks.tolist() == [[1, 2, 11, 22, 1, 3, 0.75]]


def test_id_follows_a_moving_box_and_a_far_one_is_new():
    # Shifted by 5 of 10 pixels: IoU = 50 / 150 = 1/3 >= 0.3. Shifted by 6: 40 / 160 = 0.25 < 0.3.
    assert run(IOUTracker(), [box(0)], [box(5)], [box(11)]) == [[1], [1], [2]]


def test_threshold_is_inclusive():
    assert run(IOUTracker(iou_threshold=1 / 3), [box(0)], [box(5)]) == [[1], [1]]
    assert run(IOUTracker(iou_threshold=0.34), [box(0)], [box(5)]) == [[1], [2]]


def test_total_overlap_decides_not_the_greedy_choice():
    # Tracks at 0 and 4. Greedy would give the detection at 3 to the track at 4 (IoU 9/11) and
    # leave 7 to track 1 (IoU 3/17, too little). In all: 3->1 is 7/13 and 7->2 is 7/13.
    first = [box(0, score=0.9), box(4, score=0.8)]
    second = [box(3, score=0.9), box(7, score=0.8)]
    tracker = IOUTracker()
    tracker.update(np.array(first))
    tracks = tracker.update(np.array(second))
    assert {row[4]: row[0] for row in tracks.tolist()} == {1: 3, 2: 7}


@pytest.mark.parametrize(
    ("max_age", "missed", "ids"),
    [(0, 0, [1]), (0, 1, [2]), (2, 1, [1]), (2, 2, [1]), (2, 3, [2]), (30, 30, [1]), (30, 31, [2])],
)
def test_max_age_is_the_number_of_misses_survived(max_age, missed, ids):
    frames = [[box(0)], *[[]] * missed, [box(0)]]
    assert run(IOUTracker(max_age=max_age), *frames) == [[1], *[[]] * missed, ids]


def test_a_match_starts_the_age_anew():
    frames = [[box(0)], [], [box(0)], [], [box(0)]]
    assert run(IOUTracker(max_age=1), *frames) == [[1], [], [1], [], [1]]


def test_min_hits_counts_all_detections_also_across_misses():
    frames = [[box(0)], [box(0)], [], [box(0)], [box(0)]]
    assert run(IOUTracker(min_hits=3), *frames) == [[], [], [], [1], [1]]


def test_ids_have_no_gaps_when_candidates_are_never_confirmed():
    frames = [[box(0), box(100)], [box(100)], [box(100), box(200)], [box(200)]]
    assert run(IOUTracker(min_hits=2, max_age=0), *frames) == [[], [1], [1], [2]]


def test_an_id_never_crosses_classes():
    frames = [[box(0, label=1)], [box(0, label=2)], [box(0, label=1), box(0, label=2)]]
    assert run(IOUTracker(), *frames) == [[1], [2], [1, 2]]


def test_ids_are_never_used_again():
    tracker = IOUTracker(max_age=0)
    assert run(tracker, [box(0)], [], [box(0)], [], [box(0)]) == [[1], [], [2], [], [3]]
    assert tracker.tracks_started == 3


def test_two_trackers_share_nothing():
    first, second = IOUTracker(), IOUTracker()
    assert run(first, [box(0)]) == run(second, [box(50)]) == [[1]]


@pytest.mark.parametrize(
    "bad",
    [
        [np.nan, 0, 10, 10, 0.9, 1],
        [0, 0, np.inf, 10, 0.9, 1],
        [0, 0, 10, 10, np.nan, 1],
        [0, 0, 0, 10, 0.9, 1],
        [0, 10, 10, 5, 0.9, 1],
        [-1e308, 0, 1e308, 10, 0.9, 1],
        [0, 0, 1e200, 1e200, 0.9, 1],
    ],
)
def test_unusable_detections_are_dropped_and_counted(bad):
    tracker = IOUTracker()
    assert run(tracker, [bad, box(0)], [bad, box(0)]) == [[1], [1]]
    assert tracker.dropped_detections == 2


@pytest.mark.parametrize("empty", [[], np.empty((0, 6)), np.empty((0, 5)), [[]]])
def test_empty_frames(empty):
    assert IOUTracker().update(np.array(empty)).shape == (0, 7)


@pytest.mark.parametrize("shape", [(6,), (2, 5), (2, 7), (1, 2, 6)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"\(N, 6\)"):
        IOUTracker().update(np.ones(shape))


@pytest.mark.parametrize(
    ("parameters", "allowed"),
    [
        ({"iou_threshold": 0}, "above 0 and at most 1"),
        ({"iou_threshold": -1}, "above 0 and at most 1"),
        ({"iou_threshold": 1.01}, "above 0 and at most 1"),
        ({"iou_threshold": float("nan")}, "above 0 and at most 1"),
        ({"max_age": -1}, "from 0"),
        ({"max_age": 1.5}, "whole number"),
        ({"max_age": float("nan")}, "whole number"),
        ({"min_hits": 0}, "from 1"),
        ({"min_hits": 2.5}, "whole number"),
        ({"min_hits": float("inf")}, "whole number"),
    ],
)
def test_bad_parameters_say_what_is_allowed(parameters, allowed):
    with pytest.raises(ValueError, match=allowed):
        IOUTracker(**parameters)


# --- properties -------------------------------------------------------------------------------

coordinate = st.integers(0, 30)
side = st.integers(1, 15)
detection = st.builds(
    lambda x, y, w, h, score, label: [x, y, x + w, y + h, score, label],
    coordinate,
    coordinate,
    side,
    side,
    st.sampled_from([0.3, 0.6, 0.9]),  # few values, so that ties are common
    st.integers(1, 2),
)
frames_of_detections = st.lists(st.lists(detection, max_size=8), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(frames=frames_of_detections, random=st.randoms(use_true_random=False))
def test_order_of_detections_has_no_influence(frames, random):
    tracker, shuffled_tracker = IOUTracker(min_hits=2), IOUTracker(min_hits=2)
    for frame in frames:
        shuffled = random.sample(frame, len(frame))
        expected = tracker.update(np.array(frame))
        assert shuffled_tracker.update(np.array(shuffled)).tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(frames=frames_of_detections)
def test_each_detection_is_in_one_track_and_ids_keep_their_class(frames):
    tracker = IOUTracker()
    class_of = {}
    for frame in frames:
        tracks = tracker.update(np.array(frame))
        returned = sorted([*row[:4], row[6], row[5]] for row in tracks.tolist())
        assert returned == sorted(map(list, frame))  # min_hits=1: every detection comes back
        assert (np.diff(tracks[:, 4]) > 0).all()
        for row in tracks.tolist():
            assert class_of.setdefault(row[4], row[5]) == row[5]
    assert set(class_of) == set(range(1, tracker.tracks_started + 1))


@settings(max_examples=100, deadline=None)
@given(
    detections=st.lists(detection, max_size=10),
    tracks=st.lists(detection, max_size=10),
    threshold=st.sampled_from([0.01, 0.3, 0.5, 1.0]),
)
def test_association_is_as_good_as_the_dense_assignment(detections, tracks, threshold):
    detections, tracks = (np.array(rows, float).reshape(-1, 6) for rows in (detections, tracks))
    matched, continued = associate(detections, tracks, threshold)
    gain = np.zeros((len(detections), len(tracks)))
    for row, a in enumerate(detections):
        for column, b in enumerate(tracks):
            iou = paired_iou(a[None, :4], b[None, :4])[0]
            gain[row, column] = iou if iou >= threshold and a[5] == b[5] else 0
    assert len(set(matched)) == len(matched)
    assert len(set(continued)) == len(continued)
    assert (gain[matched, continued] > 0).all()
    best = gain[linear_sum_assignment(gain, maximize=True)].sum()
    assert gain[matched, continued].sum() == pytest.approx(best, abs=1e-9)


def test_many_pairs_are_worked_off_in_parts(monkeypatch):
    monkeypatch.setattr("phase3_tracking.object_tracker.MAX_PAIRS", 7)
    rng = np.random.default_rng(0)
    tracks = np.array([box(x, y) for x in range(0, 200, 20) for y in range(0, 60, 20)], float)
    detections = tracks + np.array([2, 1, 2, 1, 0, 0])
    order = rng.permutation(len(tracks))
    matched, continued = associate(detections[order], tracks, 0.3)
    assert dict(zip(order[matched].tolist(), continued.tolist(), strict=True)) == {
        row: row for row in range(len(tracks))
    }


def test_ten_thousand_boxes_in_a_frame():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 4000, (10_000, 2))
    scores, labels = np.ones((10_000, 1)), np.zeros((10_000, 1))
    tracker, begin = IOUTracker(), time.process_time()
    for _ in range(2):
        tracks = tracker.update(np.hstack([corners, corners + 30, scores, labels]))
        corners = corners + rng.normal(0, 1, corners.shape)
    assert len(tracks) == 10_000
    assert tracker.tracks_started < 10_500  # nearly all are found again
    assert time.process_time() - begin < 10  # a dense assignment takes minutes


def test_memory_stays_flat():
    tracker = IOUTracker(max_age=5)
    for frame in range(2000):
        tracker.update(np.array([box(1000 * frame)]))  # never where the last one was
    assert len(tracker._ids) == 6
    assert tracker.tracks_started == 2000
