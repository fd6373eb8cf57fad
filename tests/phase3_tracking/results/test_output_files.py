"""Names of results, and which files may be replaced."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import artifacts, paths, recorded_files
from common.cli import UserError
from phase3_tracking.counting.counting import CountingOptions
from phase3_tracking.counting.regions import parse_line
from phase3_tracking.results.output_files import (
    check_may_write,
    files_replaced,
    input_files,
    output_paths,
    result_files,
)
from phase3_tracking.run_options import OutputOptions
from phase3_tracking.video_detector import main
from tests.phase3_tracking.video_files import write_detections, write_video

WITH_LINE = OutputOptions(CountingOptions(lines=(parse_line("0.5,0,0.5,1"),)))
TRACKS = ("mot.txt", "csv", "tracks.json", "coco.json")
ALL = ("mp4", *TRACKS, "events.csv", "heatmap.png", "contact.jpg", "json")


def names(files: list[Path]) -> list[str]:
    return [path.name for path in files]


@pytest.mark.parametrize(
    ("options", "suffixes"),
    [
        (WITH_LINE, ALL),
        (OutputOptions(), [name for name in ALL if name != "events.csv"]),
        (
            OutputOptions(CountingOptions(contact_sheet=False), video=False),
            (*TRACKS, "heatmap.png", "json"),
        ),
        (OutputOptions(CountingOptions(heatmap=False)), ("mp4", *TRACKS, "contact.jpg", "json")),
    ],
)
def test_result_files(options, suffixes):
    assert names(result_files(Path("a.b.mp4"), options)) == [f"a.b.{name}" for name in suffixes]


@pytest.mark.parametrize("name", ["a.avi", "a", "a.mp4.gif"])
def test_p3_31_only_mp4_is_written(name):
    with pytest.raises(UserError, match=r"let --output end in \.mp4"):
        result_files(Path(name), OutputOptions())


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["x/walk.mp4"], ["walk_tracked"]),
        (["walk.mp4", "b/walk.avi"], ["walk_tracked", "walk_tracked_2"]),
        (["walk.mp4"] * 3, ["walk_tracked", "walk_tracked_2", "walk_tracked_3"]),
        (["walk_tracked_x.mp4", "walk.mp4"], ["walk_tracked_x_tracked", "walk_tracked"]),
        (["a.b.mp4", "0"], ["a.b_tracked", "camera_0_tracked"]),
        (["rtsp://u:p@host/1"], ["host_1_tracked"]),
    ],
)
def test_names_of_results_are_those_of_the_inputs_and_differ(texts, expected):
    assert output_paths(texts, Path("out")) == [Path("out") / f"{name}.mp4" for name in expected]
    assert output_paths(texts, None) == [paths.VIDEOS / f"{name}.mp4" for name in expected]


def test_one_file_for_several_inputs_is_refused():
    assert output_paths(["a.mp4"], Path("b.mp4")) == [Path("b.mp4")]
    with pytest.raises(UserError, match=r"b\.mp4: is one video, but there are 2 inputs"):
        output_paths(["a.mp4", "c.mp4"], Path("b.mp4"))


# --- inputs are never replaced ------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*ALL, "partial.mp4", "resume.jsonl"])
@pytest.mark.parametrize("link", ["same", "symlink", "hard link"])
@pytest.mark.parametrize("role", ["video", "detections"])
def test_p3_28_no_output_is_an_input(tmp_path, capsys, suffix, link, role):
    """Also what is beside NAME.mp4 while the run goes on, and in the command as a whole."""
    files = {
        "video": write_video(tmp_path / "in" / "walk.mp4", 3),
        "detections": write_detections(tmp_path / "in" / "det.txt", 3),
    }
    target = tmp_path / f"out.{suffix}"
    if link == "same":
        files[role] = files[role].rename(target)
    elif link == "symlink":
        target.symlink_to(files[role])
    else:
        os.link(files[role], target)
    before = {path: path.read_bytes() for path in files.values()}
    inputs = ("--input", files["video"], "--detections", files["detections"])
    options = ("--output", tmp_path / "out.mp4", "--overwrite", "--line", "0.5,0,0.5,1")
    assert main([*map(str, [*inputs, *options]), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"out.{suffix}: is also an input" in error
    assert {path: path.read_bytes() for path in files.values()} == before
    assert not (set(tmp_path.iterdir()) - {target, tmp_path / "in"})


def test_p3_28_the_sidecar_of_the_model_is_no_output(tmp_path):
    for name in ("best.pth", "best.json"):
        (tmp_path / name).write_text("{}")
    inputs = input_files(["walk.mp4"], [tmp_path / "best.pth"])
    output = tmp_path / "best.mp4"
    with pytest.raises(UserError, match=r"best\.json: is also an input"):
        check_may_write(output, result_files(output, WITH_LINE), inputs, replace=True)


def test_p3_28_the_pictures_of_a_folder_are_no_output(tmp_path):
    cv2.imwrite(str(tmp_path / "a.contact.jpg"), np.zeros((4, 4, 3), np.uint8))
    output = tmp_path / "a.mp4"
    inputs = input_files([str(tmp_path)], [])
    with pytest.raises(UserError, match=r"a\.contact\.jpg: is also an input"):
        check_may_write(output, result_files(output, WITH_LINE), inputs, replace=True)


def test_p3_29_older_results_are_replaced_only_when_asked_to(tmp_path):
    output = tmp_path / "a.mp4"
    files = result_files(output, WITH_LINE)
    for file in files:
        file.touch()
        with pytest.raises(UserError, match=f"{file.name}: exists already"):
            check_may_write(output, files, [], replace=False)
        check_may_write(output, files, [], replace=True)
        file.unlink()
    check_may_write(output, files, [], replace=False)


def test_p3_29_a_stopped_run_is_remembered(tmp_path):
    output = tmp_path / "a.mp4"
    for name in ("a.mp4", "a.resume.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="--overwrite, or --resume to go on with it"):
        check_may_write(output, [output], [], replace=False)


def test_p3_35_what_a_killed_run_has_detected_is_not_thrown_away_unasked(tmp_path):
    """It leaves nothing else; hours of detection, perhaps."""
    output = tmp_path / "a.mp4"
    (tmp_path / "a.resume.jsonl").touch()
    with pytest.raises(UserError) as caught:
        check_may_write(output, [output], [], replace=False)
    assert str(caught.value) == (
        f"{tmp_path / 'a.resume.jsonl'}: is of a run that was stopped – "
        "go on with it by --resume, or begin anew with --overwrite"
    )
    check_may_write(output, [output], [], replace=True)


@pytest.mark.skipif(os.name == "nt", reason="the limit is of the whole path there")
@pytest.mark.parametrize("name", ["a" * 245 + ".mp4", "a" * 300 + ".mp4", "b" * 300 + "/a.mp4"])
def test_a_name_that_is_too_long_is_one_line(tmp_path, capsys, name):
    """The first is short enough itself, but not for all files that are named after it."""
    video = write_video(tmp_path / "in.mp4", 3)
    inputs = ("--input", video, "--detections", write_detections(tmp_path / "det.txt", 3))
    assert main([*map(str, (*inputs, "--output", tmp_path / name)), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("cannot be written (File name too long) – choose another --output\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["det.txt", "in.mp4"]


@pytest.mark.parametrize("suffix", ALL)
def test_p3_30_a_folder_in_the_place_of_a_result(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").mkdir()
    output = tmp_path / "a.mp4"
    with pytest.raises(UserError, match=f"a.{suffix}: is a folder"):
        check_may_write(output, result_files(output, WITH_LINE), [], replace=True)


def test_what_the_new_run_writes_is_not_read_to_know_whose_it_is(tmp_path, monkeypatch):
    """A video may take minutes to read; of the older files only the one that goes is."""
    output = tmp_path / "out.mp4"
    older = [output, tmp_path / "out.csv", tmp_path / "out.heatmap.png"]
    for path in older:
        path.write_text(path.name)
    report = {recorded_files.KEY: recorded_files.record(older)}
    artifacts.write_json(tmp_path / "out.json", report)
    read = []
    monkeypatch.setattr(
        recorded_files, "sha256", lambda path: read.append(path) or artifacts.sha256(path)
    )
    assert files_replaced(output, older[:2], []) == read == older[2:]
