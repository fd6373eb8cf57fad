"""--smooth: tracked first, then drawn and written with smoothed tracks."""

import json
import signal

import pytest

from phase3_tracking import mot_files
from phase3_tracking.inputs.video_file import VideoFile
from phase3_tracking.run_options import OutputOptions, RunOptions
from phase3_tracking.video_detector import VideoDetector, main
from tests.phase3_tracking.video_files import (
    RedSquareModel,
    decoded,
    square_left,
    write_detections,
    write_video,
)

FRAMES = 12


@pytest.fixture
def run(tmp_path, capsys):
    """Tracks a video whose detections lack frames 5 to 8; the exit status, tracks and report."""
    video = write_video(tmp_path / "walk.mp4", FRAMES)
    detections = write_detections(tmp_path / "walk.det.txt", FRAMES)
    lines = detections.read_text().splitlines(keepends=True)
    detections.write_text("".join(lines[:4] + lines[8:]))

    def run_command(*more: str):
        output = tmp_path / "out.mp4"
        inputs = ["--input", str(video), "--detections", str(detections)]
        status = main([*inputs, "--output", str(output), "--overwrite", "--quiet", *more])
        if status:
            return status, None, capsys.readouterr().err
        tracks = mot_files.read(tmp_path / "out.mot.txt", unique_ids=True)
        return status, tracks, json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))

    return run_command


def test_a_gap_is_filled_where_the_object_was(run, tmp_path):
    tracker = ("--tracker", "iou", "--iou-threshold", "0.1")
    _, online, _ = run(*tracker)
    assert online.frames.tolist() == [1, 2, 3, 4, 9, 10, 11, 12]
    status, tracks, report = run(*tracker, "--smooth")
    assert status == 0
    assert tracks.frames.tolist() == list(range(1, FRAMES + 1))
    assert set(tracks.ids.tolist()) == {1}
    lefts = [square_left(index) for index in range(FRAMES)]
    assert tracks.boxes_xyxy[:, 0].tolist() == pytest.approx(lefts, abs=0.05)
    assert (report["frames_read"], report["frames_written"]) == (FRAMES, FRAMES)
    assert report["settings"]["smooth"] is True
    drawn = decoded(tmp_path / "out.mp4")
    assert len(drawn) == FRAMES
    edge = drawn[5][20:44, square_left(5) - 1 : square_left(5) + 2].astype(int)
    assert abs(edge - [30, 60, 220]).max() > 60  # the outline, in a frame nobody has detected in


def test_a_signal_while_the_smoothed_frames_are_drawn_is_heard(tmp_path):
    shown = []

    class Watcher:
        def show(self, frame_bgr) -> bool:
            shown.append(frame_bgr)
            if len(shown) == 3:
                signal.raise_signal(signal.SIGINT)
            return True

    video = write_video(tmp_path / "walk.mp4", FRAMES)
    options = RunOptions(outputs=OutputOptions(window=Watcher()), smooths=True)
    model = RedSquareModel()
    with pytest.raises(KeyboardInterrupt):
        VideoDetector(model.backend).process_video(video, tmp_path / "out.mp4", options)
    assert model.frames == list(range(FRAMES))  # tracked to the end
    assert len(shown) == len(decoded(tmp_path / "out.mp4")) == 3
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (report["complete"], report["frames_written"]) == (False, 3)


def test_what_is_to_come_must_not_be_needed_live(run):
    status, _, error = run("--smooth", "--latency-mode")
    assert status == 2
    assert error == "error: --smooth: needs the frames to come – leave out --latency-mode\n"


def test_a_live_input_does_not_come_twice(run, monkeypatch, tmp_path):
    monkeypatch.setattr(VideoFile, "live", True)
    status, _, error = run("--smooth")
    assert status == 2
    assert error.endswith(
        "is live, and --smooth has to read its input twice – leave out --smooth\n"
    )
    assert not list(tmp_path.glob("out*"))
    assert run()[0] == 0
