"""The numbers of a report, and the lines that tell them."""

import json
import logging
import math
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from phase3_tracking.results import run_report
from phase3_tracking.stage_clock import StageClock
from phase3_tracking.trackers.tracker_options import build_tracker


def source(**changed) -> SimpleNamespace:
    content = {
        **{"name": "street.mp4", "path": Path("/videos/street.mp4"), "width": 640, "height": 360},
        **{"fps": Fraction(15000, 1001), "source_fps": Fraction(30000, 1001)},
        **{"frames_read": 57, "frames_decoded": 114, "frames_promised": 122, "frames_dropped": 0},
        **{"truncated": True, "decode_seconds": 1.5, "notes": ["2 damaged parts"]},
    }
    return SimpleNamespace(**(content | changed))


def clock(frames: int = 57) -> StageClock:
    one = StageClock()
    one.seconds["decode"] = 4.2
    for _ in range(frames):
        one.frame_done()
    return one


def counted(*classes: tuple[str, int]) -> dict:
    listed = [{"class": name, "unique_tracks": tracks} for name, tracks in classes]
    return {"statistics": {"unique_tracks": sum(n for _, n in classes), "classes": listed}}


TRACKER = SimpleNamespace(dropped_detections=3, best_confidence=0.95, least_to_start=-math.inf)


def report(one: SimpleNamespace, *, complete: bool = True, **changed) -> dict:
    return {
        **run_report.of_video(one, None, clock(), complete=complete),
        **run_report.of_tracks(counted(("car", 4), ("person", 2), ("bus", 0)), TRACKER),
        **changed,
    }


def test_of_video(tmp_path):
    file = tmp_path / "street.mp4"
    file.write_bytes(b"x" * 1234)
    writer = SimpleNamespace(frames_written=57, notes=["sound: aac"], audio_kept="aac, copied")
    content = run_report.of_video(source(path=file), writer, clock(), complete=True)
    assert content["stage_ms"]["decode"] == pytest.approx((4.2 + 1.5) / 57 * 1000)
    assert content["notes"] == ["2 damaged parts", "sound: aac"]
    assert content["latency_ms"] is None
    assert content["video"] == {
        **{"name": str(file), "bytes": 1234, "width": 640, "height": 360},
        **{"fps": 15000 / 1001, "source_fps": 30000 / 1001, "audio": "aac, copied"},
    }
    numbers = ("frames_read", "frames_written", "frames_decoded", "frames_promised")
    assert [content[key] for key in numbers] == [57, 57, 114, 122]
    assert (content["truncated"], content["complete"], content["frames_dropped"]) == (True, True, 0)


def test_of_video_without_a_writer_or_a_file():
    content = run_report.of_video(source(name="camera 0", path=None), None, clock(), complete=False)
    assert (content["frames_written"], content["complete"]) == (0, False)
    assert (content["video"]["name"], content["video"]["audio"]) == ("camera 0", None)
    assert content["video"]["bytes"] is None


def test_of_tracks_counts_classes_that_were_seen():
    content = run_report.of_tracks(counted(("car", 4), ("person", 2), ("bus", 0)), TRACKER)
    assert (content["tracks"], content["dropped_detections"]) == (6, 3)
    assert list(content["class_counts"].items()) == [("car", 4), ("person", 2)]
    assert content["statistics"]["unique_tracks"] == 6


def told(content: dict, caplog) -> list[str]:
    with caplog.at_level(logging.INFO, logger="detection"):
        run_report.tell("street.mp4", content)
    return caplog.messages


def test_p3_06_what_is_wrong_is_told_before_the_outcome(caplog):
    lines = told(report(source(), complete=False), caplog)
    assert lines[:5] == [
        "street.mp4 is cut short: 114 of 122 frames readable",
        "street.mp4: 2 damaged parts",
        "3 detections without an area or with values that are not finite were left out",
        "Stopped after 57 frames; what was done by then is saved",
        "57 frames, 6 tracks (car 4, person 2)",
    ]
    assert "FPS end to end; ms per frame: decode 100.0, detect 0.0" in lines[5]
    assert len(lines) == 6
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4 + ["INFO"] * 2


