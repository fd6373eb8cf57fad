"""IOUTracker on hand-computed sequences, and what all trackers have in common."""

import gc
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase3_tracking.object_tracker import ID, IOUTracker, Tracker
from phase3_tracking.trackers.tracker_options import TRACKERS, build_tracker

each_tracker = pytest.mark.parametrize("name", TRACKERS)


def scene(*, frames: int, frame_rate: float, hidden: tuple[int, int] = (0, 0)) -> list[np.ndarray]:
    """Six walkers with jitter; two of them are hidden from one thirtieth of a second to another."""
    rng = np.random.default_rng(5)
    corner = np.array([[0.0, 150 * row] for row in range(6)]) + rng.uniform(0, 20, (6, 2))
    velocity = np.array([[40.0, 0], [60, 5], [-20, 5], [30, -5], [80, 0], [0, 10]])  # px/s
    found = []
    for number in range(frames):
        when = number / frame_rate
        boxes = corner + velocity * when
        rows = np.column_stack(
            [boxes, boxes + np.array([40, 90]), np.full(6, 0.9), [1, 1, 1, 2, 2, 2]]
        )
        rows[:, :4] += rng.normal(0, 0.5, (6, 4))
        if hidden[0] <= round(30 * when) < hidden[1]:
            rows = rows[[0, 2, 3, 5]]
        found.append(rows)
    return found


def box(x: float, y: float = 0, *, size: float = 10, score: float = 0.9, label: int = 1):
    return [x, y, x + size, y + size, score, label]


def run(tracker: Tracker, *frames: list) -> list[list[int]]:
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


def test_p3_44_ids_are_never_used_again():
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
        [0, 0, 1e20, 1e20, 0.9, 1],
        [-1e20, -1e20, 1e20, 1e20, 0.9, 1],
        [-np.inf, 0, 10, 10, 0.9, 1],
        [10, 0, 0, 10, 0.9, 1],
        [0, 0, 10, 10, np.inf, 1],
        [0, 0, 10, 10, 0.9, np.nan],
        [0, 0, 10, 10, np.inf, -np.inf],
        [0, 0, 1e-9, 10, 0.9, 1],
    ],
)
@each_tracker
def test_p3_40_unusable_detections_are_dropped_and_counted(name, bad):
    tracker = build_tracker(tracker=name, confidence=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(tracker, [bad, box(0)], [bad, box(0)]) == [[1], [1]]
    assert tracker.dropped_detections == 2


@each_tracker
def test_p3_40_the_largest_and_smallest_boxes_there_may_be(name):
    rows = np.array(
        [
            [-1e9, -1e9, 1e9, 1e9, 0.9, 1],
            [0, 0, 1e-5, 1e-5, 0.9, 1],
            [1e9 - 1, 1e9 - 1, 1e9, 1e9, 0.9, 1],
            box(5),
        ]
    )
    tracker, rng = build_tracker(tracker=name, confidence=0.5), np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            assert np.isfinite(tracker.update(rows[rng.random(len(rows)) < 0.8])).all()
    assert tracker.dropped_detections == 0


@pytest.mark.parametrize("empty", [[], np.empty((0, 6)), np.empty((0, 5)), [[]]])
@each_tracker
def test_p3_44_empty_frames(name, empty):
    tracker = build_tracker(tracker=name, confidence=0.5)
    assert run(tracker, empty, [box(0)], empty, empty, [box(0)])[0] == []


@pytest.mark.parametrize("shape", [(6,), (2, 5), (2, 7), (1, 2, 6)])
def test_wrong_shape(shape):
    tracker = IOUTracker()
    with pytest.raises(ValueError, match=r"\(N, 6\)"):
        tracker.update(np.ones(shape))
    assert run(tracker, [box(0)]) == [[1]]  # goes on as if it had not been called


# --- time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_age", "back_at", "ids"), [(2, 0.11, [1]), (2, 0.13, [2]), (0, 0.11, [2])]
)
def test_max_age_is_in_frames_of_the_frame_rate(max_age, back_at, ids):
    # At 30 frames a second: seen at frame 0, missed at 1.5, back at 3.3 or 3.9.
    tracker = IOUTracker(max_age=max_age, frame_rate=30)
    assert tracker.update(np.array([box(0)]), 0.0)[:, 4].tolist() == [1]
    assert not len(tracker.update(np.empty((0, 6)), 0.05))
    assert tracker.update(np.array([box(0)]), back_at)[:, 4].tolist() == ids


def test_frames_that_were_not_given_are_not_missed():
    tracker = IOUTracker(max_age=1, frame_rate=30)
    times = (0.0, 0.5, 1.0, 1.9, 3.0)  # a pause of more than a second ends everything
    ids = [tracker.update(np.array([box(0)]), when)[0, 4] for when in times]
    assert ids == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("when", [1.0, 0.5, float("nan"), float("inf")])
def test_time_goes_forward(when):
    tracker = IOUTracker()
    tracker.update(np.array([box(0)]), 1.0)
    with pytest.raises(ValueError, match="timestamp_s"):
        tracker.update(np.array([box(0)]), when)


