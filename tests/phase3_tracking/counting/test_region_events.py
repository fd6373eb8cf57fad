"""RegionCounter: lines and zones together, with times, names and a bounded list of events."""

import json

import numpy as np

from phase3_tracking.counting import region_events
from phase3_tracking.counting.region_events import RegionCounter, anchors_of
from phase3_tracking.counting.regions import Region
from tests.phase3_tracking.made_up_tracks import boxes

GATE = Region("gate", ((100, 50), (200, 50)))
YARD = Region("yard", ((100, 60), (200, 60), (200, 160), (100, 160)))


def counter(*, height: int = 200) -> RegionCounter:
    return RegionCounter([GATE], [YARD], {1: "person"}, frame_height=height, frame_s=0.1)


def test_anchors_are_bottom_centres():
    tracks = np.array([[10, 20, 30, 80, 1, 1, 0.9], [-4, 0, 4, 7.5, 2, 1, 0.9]])
    assert anchors_of(tracks).tolist() == [[20, 80], [0, 7.5]]
    assert anchors_of(tracks[:0]).shape == (0, 2)


def test_events_of_a_walk():
    regions = counter()
    events = []
    for frame, y in enumerate((20, 45, 70, 90, 40), start=1):
        events += regions.update(frame, frame / 10, boxes((5, 150, y)))
    summary = json.loads(json.dumps(regions.summary(), allow_nan=False))
    assert summary["events"] == [event.as_json() for event in events]
    walk = [(one["frame"], one["kind"], one["name"], one["direction"]) for one in summary["events"]]
    assert walk == [
        (3, "line", "gate", "left_to_right"),
        (3, "enter", "yard", None),
        (5, "line", "gate", "right_to_left"),
        (5, "exit", "yard", None),
    ]
    assert summary["events"][0] == {
        "time_s": 0.3,
        "frame": 3,
        "kind": "line",
        "name": "gate",
        "track_id": 5,
        "direction": "left_to_right",
        "class": "person",
    }
    assert summary["events_total"] == 4
    assert summary["lines"][0]["net"] == 0
    assert summary["zones"][0]["entries"]["total"] == 1


def test_p3_39_no_tracks_at_all():
    regions = counter()
    assert regions.update(1, 0.0, np.empty((0, 7))) == []
    assert regions.summary()["events"] == []


def test_the_margin_grows_with_the_frame():
    def crossings(height: int) -> int:
        regions = counter(height=height)
        for frame, y in enumerate((20, 58), start=1):
            regions.update(frame, frame / 10, boxes((5, 150, y)))
        return regions.summary()["lines"][0]["net"]

    assert (crossings(200), crossings(700), crossings(2160)) == (1, 1, 0)


def test_classes_without_a_name():
    regions = counter()
    for frame, y in enumerate((20, 90), start=1):
        events = regions.update(frame, frame / 10, boxes((5, 150, y, 77)))
    assert {event.class_name for event in events} == {"class 77"}


def test_p3_50_the_list_of_events_is_bounded_and_says_so(monkeypatch):
    monkeypatch.setattr(region_events, "MAX_LISTED_EVENTS", 5)
    regions = counter()
    handed_out = 0
    for frame in range(1, 21):
        handed_out += len(regions.update(frame, frame / 10, boxes((5, 150, (20, 90)[frame % 2]))))
    summary = regions.summary()
    assert len(summary["events"]) == 5
    assert summary["events_total"] == handed_out == 19 * 2
    assert [one["frame"] for one in summary["events"]] == [2, 2, 3, 3, 4]
