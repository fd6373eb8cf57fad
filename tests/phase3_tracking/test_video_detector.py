"""The whole pipeline on small videos: with recorded detections, with a stub model, interrupted."""

import json
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from common.cli import UserError
from common.models import Detections
from phase3_tracking import mot_files, video_io
from phase3_tracking.recorded_detections import RecordedDetections
from phase3_tracking.video_detector import VideoDetector, main
from tests.phase3_tracking.video_files import (
    HEIGHT,
    SIDE,
    WIDTH,
    frame,
    square_left,
    write_detections,
    write_video,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "video"
SCRIPT = "phase3_tracking/video_detector.py"


class RedSquareModel:
    """Finds the red square by its colour, so it only works on images that really are RGB."""

    class_names, category_ids = ("person", "car"), (1, 18)

    def __init__(self):
        self.batch_sizes = []

    def __call__(self, images):
        self.batch_sizes.append(len(images))
        return [self._find(image) for image in images]

    def _find(self, image):
        rows, columns = np.nonzero((image[..., 0] > 150) & (image[..., 2] < 100))
        square = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes = np.array([square, [0, 0, 5, 5]], np.float32)
        return Detections(boxes, np.array([0.8, 0.3], np.float32), np.array([2, 1]))


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "walk.mp4")


def run(*arguments) -> int:
    return main([*map(str, arguments), "--quiet"])


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        return [image.to_ndarray(format="bgr24") for image in container.decode(stream)]


def test_detect_frame_gives_category_ids_above_the_threshold():
    detections = VideoDetector(RedSquareModel()).detect_frame(frame(3))
    expected = [square_left(3), 20, square_left(3) + SIDE, 20 + SIDE, 0.8, 18]
    np.testing.assert_allclose(detections, [expected], rtol=1e-6)
    assert len(VideoDetector(RedSquareModel(), 0.2).detect_frame(frame(3))) == 2


@pytest.mark.parametrize(
    ("classes", "kept"), [(["car"], [18]), (["1"], [1]), (["person", "18"], [18, 1])]
)
def test_classes_by_name_or_id(classes, kept):
    detections = VideoDetector(RedSquareModel(), 0.2, classes=classes).detect_frame(frame(0))
    assert detections[:, 5].tolist() == kept


def test_unknown_class_lists_the_known_ones():
    with pytest.raises(UserError, match=r"--classes cat: .*person, car"):
        VideoDetector(RedSquareModel(), classes=["cat"])


def test_bad_tracker_parameter():
    with pytest.raises(ValueError, match="min_hits"):
        VideoDetector(RedSquareModel(), min_hits=0)


