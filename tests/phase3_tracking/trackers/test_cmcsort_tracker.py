"""The default tracker: every part on a scene made for it, and a floor of quality on real ones."""

import math
from pathlib import Path

import numpy as np
import pytest

from phase3_tracking import mot_files
from phase3_tracking.evaluate_tracking import Comparison, score
from phase3_tracking.object_tracker import BOX
from phase3_tracking.trackers.cmcsort_tracker import CMCSORTTracker
from phase3_tracking.trackers.track_smoothing import smooth
from phase3_tracking.trackers.tracker_options import build_tracker, smallest_confidence

MOT17 = Path(__file__).resolve().parents[4] / "shared" / "data" / "mot17_frcnn"
needs_data = pytest.mark.skipif(not MOT17.is_dir(), reason="the shared MOT17 data is not here")


def box(x: float, y: float = 0.0, *, score: float = 0.9, label: int = 1) -> list[float]:
    return [x, y, x + 20, y + 40, score, label]


def run(tracker: CMCSORTTracker, *frames: list) -> list[list[int]]:
    return [
        tracker.update(np.array(rows, float).reshape(-1, 6))[:, 4].astype(int).tolist()
        for rows in frames
    ]


# --- association ------------------------------------------------------------------------------


def test_a_weak_detection_continues_a_track_but_starts_none():
    tracker = CMCSORTTracker(coast_s=0)
    frames = [[box(0)], [box(1, score=0.2), box(99, score=0.2)], [box(2)]]
    assert run(tracker, *frames) == [[1], [1], [1]]


@pytest.mark.parametrize(
    ("score", "options", "found"),
    [
        (0.09, {}, False),
        (0.1, {}, True),
        (0.09, {"low_confidence": 0.05}, True),
        (0.09, {"high_confidence": 0.09}, True),  # strong, so the limit of weak ones is not asked
        (0.3, {"low_confidence": 0.4}, False),
        (-1.0, {"low_confidence": -math.inf}, True),
    ],
)
def test_the_weakest_detections_are_not_used(score, options, found):
    tracker = CMCSORTTracker(coast_s=0, **options)
    assert run(tracker, [box(0)], [box(1, score=score)]) == [[1], [1] if found else []]


def test_the_default_is_given_what_the_command_line_gives():
    rng = np.random.default_rng(0)
    frames = [
        np.array([box(60.0 * n + t, 10.0 * n, score=rng.uniform(0, 1)) for n in range(9)])
        for t in range(60)
    ]
    by_class, by_options = CMCSORTTracker(), build_tracker(tracker="cmcsort", confidence=0.5)
    least = smallest_confidence("cmcsort", 0.5)
    for rows in frames:
        tracks = by_options.update(rows[rows[:, 4] >= least])
        np.testing.assert_array_equal(by_class.update(rows), tracks)


@pytest.mark.parametrize(
    ("x", "score", "found"), [(13, 0.9, True), (14, 0.9, False), (6, 0.3, True), (7, 0.3, False)]
)
def test_weak_detections_need_more_overlap(x, score, found):
    # IoU 7/33 and 6/34 against 0.2; 14/26 and 13/27 against 0.5
    tracker = CMCSORTTracker(coast_s=0)
    assert run(tracker, [box(0)], [box(x, score=score)])[1] == ([1] if found else [])


def test_of_two_that_fit_the_confident_one_is_taken():
    tracker = CMCSORTTracker(coast_s=0)
    tracker.update(np.array([box(0)]))
    tracks = tracker.update(np.array([box(-2, score=0.95), box(1, score=0.6)]))
    # IoU 18/22 * 0.95 = 0.78 beats 19/21 * 0.6 = 0.54
    assert tracks[:, [0, 4]].tolist() == [[-2, 1]]


def test_of_two_that_fit_the_confirmed_one_is_continued():
    tracker = CMCSORTTracker(coast_s=0)
    frames = [[box(0)], [box(0), box(8)], [box(6)]]  # 6 is nearer to the new one at 8
    assert run(tracker, *frames) == [[1], [1], [1]]


def test_a_track_that_is_never_confirmed_has_no_id():
    frames = [[], [box(0)], [box(0)], [box(100)], [], [box(100)], [box(100)]]
    assert run(CMCSORTTracker(coast_s=0), *frames) == [[], [], [1], [], [], [], [2]]


@pytest.mark.parametrize(("score", "starts"), [(0.65, False), (0.75, True)])
def test_start_confidence(score, starts):
    assert run(CMCSORTTracker(), [box(0, score=score)]) == [[1] if starts else []]


@pytest.mark.parametrize("frame_rate", [10, 30])
def test_the_default_memory_is_two_seconds(frame_rate):
    assert CMCSORTTracker(frame_rate=frame_rate).max_age == 2 * frame_rate


# --- coasting ---------------------------------------------------------------------------------