@each_tracker
def test_even_timestamps_change_nothing(name):
    by_time, by_frame = (build_tracker(tracker=name, confidence=0.5, frame_rate=25) for _ in "12")
    for number, frame in enumerate(scene(frames=60, frame_rate=25)):
        expected = by_frame.update(frame)
        tracks = by_time.update(frame, 1000 + number / 25)
        np.testing.assert_allclose(tracks, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["cmcsort", "bytetrack", "ocsort"])
@pytest.mark.parametrize("every", [2, 3])
def test_left_out_frames_do_not_change_identities(name, every):
    """The same scene at a whole and at a fraction of the frame rate, with objects hidden for a
    while: after the first frames, who is who is the same."""
    whole, thinned = (build_tracker(tracker=name, confidence=0.5) for _ in "12")
    same = 0
    for number, frame in enumerate(scene(frames=151, frame_rate=30, hidden=(60, 75))):
        tracks = whole.update(frame, number / 30)
        if number % every == 0:
            others = thinned.update(frame, number / 30)
            if number >= 30 and not 60 <= number < 90:
                assert tracks[:, 4].tolist() == others[:, 4].tolist() == [1, 2, 3, 4, 5, 6]
                same += 1
    assert same > 20


@pytest.mark.parametrize("frame_rate", [10, 15, 60])
def test_frame_rate_does_not_change_identities(frame_rate):
    tracker = build_tracker(tracker="cmcsort", confidence=0.5, frame_rate=frame_rate)
    frames = scene(frames=5 * frame_rate, frame_rate=frame_rate, hidden=(60, 75))
    for frame in frames:
        tracks = tracker.update(frame)
    assert tracks[:, 4].tolist() == [1, 2, 3, 4, 5, 6]
    assert tracker.tracks_started == 6


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
        ({"frame_rate": 0}, "above 0"),
        ({"frame_rate": float("nan")}, "above 0"),
    ],
)
def test_p3_47_bad_parameters_say_what_is_allowed(parameters, allowed):
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


@pytest.mark.parametrize("confidence", [0.5, None])
@each_tracker
@settings(max_examples=30, deadline=None)
@given(frames=frames_of_detections, random=st.randoms(use_true_random=False))
def test_p3_46_order_of_detections_has_no_influence(name, confidence, frames, random):
    tracker, shuffled_tracker = (
        build_tracker(tracker=name, confidence=confidence, min_hits=2) for _ in "12"
    )
    for frame in frames:
        shuffled = random.sample(frame, len(frame))
        expected = tracker.update(np.array(frame))
        assert shuffled_tracker.update(np.array(shuffled)).tolist() == expected.tolist()


@each_tracker
@settings(max_examples=30, deadline=None)
@given(frames=frames_of_detections)
def test_ids_are_unique_and_keep_their_class(name, frames):
    tracker = build_tracker(tracker=name, confidence=0.5)
    class_of, alive, ended = {}, set(), set()
    for frame in frames * 3:
        tracks = tracker.update(np.array(frame))
        assert np.isfinite(tracks).all()
        assert (np.diff(tracks[:, 4]) > 0).all()
        for row in tracks.tolist():
            assert class_of.setdefault(row[4], row[5]) == row[5]
            assert row[4] not in ended
        before, alive = alive, set(tracker._tracks[ID].tolist())
        ended |= before - alive
    assert set(class_of) == set(range(1, tracker.tracks_started + 1))


@settings(max_examples=60, deadline=None)
@given(frames=frames_of_detections)
def test_every_detection_comes_back_from_the_iou_tracker(frames):
    tracker = IOUTracker()
    for frame in frames:
        tracks = tracker.update(np.array(frame))
        returned = sorted([*row[:4], row[6], row[5]] for row in tracks.tolist())
        assert returned == sorted(map(list, frame))


@each_tracker
def test_input_and_output_are_not_shared(name):
    tracker = build_tracker(tracker=name, confidence=0.5)
    frame = np.array([box(0), box(100)])
    expected = frame.copy()
    for _ in range(4):
        tracks = tracker.update(frame)
        tracks[:] = -1
    assert frame.tolist() == expected.tolist()
    assert tracker.update(frame)[:, 4].tolist() == [1, 2]


@each_tracker
def test_p3_41_ten_thousand_boxes_in_a_frame(name):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 4000, (10_000, 2))
    scores, labels = np.full((10_000, 1), 0.9), np.zeros((10_000, 1))
    tracker, begin = build_tracker(tracker=name, confidence=0.5), time.process_time()
    for _ in range(3):
        tracks = tracker.update(np.hstack([corners, corners + 30, scores, labels]))
        corners = corners + rng.normal(0, 1, corners.shape)
    assert len(tracks) > 9_500
    assert tracker.tracks_started < 10_500  # nearly all are found again
    assert time.process_time() - begin < 20  # a dense assignment takes minutes


@each_tracker
def test_p3_50_memory_stays_flat(name):
    """Every detection is where none was before, so every track is a new one."""
    tracker = build_tracker(tracker=name, confidence=0.5, max_age=5)
    tracemalloc.start()
    held = []
    for frame in range(3000):
        tracker.update(np.array([box(1000 * frame), box(1000 * frame + 500)]))
        if frame in (1000, 2999):
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert tracker._tracks.shape[1] <= 2 * 7
    assert held[1] < held[0] + 10_000
