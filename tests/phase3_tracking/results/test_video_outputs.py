"""What a run makes of its frames: counts, pictures, the live view."""

import csv
import gc
import json
import math
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from common.models import Detections
from phase3_tracking.backends import Backend
from phase3_tracking.counting import region_events
from phase3_tracking.counting.counting import CountingOptions
from phase3_tracking.counting.regions import parse_line, parse_zone
from phase3_tracking.inputs.frame_source import Frame
from phase3_tracking.live.live_view import LiveView
from phase3_tracking.results.drawing import TrackDrawer, color_of
from phase3_tracking.results.staging import Staging
from phase3_tracking.results.video_outputs import VideoOutputs, status_line
from phase3_tracking.run_options import OutputOptions, RunOptions
from phase3_tracking.stage_clock import StageClock
from phase3_tracking.trackers.tracker_options import TRACKERS
from phase3_tracking.video_detector import VideoDetector, main
from tests.phase3_tracking.video_files import (
    RedSquareModel,
    decoded,
    write_detections,
    write_video,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "walk.mp4")


def run(*arguments) -> int:
    return main([*map(str, arguments), "--quiet"])


# --- counts and pictures ------------------------------------------------------------------------


def test_events_reach_the_report_and_the_table(tmp_path, video):
    """The square's bottom centre moves from x = 12 by 2 a frame along y = 44.

    The yard from x = 19.5 on is entered in frame 5, where x is 20. The gate at x = 25 is passed by
    more than its margin of 2 pixels in frame 9, where x is 28: from the right to the left hand of
    somebody who walks down the picture.
    """
    regions = ("--line", "gate:25,0,25,63", "--zone", "=yard:19.5,0,95,0,95,63,19.5,63")
    detections = write_detections(tmp_path / "det.txt")
    inputs = ("--input", video, "--detections", detections, "--min-hits", "1", "--no-video")
    assert run(*inputs, "--output", tmp_path / "out.mp4", *regions) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    with (tmp_path / "out.events.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [
        {"frame": 5, "time_s": 0.4, "kind": "enter", "name": "=yard", "direction": None},
        {"frame": 9, "time_s": 0.8, "kind": "line", "name": "gate", "direction": "right_to_left"},
    ]
    for event, row, content in zip(expected, rows, report["regions"]["events"], strict=True):
        whole = event | {"track_id": 1, "class": "class 3"}
        assert content == whole
        assert row == {
            key: "" if value is None else str(value).replace("=yard", "'=yard")
            for key, value in (whole | {"time_s": f"{whole['time_s']:.4f}"}).items()
        }
    assert report["regions"]["lines"][0]["name"] == "gate"
    assert report["statistics"]["unique_tracks"] == report["tracks"] == 1


def test_neither_counts_nor_labels_of_tracks_hide_each_other(tmp_path):
    """A car at the corner of a yard where its count stands, too; its wheels are outside."""
    yard = parse_zone("yard:200,200,600,200,600,400,200,400")
    counting = CountingOptions(zones=(yard,), contact_sheet=False)
    shown = []
    window = SimpleNamespace(show=lambda frame: shown.append(frame) or True)
    options = OutputOptions(counting, video=False, window=window, draws_fps=True)
    size = {"width": 800, "height": 600, "fps": Fraction(10)}
    source = SimpleNamespace(**size, name="a", path=None)
    with (
        Staging(tmp_path / "out.mp4") as staging,
        VideoOutputs(staging, source, {1: "car"}, options) as outputs,
    ):
        for number, cars in enumerate([[], [[210, 200, 260, 500, 3, 1, 0.9]]]):
            frame = Frame(np.full((600, 800, 3), 120, np.uint8), Fraction(number, 10), number)
            outputs.take(frame, np.array(cars, float).reshape(-1, 7), StageClock())
    nobody, one = (image[150:196] for image in shown)
    assert (nobody == 0).all(axis=2).sum() > 1000  # the black behind the count
    assert (one == nobody).all()
    colored = (shown[1] == color_of(3)).all(axis=2)
    colored[198:503, 207:264] &= False  # the box; what is left is the label
    assert colored.sum() > 1000


