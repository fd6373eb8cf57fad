"""One input through the whole pipeline: which frames, at which times, with which tracks.

How runs are stopped is in test_resume.py.
"""

import json
import time
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from common.cli import UserError
from common.models import Detections
from phase3_tracking import mot_files, pipeline, video_detector
from phase3_tracking.backends import Backend
from phase3_tracking.inputs.source_options import SourceOptions
from phase3_tracking.inputs.video_file import VideoFile
from phase3_tracking.run_options import OutputOptions, RunOptions
from phase3_tracking.video_detector import VideoDetector, main
from tests.phase3_tracking import made_videos
from tests.phase3_tracking.video_files import (
    HEIGHT,
    SIDE,
    WIDTH,
    RedSquareModel,
    decoded,
    frame,
    square_left,
    times_of,
    write_detections,
    write_video,
)

NO_VIDEO = OutputOptions(video=False)
NOTHING = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, int))


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "walk.mp4")


def run(*arguments) -> int:
    return main([*map(str, arguments), "--quiet"])


def blind() -> VideoDetector:
    """Finds nothing, in any picture."""
    backend = Backend(lambda images, _: [NOTHING] * len(images), ("thing",), (1,))
    return VideoDetector(backend)


def tracks_in(path) -> mot_files.MotBoxes:
    return mot_files.read(path, unique_ids=True)


