"""What weak detections are found to do for a track, with scenes whose end is known."""

from copy import deepcopy

import numpy as np
import pytest

from phase3_tracking.explain.explain_trace import TracedCMCSORT, traced_update
from phase3_tracking.explain.explain_weak import NEW, NONE, OPEN, OTHER, SAME, WeakFinder

STRONG, WEAK = 0.9, 0.3


def find(frames: list[list[tuple]]):
    """The moment in frames of (left, top, confidence): boxes of 100 x 100, 10 frames a second."""
    tracker = TracedCMCSORT(frame_rate=10, high_confidence=0.5, start_confidence=0.7)
    finder = WeakFinder(0.5)
    for number, boxes in enumerate(frames, start=1):
        rows = [[x, y, x + 100, y + 100, confidence, 1] for x, y, confidence in boxes]
        detections, before = np.array(rows).reshape(-1, 6), deepcopy(tracker)
        step = traced_update(tracker, detections, number, number / 10)
        finder.take(before, step, detections)
    finder.finish()
    return finder.best


def walk(confidences: list[float], step_px: float = 5) -> list[list[tuple]]:
    return [[(step_px * number, 0, one)] for number, one in enumerate(confidences)]


def test_no_weak_detection():
    assert find(walk([STRONG] * 10)) is None


def test_a_weak_detection_that_continues_no_track():
    assert find([[(0, 0, STRONG), (500, 0, WEAK)] for _ in range(10)]) is None


def test_found_again_under_the_same_id():
    made = find(walk([STRONG] * 5 + [WEAK] * 3 + [STRONG] * 2))
    assert (made.outcome, made.track_id, made.frames) == (SAME, 1, 3)
    assert (made.begin.with_weak.number, made.end.with_weak.number) == (6, 9)
    with_weak, without = made.begin.with_weak, made.begin.without_weak
    assert with_weak.detection_of(with_weak.column(1)) == 0
    assert without.detection_of(without.column(1)) is None
    assert without.detections.shape[1] == 0


def test_a_weak_detection_in_place_of_a_strong_one_bridges_nothing():
    """It fits so much better that it is taken: 1 * 0.47 against 75 / 125 * 0.75."""
    both = [(0, 0, 0.47), (25, 0, 0.75)]
    assert find([*[[(0, 0, STRONG)]] * 8, both, [(0, 0, STRONG)]]) is None
    assert find([*[[(0, 0, STRONG)]] * 8, both[:1], [(0, 0, STRONG)]]) is not None


def test_iou_of_the_first_weak_detection():
    made = find([[(0, 0, STRONG)]] * 5 + [[(20, 0, WEAK)], [(20, 0, STRONG)]])
    assert made.iou == pytest.approx(80 / 120)


def turned(last: float) -> list[list[tuple]]:
    """Stands still, goes down with weak detections, and has a last one of some confidence."""
    down = [[(0, 20 * number, WEAK)] for number in range(1, 8)]
    return [[(0, 0, STRONG)]] * 5 + down + [[(0, 160, last)]]


def test_a_new_track_where_the_old_one_was_not_followed():
    made = find(turned(STRONG))
    assert (made.outcome, made.frames) == (NEW, 7)


def test_no_track_where_the_detection_is_too_weak_to_start_one():
    assert find(turned(0.6)).outcome == NONE


def test_another_track_where_the_object_was_not_followed():
    """A second object stood where the first one arrives, and is not seen any more."""
    frames = turned(STRONG)
    with_second = [[*boxes, (0, 170, STRONG)] for boxes in frames[:5]] + frames[5:]
    made = find(with_second)
    assert (made.outcome, made.track_id, made.frames) == (OTHER, 1, 7)


def test_no_strong_detection_any_more():
    made = find(walk([STRONG] * 5 + [WEAK] * 4))
    assert (made.outcome, made.end, made.frames) == (OPEN, None, 4)
    made = find([*walk([STRONG] * 5 + [WEAK] * 2), [], []])
    assert (made.outcome, made.end, made.frames) == (OPEN, None, 2)


def test_a_changed_id_is_told_before_a_longer_bridge():
    far = [[(x + 1000, y, one) for x, y, one in boxes] for boxes in turned(STRONG)]
    still = [STRONG] * 3 + [WEAK] * 9 + [STRONG]
    both = [[*boxes, (0, 0, one)] for boxes, one in zip(far, still, strict=True)]
    made = find(both)
    assert (made.outcome, made.frames) == (NEW, 7)