def test_process_video_with_a_model(tmp_path, video):
    model = RedSquareModel()
    output = tmp_path / "result" / "tracked.mp4"
    report = VideoDetector(model, batch_size=5).process_video(video, output)
    assert model.batch_sizes == [5, 5, 2]
    assert report["frames_read"] == report["frames_written"] == report["frames_promised"] == 12
    assert (report["truncated"], report["complete"]) == (False, True)
    assert (report["tracks"], report["class_counts"]) == (1, {"car": 1})
    assert set(report["stage_ms"]) == {"decode", "detect", "track", "draw", "encode"}
    assert report["fps_end_to_end"] > 0
    assert report["schema"] == "video_tracking/1"
    assert list(report["inputs"]) == [str(video)]
    written = json.loads((tmp_path / "result" / "tracked.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report))
    tracks = mot_files.read(tmp_path / "result" / "tracked.mot.txt", unique_ids=True)
    assert tracks.frames.tolist() == list(range(1, 13))
    assert set(tracks.ids.tolist()) == {1}
    assert set(tracks.classes.tolist()) == {18}
    assert np.abs(tracks.boxes_xyxy[:, 0] - [square_left(index) for index in range(12)]).max() <= 1


def test_frames_are_annotated_and_keep_rate_and_order(tmp_path):
    video = write_video(tmp_path / "walk.mp4", fps=Fraction(30000, 1001))
    VideoDetector(RedSquareModel()).process_video(video, tmp_path / "tracked.mp4")
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
    detector = VideoDetector(RedSquareModel())
    for name in ("a", "b"):
        detector.process_video(video, tmp_path / f"{name}.mp4", write_video=False)
        tracks = mot_files.read(tmp_path / f"{name}.mot.txt", unique_ids=True)
        assert set(tracks.ids.tolist()) == {1}


def test_recorded_detections_answer_in_order(tmp_path):
    path = tmp_path / "det.txt"
    path.write_text("3,-1,0,0,4,4,0.5,9\n1,-1,1,2,3,4,0.25,-1\n")
    recorded = RecordedDetections(path)
    assert recorded.class_names == ("object", "class 9")
    first, second, third, fourth = [*recorded([frame(0)] * 3), *recorded([frame(0)])]
    assert (first.boxes_xyxy.tolist(), first.labels.tolist()) == ([[1, 2, 4, 6]], [1])
    assert len(second.scores) == len(fourth.scores) == 0
    assert (third.scores.tolist(), third.labels.tolist()) == ([0.5], [2])


# --- the command ------------------------------------------------------------------------------


def test_command_with_detections(tmp_path, video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detections = write_detections(tmp_path / "det.txt")
    assert run("--input", "walk.mp4", "--detections", detections, "--output", "tracked.mp4") == 0
    assert len(decoded(tmp_path / "tracked.mp4")) == 12
    report = json.loads((tmp_path / "tracked.json").read_text())
    assert report["class_counts"] == {"class 3": 1}
    assert list(report["inputs"]) == ["walk.mp4", str(detections)]
    first = (tmp_path / "tracked.mot.txt").read_text().splitlines()[0]
    assert first == f"1,1,0.00,20.00,{SIDE}.00,{SIDE}.00,0.9000,3,1"


def test_max_frames_and_no_video(tmp_path, video):
    detections, output = write_detections(tmp_path / "det.txt"), tmp_path / "out.mp4"
    options = ("--max-frames", 5, "--no-video", "--batch-size", 3)
    assert run("--input", video, "--detections", detections, "--output", output, *options) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["frames_read"], report["frames_written"]) == (5, 0)
    assert (report["truncated"], report["complete"]) == (False, True)
    assert not output.exists()


@pytest.mark.parametrize("text", ["", "5,-1,0,0,0,9,1,1\n", "5,-1,0,0,9,9,0.1,1\n"])
def test_nothing_to_track_is_a_valid_result(tmp_path, video, text):
    (tmp_path / "det.txt").write_text(text)
    output = tmp_path / "out.mp4"
    assert run("--input", video, "--detections", tmp_path / "det.txt", "--output", output) == 0
    assert (tmp_path / "out.mot.txt").read_bytes() == b""
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["tracks"], report["class_counts"]) == (0, {})
    assert len(decoded(output)) == 12


def test_results_are_replaced_only_when_asked_to(tmp_path, video, capsys):
    arguments = ("--input", video, "--detections", write_detections(tmp_path / "det.txt"))
    output = tmp_path / "out.mp4"
    (tmp_path / "out.json").write_text("{}")
    assert run(*arguments, "--output", output) == 2
    assert capsys.readouterr().err.count("exists already") == 1
    assert (tmp_path / "out.json").read_text() == "{}"
    assert not output.exists()
    assert run(*arguments, "--output", output, "--overwrite") == 0
    assert len(decoded(output)) == 12


def test_default_output_is_replaced_by_a_run_on_the_same_video_only(
    tmp_path, video, monkeypatch, capsys
):
    monkeypatch.setattr("common.paths.VIDEOS", tmp_path / "videos")
    monkeypatch.setattr("common.paths.ROOT", tmp_path)  # the report shows the path from there
    detections = write_detections(tmp_path / "det.txt")
    for _ in range(2):
        assert run("--input", video, "--detections", detections) == 0
    assert len(decoded(tmp_path / "videos" / "walk_tracked.mp4")) == 12
    other = write_video(tmp_path / "other" / "walk.mp4")
    assert run("--input", other, "--detections", detections) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["same", "symlink", "hard link", "detections"])