def test_coasting_shows_the_predicted_box_for_a_tenth_of_a_second():
    tracker = CMCSORTTracker()
    for number in range(30):
        tracker.update(np.array([box(2.0 * number, score=0.8)]))
    for missed in (1, 2, 3):
        tracks = tracker.update(np.empty((0, 6)))
        assert tracks[0, 0] == pytest.approx(58 + 2 * missed, abs=0.5)
        assert tracks[0, 4:].tolist() == [1, 1, 0.8]
    assert not len(tracker.update(np.empty((0, 6))))
    assert tracker.update(np.array([box(68)]))[:, 4].tolist() == [1]


def test_a_young_track_does_not_coast():
    assert run(CMCSORTTracker(), *[[box(0)]] * 8, [])[-1] == []


def test_without_coasting_only_detections_are_returned():
    assert run(CMCSORTTracker(coast_s=0), *[[box(0)]] * 20, [])[-1] == []


# --- the camera -------------------------------------------------------------------------------


def standing(shift: float, places: int = 6) -> list:
    return [box(60.0 * place + shift, 10.0 * place) for place in range(places)]


def test_a_jump_of_the_camera_keeps_all_ids():
    """By 15 pixels. Those 20 wide overlap their old boxes too little, with IoU 5/35. Those 60 wide
    do, tell the shift, and with it the others are found too."""
    wide = [[x, 100, x + 60, 140, 0.9, 1] for x in (0, 90, 180, 270)]
    narrow = [box(20), box(120)]

    def shifted(by: float) -> list:
        return [[x1 + by, y1, x2 + by, *rest] for x1, y1, x2, *rest in wide + narrow]

    tracker = CMCSORTTracker(coast_s=0)
    ids = run(tracker, *[shifted(0)] * 5, shifted(15))
    assert ids[-1] == [1, 2, 3, 4, 5, 6]
    assert tracker.tracks_started == 6


def test_a_hidden_track_moves_with_the_camera():
    """While the last one is hidden, the camera goes 30 pixels to the side and stops."""
    path = [0] * 10 + [3 * t for t in range(1, 11)] + [30] * 10
    frames = [standing(shift)[: 5 if 10 <= t < 25 else 6] for t, shift in enumerate(path)]
    tracker = CMCSORTTracker(coast_s=0)
    assert run(tracker, *frames)[-1] == [1, 2, 3, 4, 5, 6]
    assert tracker.tracks_started == 6


def test_a_few_who_move_are_not_taken_for_the_camera():
    tracker = CMCSORTTracker(coast_s=0)
    for number in range(10):
        tracker.update(np.array([*standing(0), box(4.0 * number, 300)]))
    detections, index = tracker._tracks[BOX].copy(), np.arange(7)
    mover = detections[1].argmax()
    detections[[0, 2], mover] += 50
    assert tracker._camera_motion(detections, index, index).tolist() == [0, 0]
    detections[0::2] += 3
    assert tracker._camera_motion(detections, index, index).tolist() == [3, 0]


def test_too_few_tell_nothing_about_the_camera():
    tracker = CMCSORTTracker()
    tracker.update(np.array(standing(0, 3)))
    detections, index = np.array(standing(5, 3)).T, np.arange(3)
    assert tracker._camera_motion(detections, index, index) is None


# --- real sequences ---------------------------------------------------------------------------


def tracked(every: int, offline: bool = False) -> dict[str, float]:
    comparisons = []
    for sequence in mot_files.find_sequences(MOT17):
        truth = mot_files.read(sequence.ground_truth, unique_ids=True)
        truth = truth.select((truth.frames - 1) % every == 0)
        found = mot_files.read(sequence.detections, unique_ids=False)
        tracker = CMCSORTTracker(frame_rate=sequence.frame_rate)
        rows = [np.empty((0, 8))]
        for frame in range(1, sequence.frame_count + 1, every):
            when = frame / sequence.frame_rate
            x1, y1, x2, y2, ids, classes, scores = tracker.update(found.detections(frame), when).T
            columns = [ids * 0 + frame, ids, x1, y1, x2 - x1, y2 - y1, scores, classes]
            rows.append(np.column_stack(columns))
        tracks = mot_files.from_rows(np.concatenate(rows))
        tracks = smooth(tracks, sequence.frame_rate) if offline else tracks
        comparisons.append(Comparison(sequence.name, truth, tracks, "mot17"))
    return score(comparisons)["combined"]


@needs_data
def test_quality_on_mot17():
    combined = tracked(every=1)
    assert combined["hota"] > 0.500
    assert combined["idf1"] > 0.585
    assert combined["mota"] > 0.495
    assert combined["id_switches"] < 300


@needs_data
def test_quality_at_a_third_of_the_frame_rate():
    combined = tracked(every=3)
    assert combined["hota"] > 0.490
    assert combined["idf1"] > 0.570


@needs_data
def test_smoothing_makes_it_better():
    combined = tracked(every=1, offline=True)
    assert combined["hota"] > 0.510
    assert combined["idf1"] > 0.593
    assert combined["id_switches"] < 260