def test_without_a_video_there_is_a_heat_map_and_no_contact_sheet(tmp_path, video):
    inputs = ("--input", video, "--detections", write_detections(tmp_path / "det.txt"))
    assert run(*inputs, "--output", tmp_path / "out.mp4", "--no-video") == 0
    assert cv2.imread(str(tmp_path / "out.heatmap.png")) is not None
    assert not list(tmp_path.glob("out.contact.*"))
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("contact_sheet", [True, False])
def test_a_contact_sheet_needs_no_video(tmp_path, video, contact_sheet):
    counting = CountingOptions(heatmap=False, contact_sheet=contact_sheet)
    options = RunOptions(outputs=OutputOptions(counting, video=False))
    report = VideoDetector(RedSquareModel().backend).process_video(
        video, tmp_path / "out.mp4", options
    )
    assert (tmp_path / "out.contact.jpg").exists() == contact_sheet
    assert (report["stage_ms"]["draw"] > 0) == contact_sheet
    assert report["stage_ms"]["encode"] == 0


# --- the live view ------------------------------------------------------------------------------


def counters(url: str) -> dict:
    with urllib.request.urlopen(f"{url}status.json", timeout=20) as answer:
        return json.loads(answer.read())["counters"]


def test_the_live_view_answers_while_a_run_is_going_on(tmp_path, video):
    """The detector waits in frame 9 until somebody has looked."""
    looked = threading.Event()
    model = RedSquareModel(lambda number: number != 8 or looked.wait(60))
    with LiveView("127.0.0.1", 0) as view:
        counting = CountingOptions(lines=(parse_line("gate:25,0,25,63"),))
        options = RunOptions(outputs=OutputOptions(counting, video=False, live=view))
        detector = VideoDetector(model.backend, batch_size=1, min_hits=1)
        arguments = (video, tmp_path / "out.mp4", options)
        thread = threading.Thread(target=detector.process_video, args=arguments)
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while (status := counters(view.url)).get("frame") != 8:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert thread.is_alive()
        finally:
            looked.set()
            thread.join(60)
        last = counters(view.url)
    assert (status["frames_total"], status["objects"], status["tracks"]) == (12, 1, 1)
    assert status["class_counts"] == {"car": 1}
    assert (status["dropped_frames"], set(status["zone_counts"])) == (0, set())
    assert sum(status["line_counts"].values()) == 0  # x = 26 in frame 8, within the margin
    assert (last["frame"], sum(last["line_counts"].values())) == (12, 1)
    with pytest.raises(OSError, match="refused"):
        counters(view.url)


def test_the_command_serves_the_live_view(tmp_path, video):
    """A child, as somebody starts it: the address is in what it prints."""
    calls = tmp_path / "calls"
    command = [calls, 0.3, "--input", video, "--output", tmp_path / "out.mp4", "--live", 0]
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.phase3_tracking.stub_run", *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    lines = iter(child.stdout.readline, "")
    url = next(line.split()[-1] for line in lines if line.startswith("Live view: open "))
    frames = []
    while child.poll() is None and len(frames) < 3:
        try:
            frame = counters(url).get("frame")
        except OSError:
            break
        if frame and frame not in frames:
            frames.append(frame)
        time.sleep(0.02)
    child.communicate(timeout=120)
    assert child.returncode == 0
    assert len(frames) == 3
    assert frames == sorted(frames)


# --- what is written on the frames -------------------------------------------------------------


class Watcher:
    """In the place of a window: keeps the last frame."""

    def show(self, frame_bgr: np.ndarray) -> bool:
        self.last = frame_bgr
        return True


def test_frames_carry_their_number_and_time_in_the_input(tmp_path, video, monkeypatch):
    texts = []
    draw = TrackDrawer.draw

    def noted(self, frame, tracks, status, *more):
        texts.append(status)
        draw(self, frame, tracks, status, *more)

    monkeypatch.setattr(TrackDrawer, "draw", noted)
    detections = write_detections(tmp_path / "det.txt")
    inputs = ("--input", video, "--detections", detections, "--output", tmp_path / "out.mp4")
    assert run(*inputs, "--start", "0.8", "--frame-skip", "2", "--min-hits", "1") == 0
    assert texts == ["frame 9  0:00.8  1 track", "frame 11  0:01.0  1 track"]
    assert status_line(900, 3661, 0) == "frame 900  1:01:01.0  0 tracks"


@pytest.mark.parametrize("in_file", [False, True])
def test_the_speed_is_shown_to_who_watches_and_may_stay_out_of_the_file(tmp_path, in_file):
    """The top right corner, where there is nothing else."""

    def corner(frame: np.ndarray) -> int:
        return int((frame[:10, -30:] > 200).sum())  # white letters

    video, window = write_video(tmp_path / "wide.mp4", width=400), Watcher()
    options = OutputOptions(video=True, draws_fps=in_file, window=window)
    VideoDetector(RedSquareModel().backend).process_video(
        video, tmp_path / "out.mp4", RunOptions(outputs=options)
    )
    assert corner(window.last) > 20
    assert (corner(decoded(tmp_path / "out.mp4")[-1]) > 0) == in_file