def test_process_video_with_a_model(tmp_path, video):
    model = RedSquareModel()
    output = tmp_path / "result" / "tracked.mp4"
    report = VideoDetector(model.backend, batch_size=5).process_video(video, output)
    assert model.batch_sizes == [5, 5, 2]
    assert model.frames == list(range(12))
    assert report["frames_read"] == report["frames_written"] == report["frames_promised"] == 12
    assert (report["truncated"], report["complete"]) == (False, True)
    assert (report["tracks"], report["class_counts"]) == (1, {"car": 1})
    assert set(report["stage_ms"]) == {"decode", "detect", "track", "draw", "encode"}
    assert report["fps_end_to_end"] > 0
    assert report["schema"] == "video_tracking/1"
    assert list(report["inputs"]) == [str(video)]
    written = json.loads((tmp_path / "result" / "tracked.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report))
    tracks = tracks_in(tmp_path / "result" / "tracked.mot.txt")
    assert tracks.frames.tolist() == list(range(1, 13))
    assert set(tracks.ids.tolist()) == {1}
    assert set(tracks.classes.tolist()) == {18}
    assert np.abs(tracks.boxes_xyxy[:, 0] - [square_left(index) for index in range(12)]).max() <= 1


def test_p3_36_frames_are_annotated_and_keep_rate_number_and_order(tmp_path):
    video = write_video(tmp_path / "walk.mp4", fps=Fraction(30000, 1001))
    options = RunOptions(outputs=OutputOptions(draws_fps=False))  # would hide a small frame
    VideoDetector(RedSquareModel().backend).process_video(video, tmp_path / "tracked.mp4", options)
    frames = decoded(tmp_path / "tracked.mp4")
    with av.open(str(tmp_path / "tracked.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
    assert len(frames) == 12
    for index, annotated in enumerate(frames):
        assert annotated.shape == (HEIGHT, WIDTH, 3)
        center = annotated[32, square_left(index) + SIDE // 2].astype(int)
        assert np.abs(center - frame(index)[32, square_left(index) + SIDE // 2]).max() < 40
        assert np.abs(annotated.astype(int) - frame(index)).max() > 100  # the drawing


def test_ids_start_anew_in_every_video(tmp_path, video):
    detector = VideoDetector(RedSquareModel().backend)
    for name in ("a", "b"):
        detector.process_video(video, tmp_path / f"{name}.mp4", RunOptions(outputs=NO_VIDEO))
        assert set(tracks_in(tmp_path / f"{name}.mot.txt").ids.tolist()) == {1}


def test_p3_28_the_library_does_not_replace_its_input_either(tmp_path, video):
    before = video.read_bytes()
    with pytest.raises(UserError, match=r"walk\.mp4: is also an input"):
        VideoDetector(RedSquareModel().backend).process_video(video, video)
    assert video.read_bytes() == before
    assert list(tmp_path.iterdir()) == [video]


# --- which frames -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (("--frame-skip", "3"), [1, 4, 7, 10]),
        (("--start", "0.4"), [5, 6, 7, 8, 9, 10, 11, 12]),
        (("--end", "0.4"), [1, 2, 3, 4]),
        (("--start", "0.25", "--end", "0.95", "--frame-skip", "2"), [4, 6, 8, 10]),
        (("--start", "0.3", "--max-frames", "2", "--frame-skip", "4"), [4, 8]),
    ],
)
def test_frames_left_out_leave_their_detections_out(tmp_path, video, options, numbers):
    """Frame n of the file of detections is frame n of the video, whichever are read."""
    detections, output = write_detections(tmp_path / "det.txt"), tmp_path / "out.mp4"
    more = ("--min-hits", "1", "--max-age", "0", "--batch-size", "3", "--no-fps")
    inputs = ("--input", video, "--detections", detections)
    assert run(*inputs, "--output", output, *options, *more) == 0
    tracks = tracks_in(tmp_path / "out.mot.txt")
    assert tracks.frames.tolist() == numbers
    lefts = [square_left(number - 1) for number in numbers]
    assert tracks.boxes_xyxy[:, 0].tolist() == lefts
    content = json.loads((tmp_path / "out.tracks.json").read_text())["frames"]
    assert [(one["frame"], one["time_s"]) for one in content] == [
        (number, (number - 1) / 10) for number in numbers
    ]
    for number, left, annotated in zip(numbers, lefts, decoded(output), strict=True):
        inside = annotated[30:40, left + 6 : left + SIDE - 6].astype(int)
        assert np.abs(inside - (30, 60, 220)).mean() < 20, f"frame {number} is another"
    first = times_of(output)[0]
    assert [time_s - first for time_s in times_of(output)] == [
        Fraction(number - numbers[0], 10) for number in numbers
    ]


def test_boxes_of_resized_frames_are_in_their_pixels(tmp_path, video):
    source = SourceOptions(resize=made_resize(48, 32))
    options = RunOptions(source, NO_VIDEO)
    report = VideoDetector(RedSquareModel().backend).process_video(
        video, tmp_path / "out.mp4", options
    )
    assert (report["video"]["width"], report["video"]["height"]) == (48, 32)
    lefts = tracks_in(tmp_path / "out.mot.txt").boxes_xyxy[:, 0]
    assert np.abs(lefts - [square_left(index) / 2 for index in range(12)]).max() <= 1


def made_resize(width: int, height: int):
    from phase3_tracking.inputs.source_options import Resize

    return Resize(width, height)


def test_a_folder_of_pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(11):
        cv2.imwrite(str(folder / f"{index}.png"), frame(index))  # 10.png comes last
    report = VideoDetector(RedSquareModel().backend).process_video(folder, tmp_path / "out.mp4")
    lefts = tracks_in(tmp_path / "out.mot.txt").boxes_xyxy[:, 0].tolist()
    assert lefts == [square_left(index) for index in range(11)]
    assert (report["frames_written"], report["video"]["fps"]) == (11, 10)


# --- times and sound --------------------------------------------------------------------------


def test_p3_15_a_variable_rate_is_kept(tmp_path):
    ms = [0, 40, 80, 200, 233, 800, 811, 1500, 1533, 1566, 2600, 2640]
    path = made_videos.encode(
        tmp_path / "vfr.mkv", 12, fps=25, times=ms, time_base=Fraction(1, 1000)
    )
    report = blind().process_video(path, tmp_path / "out.mp4")
    assert times_of(path) == [Fraction(one, 1000) for one in ms]
    assert times_of(tmp_path / "out.mp4") == times_of(path)  # whole milliseconds are exact
    assert report["frames_written"] == 12
    assert any("variable frame rate" in note for note in report["notes"])
    frames = json.loads((tmp_path / "out.tracks.json").read_text())["frames"]
    assert [one["time_s"] for one in frames] == [one / 1000 for one in ms]


def test_times_of_odd_rates_are_kept_within_a_tick(tmp_path):
    ticks = [0, 1, 2, 5, 6, 13, 14, 30, 31, 32]
    base = Fraction(1001, 24000)
    path = made_videos.encode(tmp_path / "vfr.mp4", 10, fps=24, times=ticks, time_base=base)
    blind().process_video(path, tmp_path / "out.mp4")
    found, expected = times_of(tmp_path / "out.mp4"), times_of(path)
    tick = Fraction(1, 24000)
    for one, other in zip(found, expected, strict=True):
        assert abs((one - found[0]) - (other - expected[0])) <= tick


@pytest.mark.parametrize("options", [{}, {"start_s": Fraction(1)}])
def test_sound_is_kept(tmp_path, options):
    path = made_videos.encode(tmp_path / "a.mp4", 30, audio="aac")
    source = SourceOptions(**options)
    report = blind().process_video(path, tmp_path / "out.mp4", RunOptions(source))
    assert report["video"]["audio"].startswith("aac")
    with av.open(str(tmp_path / "out.mp4")) as container:
        sound = container.streams.audio[0]
        seconds = sum(
            packet.duration * sound.time_base
            for packet in container.demux(sound)
            if packet.duration
        )
    assert float(seconds) == pytest.approx(3 - float(source.start_s), abs=0.1)


def test_without_sound_there_is_none(tmp_path, video):
    report = blind().process_video(video, tmp_path / "out.mp4")
    assert report["video"]["audio"] is None
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio


# --- latency mode and smoothing -----------------------------------------------------------------


def test_latency_mode_drops_what_it_cannot_keep_up_with(tmp_path):
    """20 frames in a second, each of which takes 0.2 s: about five are seen."""
    video = write_video(tmp_path / "fast.mp4", 20, fps=Fraction(20))
    model = RedSquareModel(lambda number: time.sleep(0.2))
    options = RunOptions(SourceOptions(latency_mode=True), NO_VIDEO)
    report = VideoDetector(model.backend).process_video(video, tmp_path / "out.mp4", options)
    assert set(model.batch_sizes) == {1}
    assert report["frames_read"] == len(model.frames)
    assert report["frames_read"] + report["frames_dropped"] == 20
    assert report["frames_dropped"] >= 10
    assert model.frames[-1] == 19  # the newest comes at the end, too
    latency = report["latency_ms"]
    assert 200 <= latency["p50"] <= latency["p90"] <= latency["p99"]
    dropped = f"{report['frames_dropped']} frames were dropped to keep up with the input"
    assert dropped in report["notes"]
    written = (tracks_in(tmp_path / "out.mot.txt").frames - 1).tolist()
    assert set(written) <= set(model.frames)
    assert not list(tmp_path.glob("*.jsonl"))  # other frames would come the next time


@pytest.mark.parametrize(("kib", "size"), [(1 << 20, 4), (130, 1), (280, 3)])
def test_large_frames_come_in_small_batches(tmp_path, video, monkeypatch, capsys, kib, size):
    """A frame of 96x64 has 18 KiB, so 4 batches (one worker) of 1 frame 72 KiB, of 3 frames 216."""
    monkeypatch.setattr(pipeline, "BATCH_BYTES", kib << 10)
    model = RedSquareModel()
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: model.backend)
    command = ["--input", str(video), "--output", str(tmp_path / "out.mp4")]
    assert main(command) == 0
    assert model.batch_sizes == [size] * (12 // size)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["settings"]["batch_size"] == size
    told = f"Batches of {size} frames instead of 4: so many of 96x64 pixels would fill"
    assert (told in capsys.readouterr().out) == (size < 4)


def test_latency_includes_the_conversion_of_the_frame(tmp_path, monkeypatch):
    """The caller converts what it takes: 0.3 s here, on top of 0.2 s for the detector."""
    decoded = VideoFile.pictures

    def slow(self, start_s):
        for picture in decoded(self, start_s):
            load = picture.load
            yield replace(picture, load=lambda load=load: (time.sleep(0.3), load())[1])

    monkeypatch.setattr(VideoFile, "pictures", slow)
    video = write_video(tmp_path / "slow.mp4", 12, fps=Fraction(10))
    model = RedSquareModel(lambda number: time.sleep(0.2))
    options = RunOptions(SourceOptions(latency_mode=True), NO_VIDEO)
    report = VideoDetector(model.backend).process_video(video, tmp_path / "out.mp4", options)
    assert report["latency_ms"]["p50"] >= 500


def test_without_latency_mode_nothing_is_dropped(tmp_path, video):
    report = VideoDetector(RedSquareModel().backend).process_video(video, tmp_path / "out.mp4")
    assert (report["frames_dropped"], report["latency_ms"]) == (0, None)


def test_smoothing_fills_gaps_and_keeps_every_frame(tmp_path, video):
    lines = write_detections(tmp_path / "det.txt").read_text().splitlines(keepends=True)
    (tmp_path / "det.txt").write_text("".join(lines[:5] + lines[7:]))  # unseen in frames 6 and 7
    inputs = ("--input", video, "--detections", tmp_path / "det.txt")
    for name, options, numbers in (
        ("plain", (), [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]),
        ("smooth", ("--smooth",), list(range(1, 13))),
    ):
        output = tmp_path / f"{name}.mp4"
        assert run(*inputs, "--output", output, "--min-hits", "1", *options) == 0
        tracks = tracks_in(tmp_path / f"{name}.mot.txt")
        assert (tracks.frames.tolist(), set(tracks.ids.tolist())) == (numbers, {1})
        assert len(decoded(output)) == 12
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert (report["frames_read"], report["frames_written"]) == (12, 12)
    gap = tracks.boxes_xyxy[5:7, 0]
    assert np.abs(gap - [square_left(5), square_left(6)]).max() < 1.5