def test_a_lost_stream_promised_nothing(caplog):
    one = source(name="camera 0", path=None, frames_decoded=8, frames_promised=None)
    assert run_report.cut_short(report(one)) == "ended after 8 frames"
    assert told(report(one), caplog)[0] == "street.mp4 is cut short: ended after 8 frames"


def test_latency_is_told_where_there_is_one(caplog):
    content = report(
        source(truncated=False, notes=[]),
        dropped_detections=0,
        latency_ms={"p50": 1.0, "p90": 2.25, "p99": 30.0},
    )
    lines = told(content, caplog)
    assert lines[-1] == "Latency from the reader to the result: p50 1.0, p90 2.2, p99 30.0 ms"
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("", "no class"),
        ("ab", "a, b"),
        ("abcdefghijkl", "a, b, c, d, e, f, g, h, i, j, and 2 more"),
    ],
)
def test_nothing_found_is_told_with_what_to_do(caplog, names, expected):
    content = report(
        source(truncated=False, notes=[]),
        **{"tracks": 0, "class_counts": {}, "categories": dict(enumerate(names))},
        **{"best_confidence": None, "settings": {}},
    )
    lines = told(content, caplog)
    at = lines.index("57 frames, 0 tracks")
    assert lines[at + 1] == f"Nothing was found. Lower --confidence? Looked for: {expected}"


OCSORT_AT_041 = "--tracker ocsort --confidence 0.41"


@pytest.mark.parametrize(
    ("tracker", "confidence", "best", "start", "has", "ways"),
    [
        # 0.41 + 0.4 * 0.59 is 0.646, and 0.42 would be 0.652
        ("cmcsort", 0.5, 0.65, "0.7", "0.65", "--confidence 0.41 or --tracker ocsort"),
        ("bytetrack", 0.8, 0.419, "0.88", "0.41", "--confidence 0.03 or " + OCSORT_AT_041),
        ("cmcsort", 0.5, 0.3, "0.7", "0.30", "--tracker ocsort --confidence 0.3"),
    ],
)
def test_detections_that_start_no_track_are_told_with_what_changes_that(
    caplog, tracker, confidence, best, start, has, ways
):
    built = build_tracker(tracker=tracker, confidence=confidence)
    for number in range(5):
        built.update(np.array([[number, 0, number + 30, 40, best, 1]]))
    content = {
        **run_report.of_video(source(truncated=False, notes=[]), None, clock(), complete=True),
        **run_report.of_tracks(counted(), built),
        **{"categories": {1: "car"}, "settings": {"tracker": tracker, "min_hits": 2}},
    }
    content["settings"]["confidence_threshold"] = confidence
    json.dumps(content, allow_nan=False)
    assert told(content, caplog)[1] == (
        f"No track has started: at --confidence {confidence:g} {tracker} starts one from {start}, "
        f"and the best detection has {has}. Try {ways}. Looked for: car"
    )
    for words in map(str.split, ways.split(" or ")):  # each does what it promises
        given = dict(zip(words[::2], words[1::2], strict=True))
        name = given.get("--tracker", tracker)
        least = float(given.get("--confidence", confidence))
        another = build_tracker(tracker=name, confidence=least)
        for number in range(5):
            tracks = another.update(np.array([[number, 0, number + 30, 40, best, 1]]))
        assert len(tracks) == 1, words


def test_tracks_that_are_never_confirmed_are_told(caplog):
    nothing = {"tracks": 0, "class_counts": {}, "categories": {1: "car"}}
    content = report(
        source(truncated=False, notes=[]), **nothing, settings={"min_hits": 3}, best_confidence=0.9
    )
    expected = "No track has had the 3 detections it needs. Lower --min-hits? Looked for: car"
    assert told(content, caplog)[2] == expected
