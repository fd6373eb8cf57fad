"""VideoDetector on single frames, and the command: its results, its refusals, its options."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from common.cli import UserError
from phase3_tracking import explain_tracking, video_detector
from phase3_tracking.video_detector import VideoDetector, main
from tests.phase3_tracking.video_files import (
    SIDE,
    RedSquareModel,
    decoded,
    frame,
    square_left,
    write_detections,
    write_video,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "video"
SCRIPT = "phase3_tracking/video_detector.py"


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "walk.mp4")


def run(*arguments) -> int:
    return main([*map(str, arguments), "--quiet"])


def detector(*options, **more) -> VideoDetector:
    return VideoDetector(RedSquareModel().backend, *options, **more)


def test_detect_frame_gives_category_ids_above_the_threshold():
    detections = detector().detect_frame(frame(3))
    expected = [square_left(3), 20, square_left(3) + SIDE, 20 + SIDE, 0.8, 18]
    np.testing.assert_allclose(detections, [expected], rtol=1e-6)
    assert len(detector(0.2).detect_frame(frame(3))) == 2


@pytest.mark.parametrize(
    ("classes", "kept"), [(["car"], [18]), (["1"], [1]), (["person", "18"], [18, 1])]
)
def test_classes_by_name_or_id(classes, kept):
    detections = detector(0.2, classes=classes).detect_frame(frame(0))
    assert detections[:, 5].tolist() == kept


def test_p3_38_unknown_class_lists_the_known_ones():
    with pytest.raises(UserError, match=r"--classes cat: .*person, car"):
        detector(classes=["cat"])


def test_bad_tracker_parameter():
    with pytest.raises(ValueError, match="min_hits"):
        detector(min_hits=0)


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


def test_classes_of_detections_can_be_named(tmp_path, video):
    """In the report, in tables, and to keep classes by their names."""
    detections = write_detections(tmp_path / "det.txt")
    with detections.open("a") as file:
        file.write("".join(f"{number},-1,60,40,20,20,0.9,7,1\n" for number in range(1, 13)))
    options = ("--class-names", "3=red square, 80=kite", "--tracker", "iou")
    for name, more in (("all", ()), ("some", ("--classes", "red square"))):
        base = ("--input", video, "--detections", detections, "--output", tmp_path / f"{name}.mp4")
        assert run(*base, *options, *more) == 0
    report = json.loads((tmp_path / "all.json").read_text())
    assert report["class_counts"] == {"red square": 1, "class 7": 1}
    assert report["categories"] == {"3": "red square", "7": "class 7"}
    some = json.loads((tmp_path / "some.json").read_text())
    assert some["class_counts"] == {"red square": 1}
    assert ",red square,3," in (tmp_path / "some.csv").read_text()
    tracks = json.loads((tmp_path / "some.tracks.json").read_text())
    assert tracks["frames"][0]["tracks"][0]["class"] == "red square"


def test_max_frames_and_no_video(tmp_path, video):
    detections, output = write_detections(tmp_path / "det.txt"), tmp_path / "out.mp4"
    options = ("--max-frames", 5, "--no-video", "--batch-size", 3)
    assert run("--input", video, "--detections", detections, "--output", output, *options) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["frames_read"], report["frames_written"]) == (5, 0)
    assert (report["truncated"], report["complete"]) == (False, True)
    assert sorted(path.name for path in tmp_path.glob("out.*")) == [
        *("out.coco.json", "out.csv", "out.heatmap.png", "out.json", "out.mot.txt"),
        "out.tracks.json",
    ]


@pytest.mark.parametrize("text", ["", "5,-1,0,0,0,9,1,1\n", "5,-1,0,0,9,9,0.1,1\n"])
def test_p3_39_nothing_to_track_is_a_valid_result(tmp_path, video, text):
    (tmp_path / "det.txt").write_text(text)
    output = tmp_path / "out.mp4"
    assert run("--input", video, "--detections", tmp_path / "det.txt", "--output", output) == 0
    assert (tmp_path / "out.mot.txt").read_bytes() == b""
    assert json.loads((tmp_path / "out.coco.json").read_text()) == []
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["tracks"], report["class_counts"]) == (0, {})
    assert len(decoded(output)) == 12


def test_p3_29_results_are_replaced_only_when_asked_to(tmp_path, video, capsys):
    arguments = ("--input", video, "--detections", write_detections(tmp_path / "det.txt"))
    output = tmp_path / "out.mp4"
    (tmp_path / "out.json").write_text("{}")
    assert run(*arguments, "--output", output) == 2
    assert capsys.readouterr().err.count("exists already") == 1
    assert (tmp_path / "out.json").read_text() == "{}"
    assert not output.exists()
    assert run(*arguments, "--output", output, "--overwrite") == 0
    assert len(decoded(output)) == 12


def test_p3_29_default_output_is_replaced_by_a_run_on_the_same_video_only(
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


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(("--output", "out.avi"), ".mp4", id="p3_31_avi"),
        pytest.param(("--output", "out.gif"), ".mp4", id="p3_31_gif"),
        pytest.param(("--input", "absent.mp4"), "absent.mp4: no such file", id="p3_01"),
        (("--detections", "absent.txt"), "absent.txt: no such file"),
        (("--detections", "walk.mp4"), "walk.mp4: not text"),
        pytest.param(("--classes", "99"), "the classes are: class 3", id="p3_38"),
        pytest.param(("--output", "det.txt/out.mp4"), "out.mp4", id="p3_30_file"),
        pytest.param(("--output", "/proc/1/none/out.mp4"), "out.mp4", id="p3_30_unwritable"),
        (("--resize", "32"), "would not fit the boxes of --detections"),
        (("--smooth", "--latency-mode"), "needs the frames to come"),
        (("--resume",), "--resume: is for files"),
        (("--line", "0,0,900,900", "--start", "99"), "no frame after --start 99"),
        (("--zone", "a:500,500,600,500,600,600"), "--zone a: (500, 500) lies outside of the frame"),
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
        ("--class-names", "person,car"),
        ("--class-names", "1.5=person"),
        ("--class-names", "1="),
        ("--class-names", "1=person,1=car"),
        ("--class-names", "1=person,2=person"),
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "evaluate_tracking.py"),
        (("--detections", "det.txt"), "evaluate_tracking.py"),
        (("--input", "walk.mp4"), "phase4_deployment/export_all.py"),
        (("--input", "walk.mp4", "--model-path", "a.pth"), "export_all.py --model-path a.pth"),
        (("--input", "walk.mp4", "--model-path", "a.onnx"), "-m common.report"),
        (("--input", "0", "--detections", "det.txt"), "-m common.report"),
        (
            ("--input", "walk.mp4", "--detections", "my det.txt"),
            "explain_tracking.py --input walk.mp4 --detections 'my det.txt'",
        ),
    ],
)
def test_the_next_command_has_what_it_needs(video, monkeypatch, arguments, expected):
    monkeypatch.chdir(video.parent)
    told: list[str] = []
    monkeypatch.setattr(
        video_detector, "track_inputs", lambda *passed: told.append(passed[-1]) or 0
    )
    monkeypatch.setattr("phase3_tracking.inputs.sources.demo_video", lambda: "walk.mp4")
    assert run(*arguments) == 0
    assert told[0].startswith("python ")
    assert told[0].endswith(expected)


def test_the_next_command_after_detections_works(tmp_path, video, capsys):
    detections = write_detections(tmp_path / "det.txt")
    base = ("--input", video, "--detections", detections, "--output", tmp_path / "out.mp4")
    assert main([*map(str, base)]) == 0
    last = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("Next:  "))
    assert last[:2] == ["python", "phase3_tracking/explain_tracking.py"]
    assert explain_tracking.main([*last[2:], "--output", str(tmp_path / "explained")]) == 0


# --- videos that are cut short ------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data is not here")
def test_p3_06_a_truncated_video_is_finished_and_told(tmp_path, run_script):
    name = "person-bicycle-car-detection"
    video, detections = DATA / f"{name}.mp4", DATA / f"{name}.det.txt"
    options = ("--no-video", "--output", tmp_path / "out.mp4")
    done = run_script(SCRIPT, "--input", video, "--detections", detections, *options)
    assert done.returncode == 0, done.stderr
    assert "459 of 467 frames readable" in done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["frames_promised"], report["frames_read"]) == (467, 459)
    assert (report["truncated"], report["complete"]) == (True, True)


@pytest.fixture
def cut_video(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 40).read_bytes()  # fast start: the header is first
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 9 // 10])
    return path


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--strict",), 2)])
def test_p3_06_strict_makes_it_a_mistake_and_keeps_the_result(
    tmp_path, cut_video, capsys, options, status
):
    detections, output = write_detections(tmp_path / "det.txt", 40), tmp_path / "out.mp4"
    paths = ("--input", cut_video, "--detections", detections, "--output", output)
    assert run(*paths, *options) == status
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["truncated"] is True
    assert 0 < report["frames_read"] == len(decoded(output)) < 40
    error = capsys.readouterr().err
    assert error.count("\n") == bool(status)
    if status:
        assert f"cut.mp4: {report['frames_read']} of 40 frames readable" in error


def test_strict_leaves_a_whole_video_and_a_chosen_part_alone(tmp_path, video, cut_video):
    detections = write_detections(tmp_path / "det.txt", 40)
    for path, more in ((video, ()), (cut_video, ("--max-frames", 3))):
        output = ("--output", tmp_path / f"{path.stem}.out.mp4")
        assert run("--input", path, "--detections", detections, *output, *more, "--strict") == 0
