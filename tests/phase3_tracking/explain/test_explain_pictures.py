"""The calculations written beside the pictures, and where boxes and names are drawn."""

import numpy as np
import pytest

from phase3_tracking.explain.explain_moments import (
    AssignmentMoment,
    CameraMoment,
    OverlapMoment,
    PredictionMoment,
)
from phase3_tracking.explain.explain_motion_pictures import camera_note, prediction_note
from phase3_tracking.explain.explain_pictures import assignment_note, draw_overlap, overlap_note
from phase3_tracking.explain.explain_style import (
    BLUE,
    NAME,
    detail_of,
    put_name,
    teaching_figure,
)
from phase3_tracking.explain.explain_trace import TracedSORT, traced_update
from phase3_tracking.explain.explain_weak import Decision, WeakMoment
from phase3_tracking.explain.explain_weak_picture import weak_note


def test_the_calculation_of_iou():
    boxes = np.array([[0, 5], [0, 2], [10, 15], [10, 12]], float)  # one column for each
    note = overlap_note(OverlapMoment((7, 8), 3, boxes, 40 / 160)).splitlines()
    assert note[0] == "A, frame 7"
    assert "  10.00 x 10.00 = 100.0 px²" in note
    assert "  5.00 x 8.00 = 40.0 px²" in note
    assert "  160.0 px²" in note
    assert note[-1].split() == ["=", "0.250"]


def pairs(*both: tuple[int, int]):
    return tuple(np.array(both).T)


def test_what_is_said_of_greedy():
    iou = np.array([[0.4, np.nan], [0.8, 0.7]])
    boxes = np.zeros((4, 2))
    right, wrong = pairs((0, 0), (1, 1)), pairs((1, 0))
    moment = AssignmentMoment(5, np.array([3, 9]), boxes, boxes, iou, 0.3, right, wrong)
    note = assignment_note(moment)
    assert "Chosen: T3-D1, T9-D2; total IoU 1.100." in note
    assert "Greedy: T9-D1; total IoU 0.800, which is less." in note
    same = AssignmentMoment(5, np.array([3, 9]), boxes, boxes, iou, 0.3, right, right)
    assert "comes to the same here" in assignment_note(same)


def test_a_line_of_the_table_for_each_frame():
    tracker, steps = TracedSORT(min_hits=1, max_age=5, frame_rate=30), []
    for number, left in enumerate([0, 0, None, 4], start=1):
        rows = np.empty((0, 6)) if left is None else np.array([[left, 0, left + 20, 40, 0.9, 0]])
        steps.append(traced_update(tracker, rows, number, number / 30))
    lines = prediction_note(PredictionMoment(1, tuple(steps[1:]))).splitlines()
    assert [line.split("|")[0].strip() for line in lines[1:5]] == ["frame", "2", "3", "4"]
    still, missed, found = (line.split("|") for line in lines[2:5])
    # by hand: 20 * 0.1, a step of 20 / 16 and 20 / 20 of noise, against 20 / 20 of measuring
    variance = 4 + 400 / 256 + 1 + 400 / 160**2 / 3
    assert still[1].split()[:3] == ["10.0", "20.0", f"{variance**0.5:.1f}"]
    assert still[3].split()[0] == f"{variance / (variance + 1):.2f}"
    assert (missed[2].strip(), missed[4].strip()) == ("none", "= predicted")
    assert found[2].split() == ["14.0", "20.0"]


def camera(shift: tuple[float, float]) -> CameraMoment:
    return CameraMoment(
        *(4, np.array([1, 2]), np.zeros((4, 2)), np.zeros((4, 2))),
        *(np.zeros((2, 2)), np.array(shift)),
    )


def test_a_camera_that_stands_still_is_called_so():
    assert "stands still" not in camera_note(camera((4, -2.5)))
    assert "4.00 px right and 2.50 px up" in camera_note(camera((4, -2.5)))
    assert "stands still" in camera_note(camera((0.3, 0.2)))


@pytest.mark.parametrize(
    ("outcome", "text"), [("same", "same id"), ("new", "id changes"), ("none", "no track")]
)
def test_what_becomes_of_a_track_without_weak_detections(outcome, text):
    tracker = TracedSORT(min_hits=1, frame_rate=30)
    rows = np.array([[0, 0, 20, 40, 0.31, 0]])
    steps = [traced_update(tracker, rows, number, number / 30) for number in (1, 2, 3)]
    begin, end = Decision(steps[1], steps[1]), Decision(steps[2], steps[2])
    note = weak_note(WeakMoment(1, begin, end, 1, outcome, 0.5, 1.0))
    assert "Frame 2: a detection of 0.31, below 0.5, has IoU 1.00" in note
    assert "in 1 frame;" in note
    assert text in note
    open_end = weak_note(WeakMoment(1, begin, None, 2, "open", 0.5, 1.0))
    assert "in 2 frames; no strong detection follows" in open_end


@pytest.mark.parametrize("aspect", [0.8, 1.0, 2.4])
def test_a_detail_shows_all_boxes_inside_of_the_frame(aspect):
    boxes = np.array([[3, 180], [5, 90], [23, 200], [45, 130]], float)
    x1, y1, x2, y2 = detail_of(boxes, 640, 480, aspect)
    assert 0 <= x1 <= 3
    assert 0 <= y1 <= 5
    assert 200 <= x2 <= 640
    assert 130 <= y2 <= 480
    assert (x2 - x1) / (y2 - y1) == pytest.approx(aspect)


def test_a_detail_of_boxes_outside_of_the_frame():
    detail = detail_of(np.array([[-50], [-50], [700], [500]], float), 640, 480, 1.0)
    assert detail.tolist() == [0, 0, 640, 480]


def test_names_do_not_cover_each_other(tmp_path):
    with teaching_figure(tmp_path / "names.png", "names", 4) as figure:
        axis = figure.subplots()
        for number in range(6):
            put_name(axis, 0.5, 0.5, f"T{number}", BLUE, "bottom")
        put_name(axis, 0.0, 1.0, "at the corner", BLUE, "bottom")
    places = [text.get_window_extent() for text in axis.texts if text.get_gid() == NAME]
    assert len(places) == 7
    assert not any(a.overlaps(b) for index, a in enumerate(places) for b in places[:index])
    inside = axis.get_window_extent().padded(1)
    assert all(inside.x0 <= one.x0 and one.y1 <= inside.y1 for one in places)


def test_boxes_that_do_not_overlap_can_be_drawn(tmp_path):
    boxes = np.array([[0, 50], [0, 50], [10, 60], [10, 60]], float)
    draw_overlap(
        OverlapMoment((1, 2), 1, boxes, 0.0),
        {2: np.zeros((80, 80, 3), np.uint8)},
        tmp_path / "x.png",
    )
    assert (tmp_path / "x.png").stat().st_size > 0
