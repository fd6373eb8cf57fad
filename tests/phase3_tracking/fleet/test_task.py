"""What a worker does, without a cluster."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from common import artifacts, recorded_files
from phase3_tracking import track_fleet, video_detector
from phase3_tracking.detection_log import log_file
from phase3_tracking.fleet import task
from phase3_tracking.fleet.plan import Video
from phase3_tracking.fleet.task import Order, track, try_detector
from tests.phase3_tracking.video_files import RedSquareModel, write_video

FRAMES = 9


@pytest.fixture
def model(monkeypatch, tmp_path) -> RedSquareModel:
    """Instead of every model that is asked for."""
    found = RedSquareModel(file=Path(__file__))
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: found.backend)
    return found


@pytest.fixture
def order(tmp_path) -> Order:
    """Of a video in another folder than this process is in."""
    write_video(tmp_path / "walk.mp4", FRAMES)
    args = track_fleet.build_parser().parse_args(["--input", "x", "--no-fps"])
    args.model_path = Path(__file__)
    video = Video("walk.mp4", "walk_tracked.mp4", Path("out/walk_tracked.mp4"))
    return Order(video, args, ("track_fleet.py", "--input", "x"), tmp_path)


def test_a_video_is_tracked_and_verified(order, model, tmp_path):
    before, words = os.getcwd(), list(sys.argv)
    outcome = track(order)
    assert (os.getcwd(), sys.argv) == (before, words)
    assert outcome.error is None
    assert outcome.row is not None
    report_path = tmp_path / "out" / "walk_tracked.json"
    report = artifacts.read_json(report_path)
    assert report["command"] == "python track_fleet.py --input x"
    assert report["video"]["name"] == "walk.mp4"
    assert outcome.row["report_sha256"] == artifacts.sha256(report_path)
    assert recorded_files.others(report, report_path.parent) == []
    facts = (tmp_path / "walk.mp4").stat()
    assert outcome.row["input_facts"] == [facts.st_size, facts.st_mtime_ns]
    row = {name: outcome.row[name] for name in ("frames", "tracks", "class_counts", "truncated")}
    assert row == {"frames": FRAMES, "tracks": 1, "class_counts": {"car": 1}, "truncated": False}


def test_a_damaged_video_is_an_error_in_a_line(order, model, tmp_path):
    (tmp_path / "walk.mp4").write_text("no video")
    outcome = track(order)
    assert outcome.row is None
    assert outcome.error is not None
    assert outcome.error.startswith("walk.mp4: ")
    assert "\n" not in outcome.error
    assert not (tmp_path / "out").exists()


def test_a_result_that_is_not_as_it_was_written_is_an_error(order, model, monkeypatch):
    """A disk that loses what it was given."""
    run = video_detector.run

    def run_and_lose(args: argparse.Namespace) -> int:
        status = run(args)
        args.output.write_bytes(args.output.read_bytes()[:-1])
        return status

    monkeypatch.setattr(video_detector, "run", run_and_lose)
    error = track(order).error
    assert error == (
        "out/walk_tracked.json: is not as it was written (walk_tracked.mp4) – check the disk"
    )


def test_a_bug_is_an_error_of_this_video_with_its_trace(order, monkeypatch):
    def broken(*options):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(video_detector, "load_backend", broken)
    outcome = track(order)
    assert outcome.error == "walk.mp4: internal error (RuntimeError: two lines)"
    assert 'raise RuntimeError("two\\nlines")' in outcome.trace


class Killed(BaseException):
    """In place of SIGKILL: nobody catches it."""


def test_what_a_killed_attempt_has_detected_is_not_detected_again(order, model, monkeypatch):
    """And the result is that of a run that was never killed."""
    whole = track(order)
    results = sorted((order.folder / "out").iterdir())
    contents = [path.read_bytes() for path in results if path.suffix != ".json"]
    count = len(model.frames)

    def kill(number: int) -> None:
        if number >= 6:
            raise Killed

    killed = RedSquareModel(kill, file=Path(__file__))
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: killed.backend)
    with pytest.raises(Killed):
        track(order)
    assert log_file(order.folder / order.video.output_path).exists()
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: model.backend)
    again = track(order)
    assert 0 < len(model.frames) - count < FRAMES
    assert whole.row is not None
    assert again.row is not None
    assert (again.row["frames"], again.row["tracks"]) == (FRAMES, whole.row["tracks"])
    assert sorted((order.folder / "out").iterdir()) == results
    assert [path.read_bytes() for path in results if path.suffix != ".json"] == contents


@pytest.mark.parametrize(
    "content", ["no log", '{"schema": "video_detections/1", "settings": {}}\n']
)
def test_detections_that_do_not_fit_are_made_anew(order, model, content):
    log = log_file(order.folder / order.video.output_path)
    log.parent.mkdir()
    log.write_text(content)
    assert track(order).error is None
    assert model.frames == list(range(FRAMES))
    assert not log.exists()


def test_the_folder_of_the_driver_has_to_be_there(order, model, tmp_path):
    away = Order(order.video, order.args, order.command, tmp_path / "away")
    error = track(away).error
    assert error is not None
    assert error.startswith(f"{tmp_path / 'away'}: is not there on ")


def test_a_detector_is_tried(order, model):
    row = try_detector(order).row
    assert row is not None
    assert row["device"] == "cpu"
    order.args.classes = ["bicycle"]
    assert try_detector(order).error == (
        "--classes bicycle: not known – the classes are: person, car"
    )


def test_nothing_heavy_is_loaded_with_the_module():
    """A worker imports it to be told what to do."""
    assert not {"torch", "cv2", "ray"} & set(vars(task))
