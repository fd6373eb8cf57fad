"""TrackStatistics: counts by hand, bounded memory, and what JSON can hold."""

import json
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase3_tracking.counting.time_bins import MAX_BINS, TimeBins
from phase3_tracking.counting.track_statistics import TrackStatistics
from tests.phase3_tracking.made_up_tracks import boxes

NAMES = {1: "person", 3: "car"}
FRAME_S = 0.5


def counted(*frames: list[tuple]) -> dict:
    """The summary of frames of (track id, category, confidence), two a second."""
    statistics = TrackStatistics(NAMES, FRAME_S)
    for index, rows in enumerate(frames):
        tracks = [[0, 0, 9, 9, track_id, label, score] for track_id, label, score in rows]
        statistics.update(index * FRAME_S, np.array(tracks, float).reshape(-1, 7))
    return json.loads(json.dumps(statistics.summary(), allow_nan=False))


def test_a_small_video():
    summary = counted(
        [(1, 1, 0.9), (2, 3, 0.5)],
        [(1, 1, 0.7), (2, 3, 0.5), (4, 1, 0.6)],
        [],
        [(1, 1, 0.8), (9, 7, 0.1)],
    )
    assert summary["frames"] == 4
    assert summary["unique_tracks"] == 4
    assert (summary["boxes"], summary["mean_at_a_time"], summary["max_at_a_time"]) == (7, 1.75, 3)
    person, car, unnamed = summary["classes"]
    assert person == {
        "class": "person",
        "category_id": 1,
        "unique_tracks": 2,
        "boxes": 4,
        "mean_at_a_time": 1.0,
        "max_at_a_time": 2,
    }
    assert (car["class"], car["unique_tracks"], car["boxes"]) == ("car", 1, 2)
    assert (unnamed["class"], unnamed["boxes"], unnamed["mean_at_a_time"]) == ("class 7", 1, 0.25)
    assert summary["tracks"][0] == {
        "track_id": 1,
        "class": "person",
        "category_id": 1,
        "first_s": 0.0,
        "last_s": 1.5,
        "dwell_s": 2.0,  # four frames of half a second, one of them without the track
        "frames": 3,
        "mean_confidence": 0.8,
    }
    assert [track["track_id"] for track in summary["tracks"]] == [1, 2, 4, 9]
    assert [track["dwell_s"] for track in summary["tracks"]] == [2.0, 1.0, 0.5, 0.5]
    # sorted 0.5, 0.5, 1, 2; the 90th percentile lies at position 2.7
    assert summary["dwell"] == {"median_s": 0.75, "p90_s": 1.7, "max_s": 2.0}
    assert summary["objects_over_time"] == {"bin_s": 1.0, "mean": [2.5, 1.0], "max": [3, 2]}


@pytest.mark.parametrize(
    ("labels", "category"), [([1, 3, 3], 3), ([3, 1, 1], 1), ([3, 1], 3), ([1, 3, 1, 3], 1)]
)
def test_a_track_is_of_the_class_it_was_most_often(labels, category):
    summary = counted(*[[(1, label, 0.5)] for label in labels])
    assert summary["tracks"][0]["category_id"] == category
    unique = {one["category_id"]: one["unique_tracks"] for one in summary["classes"]}
    assert unique == {1: int(category == 1), 3: int(category == 3)}


@pytest.mark.parametrize("frames", [(), ([], [])])
def test_p3_39_no_detections_at_all(frames):
    summary = counted(*frames)
    assert summary["frames"] == len(frames)
    assert (summary["unique_tracks"], summary["boxes"], summary["mean_at_a_time"]) == (0, 0, 0.0)
    assert (summary["classes"], summary["tracks"]) == ([], [])
    assert summary["dwell"] == {"median_s": None, "p90_s": None, "max_s": None}
    bins = [0.0] if frames else []
    assert summary["objects_over_time"] == {"bin_s": 1.0, "mean": bins, "max": bins}


def test_p3_50_memory_does_not_grow_with_the_frames():
    statistics = TrackStatistics(NAMES, FRAME_S)
    tracks = boxes(*[(number, 100, 100) for number in range(20)])
    for index in range(1000):
        statistics.update(index * FRAME_S, tracks)
    tracemalloc.start()
    for index in range(1000, 6000):
        statistics.update(index * FRAME_S, tracks)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 50_000
    assert statistics.summary()["tracks"][0]["frames"] == 6000


def test_a_track_takes_less_than_a_kilobyte():
    statistics = TrackStatistics(NAMES, FRAME_S)
    tracemalloc.start()
    for number in range(2000):
        statistics.update(number * FRAME_S, boxes((number, 100, 100)))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept / 2000 < 1000


def test_a_gap_in_the_frames_is_a_bin_without_a_number():
    bins = TimeBins()
    bins.add(0.5, 4)
    bins.add(2.0, 1)
    bins.add(2.9, 2)
    assert bins.summary() == {"bin_s": 1.0, "mean": [4.0, None, 1.5], "max": [4, None, 2]}


def test_bins_double_when_they_run_out():
    bins = TimeBins()
    for second in range(MAX_BINS):
        bins.add(float(second), second)
    assert len(bins.summary()["mean"]) == MAX_BINS
    bins.add(float(MAX_BINS), 5)
    summary = bins.summary()
    assert summary["bin_s"] == 2
    assert summary["mean"][:3] == [0.5, 2.5, 4.5]
    assert summary["max"][:3] == [1, 3, 5]
    assert len(summary["mean"]) == MAX_BINS // 2 + 1
    assert (summary["mean"][-1], summary["max"][-1]) == (5, 5)


@given(st.lists(st.tuples(st.floats(0, 1e7), st.integers(0, 100)), min_size=1, max_size=50))
def test_bins_equal_those_counted_at_once(frames):
    bins = TimeBins()
    for time_s, objects in sorted(frames):
        bins.add(time_s, objects)
    summary = bins.summary()
    width = summary["bin_s"]
    assert len(summary["mean"]) <= MAX_BINS
    assert width == 1 or max(frames)[0] >= MAX_BINS * width / 2  # no wider than needed
    for index, (mean, most) in enumerate(zip(summary["mean"], summary["max"], strict=True)):
        inside = [n for time_s, n in frames if index <= time_s / width < index + 1]
        assert most == max(inside, default=None)
        assert mean == (pytest.approx(sum(inside) / len(inside)) if inside else None)


def test_ten_hours_stay_bounded():
    bins = TimeBins()
    for second in range(36_000):
        bins.add(float(second), 3)
    summary = bins.summary()
    assert summary["bin_s"] == 64
    assert set(summary["mean"]) == {3.0}
    assert sys.getsizeof(json.dumps(summary)) < 20_000