def test_an_input_is_never_the_output(tmp_path, video, capsys, link):
    detections = write_detections(tmp_path / "out.mot.txt")
    output = video if link == "same" else tmp_path / "out.mp4"
    if link == "symlink":
        output.symlink_to(video)
    elif link == "hard link":
        os.link(video, output)
    before = video.read_bytes(), detections.read_bytes()
    arguments = ("--input", video, "--detections", detections, "--output", output, "--overwrite")
    assert run(*arguments) == 2
    assert "is also an input" in capsys.readouterr().err
    assert (video.read_bytes(), detections.read_bytes()) == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--output", "out.avi"), ".mp4"),
        (("--output", "out"), ".mp4"),
        (("--input", "absent.mp4"), "absent.mp4: no such file"),
        (("--detections", "absent.txt"), "absent.txt: no such file"),
        (("--detections", "walk.mp4"), "walk.mp4: not text"),
        (("--classes", "99"), "the classes are: class 3"),
        (("--output", "det.txt/out.mp4"), "out.mp4"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    tmp_path, video, monkeypatch, capsys, arguments, reason
):
    write_detections(tmp_path / "det.txt")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    base = ("--input", "walk.mp4", "--detections", "det.txt", "--output", "out.mp4")
    assert run(*base, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert reason in error
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_is_no_video_is_told_in_our_line_only(tmp_path, run_script):
    detections = write_detections(tmp_path / "det.txt")
    done = run_script(SCRIPT, "--input", detections, "--detections", detections)
    assert done.returncode == 2
    assert "det.txt: is damaged or holds no video" in done.stderr
    assert done.stderr.count("\n") == 1  # nothing from OpenCV or FFmpeg beside it


@pytest.mark.parametrize(
    "arguments",
    [
        ("--confidence", "1.5"),
        ("--iou-threshold", "0"),
        ("--max-age", "-1"),
        ("--min-hits", "0"),
        ("--max-frames", "0"),
        ("--batch-size", "0"),
        ("--model-path", "a.pth", "--detections", "b.txt"),
        ("--confidense", "0.5"),
    ],
)
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_the_demo_it_says_how_to_make_it(run_script):
    done = run_script(SCRIPT)
    assert done.returncode == 2
    assert "make_demo_data.py" in done.stderr


# A child whose detector takes its time, so that a signal arrives in the middle of the video.
SLOW_RUN = """
import sys, time
from phase3_tracking import recorded_detections, video_detector
class Slow(recorded_detections.RecordedDetections):
    def __call__(self, images):
        print("frame", flush=True)
        time.sleep(0.2)
        return super().__call__(images)
recorded_detections.RecordedDetections = Slow
sys.exit(video_detector.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_leaves_a_playable_video(tmp_path, number, status):
    video = write_video(tmp_path / "walk.mp4", 30)
    detections, output = write_detections(tmp_path / "det.txt", 30), tmp_path / "out.mp4"
    paths = ["--input", video, "--detections", detections, "--output", output, "--batch-size", 1]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, *map(str, paths)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(3):  # wait until the third frame is in work
        while child.stdout.readline() not in ("frame\n", ""):
            pass
    child.send_signal(number)
    out, err = child.communicate(timeout=120)
    assert child.returncode == status, err
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["complete"] is False
    assert report["truncated"] is False
    assert 3 <= report["frames_written"] < 30
    assert "Stopped after" in out
    frames = decoded(output)
    assert len(frames) == report["frames_written"]
    tracks = mot_files.read(tmp_path / "out.mot.txt", unique_ids=True)
    assert tracks.frames.tolist() == list(range(1, len(frames) + 1))
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("options", [(), ("--no-video",)])
def test_a_signal_before_the_first_frame_leaves_a_playable_video(
    tmp_path, video, monkeypatch, options
):
    class Opened(video_io.VideoReader):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(video_io, "VideoReader", Opened)
    detections, output = write_detections(tmp_path / "det.txt"), tmp_path / "out.mp4"
    paths = ("--input", video, "--detections", detections, "--output", output)
    assert run(*paths, "--batch-size", 2, *options) == 143
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["complete"], report["frames_read"]) == (False, 2)
    assert options or len(decoded(output)) == 2


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data is not here")
def test_a_truncated_video_is_finished_and_told(tmp_path, run_script):
    name = "person-bicycle-car-detection"
    video, detections = DATA / f"{name}.mp4", DATA / f"{name}.det.txt"
    options = ("--no-video", "--output", tmp_path / "out.mp4")
    done = run_script(SCRIPT, "--input", video, "--detections", detections, *options)
    assert done.returncode == 0, done.stderr
    assert "467 frames promised, 459 could be decoded" in done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["frames_promised"], report["frames_read"]) == (467, 459)
    assert (report["truncated"], report["complete"]) == (True, True)
