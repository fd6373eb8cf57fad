"""The files of one run beside those of others: older ones, dead ones, and one that goes on."""

import json
import os
import signal
from pathlib import Path

import pytest

from common import recorded_files
from phase3_tracking import video_detector
from phase3_tracking.run_options import OutputOptions
from phase3_tracking.video_jobs import plan_jobs
from tests.phase3_tracking.test_resume import RESULTS, Run
from tests.phase3_tracking.video_files import RedSquareModel, decoded, write_video

FRAMES = 30


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "in" / "walk.mp4", FRAMES)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(monkeypatch, *arguments, model: RedSquareModel | None = None) -> int:
    backend = (model or RedSquareModel()).backend
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: backend)
    return video_detector.main([*map(str, arguments)])


def report_of(folder: Path) -> dict:
    return json.loads((folder / "out.json").read_text(encoding="utf-8"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_no_model_is_loaded_for_an_input_that_does_not_exist(monkeypatch, capsys, out):
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: pytest.fail("loaded"))
    arguments = ("--input", "absent.mp4", "--output", out / "out.mp4")
    assert video_detector.main([*map(str, arguments)]) == 2
    assert capsys.readouterr().err == "error: absent.mp4: no such file – check the path\n"
    assert not out.exists()


# --- the record ---------------------------------------------------------------------------------


def test_the_report_tells_its_own_files_from_others(tmp_path, monkeypatch, video, out):
    assert run(monkeypatch, "--input", video, "--output", out / "out.mp4", "--line", "9,0,9,9") == 0
    report = report_of(out)
    assert set(report["files"]) == RESULTS - {"out.json"}
    assert recorded_files.others(report, out) == []
    (out / "out.csv").write_bytes((out / "out.csv").read_bytes()[:-1] + b"7")
    (out / "out.heatmap.png").unlink()
    assert recorded_files.others(report, out) == ["out.csv", "out.heatmap.png"]


def test_a_job_whose_files_are_gone_is_not_done(tmp_path, monkeypatch, video, out):
    output = out / "out.mp4"
    assert run(monkeypatch, "--input", video, "--output", output) == 0
    (job,) = plan_jobs([str(video)], output, OutputOptions(), video, may_replace=True)
    assert job.is_done
    output.write_bytes(b"another")
    assert not job.is_done


# --- files of an older run ----------------------------------------------------------------------


def test_the_video_of_an_older_run_does_not_stay_beside_new_tracks(monkeypatch, capsys, video, out):
    options = ("--input", video, "--output", out / "out.mp4")
    assert run(monkeypatch, *options, "--line", "9,0,9,9") == 0
    capsys.readouterr()
    assert run(monkeypatch, *options, "--no-video", "--no-heatmap", "--overwrite") == 0
    text = ("out.mot.txt", "out.csv", "out.tracks.json", "out.coco.json", "out.json")
    assert names(out) == set(text)
    gone = "out.mp4, out.events.csv, out.heatmap.png, out.contact.jpg"
    assert capsys.readouterr().out.splitlines()[0] == (
        f"Removed {gone} of the run that this one replaces"
    )


def test_a_run_that_fails_leaves_the_older_one_whole(monkeypatch, video, out):
    options = ("--input", video, "--output", out / "out.mp4")
    assert run(monkeypatch, *options) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}

    def broken(number: int) -> None:
        if number == 20:
            raise RuntimeError("the detector failed")

    model = RedSquareModel(broken)
    assert run(monkeypatch, *options, "--no-video", "--overwrite", model=model) == 1
    (out / "out.resume.jsonl").unlink()  # what was detected is kept
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("edited", [True, False])
def test_a_video_that_no_report_vouches_for_stays_and_is_told(
    monkeypatch, capsys, video, out, edited
):
    """Somebody's own, with or without an older run to the same name."""
    options = ("--input", video, "--output", out / "out.mp4", "--overwrite")
    if edited:
        assert run(monkeypatch, *options) == 0
    out.mkdir(exist_ok=True)
    (out / "out.mp4").write_bytes(b"mine")
    capsys.readouterr()
    assert run(monkeypatch, *options, "--no-video") == 0
    assert (out / "out.mp4").read_bytes() == b"mine"
    assert f"{out / 'out.mp4'} is not of this run: it was there before" in capsys.readouterr().out