@pytest.mark.fault("C-13")
def test_equal_runs_write_equal_files(tmp_path, video):
    """At different speeds, and with somebody who watches or without."""
    for name, pause_s, window in (("a", 0.0, None), ("b", 0.01, Watcher())):
        model = RedSquareModel(lambda number, pause_s=pause_s: time.sleep(pause_s))
        options = RunOptions(outputs=OutputOptions(draws_fps=False, window=window))
        output = tmp_path / name / "out.mp4"
        report = VideoDetector(model.backend).process_video(video, output, options)
        assert len(report["files"]) == 7
    for file in report["files"]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


# --- too much, and nonsense ---------------------------------------------------------------------


@pytest.mark.parametrize("tracker", TRACKERS)
def test_p3_41_ten_thousand_detections_in_a_frame(tmp_path, tracker):
    """Through the whole run, drawn and written, in seconds instead of hours."""
    video = write_video(tmp_path / "a.mp4", 3, width=640, height=480)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, (600, 440), (10_000, 2))
    boxes = np.hstack([corners, corners + rng.uniform(8, 40, (10_000, 2))]).astype(np.float32)
    scores = rng.uniform(0.85, 1, 10_000).astype(np.float32)
    found = Detections(boxes, scores, np.ones(10_000, int))
    backend = Backend(lambda images, _: [found] * len(images), ("thing",), (1,))
    begin = time.monotonic()
    report = VideoDetector(backend, tracker=tracker, min_hits=1).process_video(
        video, tmp_path / "out.mp4"
    )
    assert time.monotonic() - begin < 100  # a busy machine; alone it takes a tenth
    assert report["statistics"]["boxes"] == 30_000
    assert report["tracks"] == 10_000
    assert len(decoded(tmp_path / "out.mp4")) == 3


def test_p3_40_nonsense_is_dropped_and_counted(tmp_path, video):
    nan, inf = np.nan, np.inf
    boxes = [
        *([10, 10, 30, 30], [nan, 0, 5, 5], [0, 0, inf, 5], [9, 9, 9, 20], [20, 20, 10, 10]),
        *([-40, -40, 20, 20], [-1e20, -1e20, 1e20, 1e20]),
    ]
    found = Detections(np.array(boxes, np.float32), np.full(7, 0.9, np.float32), np.ones(7, int))
    backend = Backend(lambda images, _: [found] * len(images), ("thing",), (1,))
    report = VideoDetector(backend).process_video(video, tmp_path / "out.mp4")
    assert report["dropped_detections"] >= 4 * 12
    assert report["dropped_detections"] % 12 == 0
    for name in ("out.json", "out.tracks.json", "out.coco.json"):
        text = (tmp_path / name).read_text()
        assert not any(word in text for word in ("NaN", "Infinity"))
        json.loads(text)
    assert len(decoded(tmp_path / "out.mp4")) == 12


@pytest.mark.slow
def test_p3_50_memory_does_not_grow_with_the_frames(tmp_path, monkeypatch):
    """Two cars circle for ever. A contact sheet has dropped every other frame of those it kept, and
    so is at its smallest, after frame 47 * 2**k + 1. A byte a frame would be 100 kB in 10^5."""
    monkeypatch.setattr(region_events, "MAX_LISTED_EVENTS", 100)
    regions = {"lines": (parse_line("16,0,16,32"),), "zones": (parse_zone("0,0,16,0,16,32"),)}
    options = OutputOptions(CountingOptions(**regions), video=False)
    source = SimpleNamespace(width=32, height=32, fps=Fraction(30), name="a", path=None)
    first, last, held, clock = 47 * 32 + 1, 47 * 128 + 1, {}, StageClock()
    with (
        Staging(tmp_path / "out.mp4") as staging,
        VideoOutputs(staging, source, {1: "car"}, options) as outputs,
    ):
        tracemalloc.start()
        for number in range(1, last + 1):
            angle = number / 5
            x, y = 12 + 10 * math.cos(angle), 12 + 10 * math.sin(angle)
            cars = np.array([[x, y, x + 6, y + 6, 1, 1, 0.9], [y, x, y + 6, x + 6, 2, 1, 0.8]])
            image = np.zeros((32, 32, 3), np.uint8)
            outputs.take(Frame(image, Fraction(number, 30), number), cars, clock)
            clock.frame_done()
            if number in (first, last):
                gc.collect()
                for _, file in outputs._tracks._streams._files:
                    file.flush()  # lines that wait to be written are some kilobytes, or none
                held[number] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        events = outputs.summary()["regions"]
    assert events["events_total"] > 100
    assert held[last] - held[first] < last - first