def test_the_input_is_never_taken_for_a_file_of_an_older_run(monkeypatch, capsys, video, out):
    """The annotated video of one run as the input of the next, under the same name."""
    annotated = out / "out.mp4"
    assert run(monkeypatch, "--input", video, "--output", annotated) == 0
    before = annotated.read_bytes()
    again = ("--input", annotated, "--output", annotated, "--no-video", "--overwrite")
    capsys.readouterr()
    assert run(monkeypatch, *again) == 0
    assert annotated.read_bytes() == before
    printed = capsys.readouterr().out
    assert "Removed out.contact.jpg of the run" in printed
    assert "is not of this run" not in printed


def test_an_older_report_that_is_damaged_does_not_cost_the_new_run(monkeypatch, video, out):
    out.mkdir()
    (out / "out.json").write_text('{"files": ')
    options = ("--input", video, "--output", out / "out.mp4", "--overwrite", "--no-video")
    assert run(monkeypatch, *options) == 0
    assert report_of(out)["complete"] is True


# --- several processes --------------------------------------------------------------------------


@pytest.mark.fault("C-09")
def test_the_second_of_two_runs_at_once_ends_at_the_start(monkeypatch, capsys, video, out):
    out.mkdir()
    first = Run(out, video, "first", pause_s=0.1)
    first.wait_for(4)
    before = names(out)
    model = RedSquareModel()
    for options in ((), ("--overwrite",), ("--resume",)):
        arguments = ("--input", video, "--output", out / "out.mp4", *options)
        assert run(monkeypatch, *arguments, model=model) == 2
        assert capsys.readouterr().err == (
            f"error: {out / 'out.mp4'}: in use by another run (process {first.process.pid}) – "
            "wait for its end, or choose another --output\n"
        )
    assert model.frames == []
    assert names(out) == before
    assert run(monkeypatch, "--input", video, "--output", out / "out2.mp4", "--no-video") == 0
    assert first.ended()[0] == 0
    assert names(out) > RESULTS
    assert len(decoded(out / "out.mp4")) == FRAMES


def test_the_library_keeps_two_runs_apart_as_well(monkeypatch, video, out):
    """A run inside the other, through the function."""
    from common.cli import UserError
    from phase3_tracking.video_detector import VideoDetector

    found = []

    def told(number: int) -> None:
        if number == 3:
            with pytest.raises(UserError, match="in use by another run") as caught:
                VideoDetector(RedSquareModel().backend).process_video(video, out / "out.mp4")
            found.append(caught)

    report = VideoDetector(RedSquareModel(told).backend).process_video(video, out / "out.mp4")
    assert (len(found), report["complete"]) == (1, True)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_nothing_of_a_killed_run_is_left_after_the_next(video, out):
    out.mkdir()
    killed = Run(out, video, "killed", pause_s=0.1)
    killed.wait_for(10)
    killed.process.send_signal(signal.SIGKILL)
    killed.ended()
    assert names(out) - {"killed.calls"} == {".out.run", "out.partial.mp4", "out.resume.jsonl"}
    again = Run(out, video, "again", "--overwrite", pause_s=0)
    assert again.ended()[0] == 0
    assert names(out) == RESULTS | {"killed.calls", "again.calls"}


def test_one_of_several_that_another_run_has_finished_meanwhile_stays(
    tmp_path, monkeypatch, capsys, out
):
    videos = [write_video(tmp_path / f"{name}.mp4", 3) for name in "ab"]
    report = out / "b_tracked.json"

    def told(number: int) -> None:
        if number == 0 and not report.exists():
            report.write_text('{"of": "another run"}')

    arguments = ("--input", *videos, "--output", out, "--no-video")
    assert run(monkeypatch, *arguments, model=RedSquareModel(told)) == 2
    assert "b_tracked.json: exists already" in capsys.readouterr().err
    assert report.read_text() == '{"of": "another run"}'
    assert (out / "a_tracked.json").exists()
