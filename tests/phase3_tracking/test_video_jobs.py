"""Several inputs in one call."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from phase3_tracking import run_arguments, video_detector
from phase3_tracking.inputs.source_options import NetworkLimits, source_options
from phase3_tracking.live import display_window
from phase3_tracking.run_options import OutputOptions
from phase3_tracking.video_jobs import plan_jobs
from tests.phase3_tracking.made_videos import encode
from tests.phase3_tracking.video_files import (
    HEIGHT,
    WIDTH,
    RedSquareModel,
    decoded,
    frame,
    write_video,
)
from tests.phase3_tracking.video_servers import Temper, http_server

FAST = NetworkLimits(connect_s=2.0, read_s=1.0, reconnects=1, backoff_s=0.02)


def run(monkeypatch, *arguments, model: RedSquareModel | None = None) -> int:
    backend = (model or RedSquareModel()).backend
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: backend)
    return video_detector.main([*map(str, arguments)])


def report(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_input_has_results_of_its_own(tmp_path, monkeypatch, capsys):
    """Two with the same stem, of different lengths."""
    lengths = {"a": 3, "b": 5}
    videos = [write_video(tmp_path / name / "walk.mp4", count) for name, count in lengths.items()]
    out = tmp_path / "out"
    assert run(monkeypatch, "--input", *videos, "--output", out) == 0
    for name, count in (("walk_tracked", 3), ("walk_tracked_2", 5)):
        assert len(decoded(out / f"{name}.mp4")) == count
        assert report(out / f"{name}.json")["frames_read"] == count
        first = (out / f"{name}.mot.txt").read_text().splitlines()[0]
        assert first.startswith("1,1,")  # ids begin anew
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("Saved ") == 2 * 8


def test_a_bad_input_does_not_keep_the_others_from_their_turn(tmp_path, monkeypatch, capsys):
    good = [write_video(tmp_path / f"{name}.mp4", 3) for name in "ac"]
    (tmp_path / "b.mp4").write_text("no video")
    (tmp_path / "d.mp4").touch()
    out = tmp_path / "out"
    status = run(
        *(monkeypatch, "--input", good[0], tmp_path / "b.mp4", good[1], tmp_path / "d.mp4"),
        *("--output", out),
    )
    assert status == 2
    captured = capsys.readouterr()
    for line, name in zip(captured.err.splitlines(), ("b.mp4", "d.mp4"), strict=True):
        assert line.startswith(f"error: {tmp_path / name}: ")
    assert sorted(path.name for path in out.glob("*.mp4")) == ["a_tracked.mp4", "c_tracked.mp4"]
    assert not list(out.glob("b_*"))
    assert "b_tracked" not in captured.out
    assert captured.out.count("Saved ") == 2 * 8


def test_strict_counts_as_one_failure_of_several(tmp_path, monkeypatch, capsys):
    whole = write_video(tmp_path / "whole.mp4", 40)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 9 // 10])
    out = tmp_path / "out"
    assert run(monkeypatch, "--input", cut, whole, "--output", out, "--strict", "--no-video") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "cut.mp4: " in captured.err
    assert report(out / "whole_tracked.json")["frames_read"] == 40
    assert report(out / "cut_tracked.json")["truncated"] is True


def test_strict_tells_of_a_lost_stream_without_its_password(tmp_path, monkeypatch, capsys):
    """Half of a stream, and then nobody answers."""
    monkeypatch.setattr(
        run_arguments, "source_options", lambda args: replace(source_options(args), network=FAST)
    )
    images = [frame(index) for index in range(30)]
    options = {"g": "5"}
    content = encode(tmp_path / "a.ts", images=images, size=(WIDTH, HEIGHT), options=options)
    content = content.read_bytes()
    half = len(content) // 2 // 188 * 188
    with http_server(Temper(content, seekable=False, breaks=[half], refuses_after=1)) as url:
        url = url.replace("//", "//user:hidden@")
        options = ("--output", tmp_path / "out.mp4", "--no-video", "--strict")
        assert run(monkeypatch, "--input", url, *options) == 2
    count = report(tmp_path / "out.json")["frames_decoded"]
    captured = capsys.readouterr()
    place = url.replace("user:hidden@", "")
    assert captured.err == (
        f"error: {place}: ended after {count} frames – replace it, or leave out --strict\n"
    )
    assert f"{place} is cut short: ended after {count} frames" in captured.out
    assert "hidden" not in captured.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--output", "one.mp4"), "is one video, but there are 2 inputs"),
        (("--detections", "det.txt"), "is of one video, not of 2"),
    ],
)
def test_what_fits_one_input_only(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "det.txt").touch()
    videos = [write_video(tmp_path / f"{name}.mp4", 3) for name in "ab"]
    before = sorted(tmp_path.iterdir())
    assert run(monkeypatch, "--input", *videos, *arguments) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_p3_28_the_result_of_one_is_not_another_input(tmp_path, monkeypatch, capsys):
    """`*.mp4` in the folder of earlier results."""
    videos = [write_video(tmp_path / name, 3) for name in ("a.mp4", "a_tracked.mp4")]
    before = [video.read_bytes() for video in videos]
    options = ("--output", tmp_path, "--overwrite")
    assert run(monkeypatch, "--input", *videos, *options) == 2
    assert "a_tracked.mp4: is also an input" in capsys.readouterr().err
    assert [video.read_bytes() for video in videos] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a_tracked.mp4"]


def test_p3_29_one_older_result_stops_all_before_anything_is_done(tmp_path, monkeypatch, capsys):
    videos = [write_video(tmp_path / f"{name}.mp4", 3) for name in "ab"]
    out = tmp_path / "out"
    out.mkdir()
    (out / "b_tracked.csv").write_text("mine")
    model = RedSquareModel()
    assert run(monkeypatch, "--input", *videos, "--output", out, model=model) == 2
    assert "b_tracked.csv: exists already" in capsys.readouterr().err
    assert [path.read_text() for path in out.iterdir()] == ["mine"]
    assert model.frames == []


def test_a_closed_window_ends_all(tmp_path, monkeypatch, capsys):
    """As q does: what was seen is kept, the next input does not begin, and a hint says how to."""

    class Closed:
        def __init__(self, title):
            assert "secret" not in title

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def show(self, frame_bgr) -> bool:
            return False

    monkeypatch.setattr(display_window, "DisplayWindow", Closed)
    videos = [write_video(tmp_path / f"{name}.mp4", 12) for name in "ab"]
    out = tmp_path / "out"
    assert run(monkeypatch, "--input", *videos, "--output", out, "--show", "--batch-size", 1) == 0
    assert "Go on with: " in capsys.readouterr().out
    content = report(out / "a_tracked.json")
    assert (content["complete"], content["frames_written"]) == (False, 1)
    assert not list(out.glob("b*"))


def test_resume_goes_on_with_the_one_that_was_stopped(tmp_path, monkeypatch, capsys):
    """The first is done, the second in work, the third has not begun."""
    videos = [write_video(tmp_path / f"{name}.mp4", 12) for name in "abc"]
    out, options = tmp_path / "out", ("--batch-size", 1)
    count = iter(range(99))

    def told(number: int) -> None:
        if next(count) == 14:  # the third of the second video
            signal.raise_signal(signal.SIGINT)

    paths = ("--input", *videos, "--output", out, *options)
    assert run(monkeypatch, *paths, model=RedSquareModel(told)) == 130
    lines = capsys.readouterr().out.splitlines()
    saved = [line.removeprefix("Saved ") for line in lines if line.startswith("Saved ")]
    assert sorted(saved) == sorted(str(path) for path in out.iterdir())
    assert len(saved) == 8 + 8 + 1
    assert lines[-1].startswith("Go on with: ")
    assert [path.name for path in out.glob("*.jsonl")] == ["b_tracked.resume.jsonl"]
    first = (out / "a_tracked.json").read_bytes()
    stopped_after = report(out / "b_tracked.json")["frames_read"]
    model = RedSquareModel()
    assert run(monkeypatch, *paths, "--resume", model=model) == 0
    assert "a.mp4 is done already" in capsys.readouterr().out
    assert (out / "a_tracked.json").read_bytes() == first
    assert 3 <= stopped_after < 12
    assert model.frames == [*range(stopped_after, 12), *range(12)]
    for name in "bc":
        assert report(out / f"{name}_tracked.json")["complete"] is True
        assert len(decoded(out / f"{name}_tracked.mp4")) == 12
    assert not list(out.glob("*.jsonl"))


def test_p3_34_an_older_result_is_not_told_as_saved_by_a_run_that_left_none(
    tmp_path, monkeypatch, capsys
):
    options = ("--input", write_video(tmp_path / "a.mp4", 3), "--output", tmp_path / "out.mp4")
    assert run(monkeypatch, *options) == 0
    assert capsys.readouterr().out.count("Saved ") == 8

    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("phase3_tracking.inputs.sources.open_source", interrupted)
    assert run(monkeypatch, *options, "--overwrite") == 130
    assert "Saved " not in capsys.readouterr().out


def test_a_job_is_done_when_its_own_input_was_gone_through(tmp_path, monkeypatch):
    video, other = (write_video(tmp_path / f"{name}.mp4", 3) for name in "ab")
    (job,) = plan_jobs([str(video)], tmp_path / "out.mp4", OutputOptions(), video, may_replace=True)
    assert not job.is_done
    assert run(monkeypatch, "--input", other, "--output", tmp_path / "out.mp4") == 0
    assert not job.is_done
    assert run(monkeypatch, "--input", video, "--output", tmp_path / "out.mp4", "--overwrite") == 0
    assert job.is_done
    content = report(tmp_path / "out.json") | {"complete": False}
    (tmp_path / "out.json").write_text(json.dumps(content))
    assert not job.is_done


def test_a_folder_of_pictures_is_known_again(tmp_path, monkeypatch):
    pictures, out = tmp_path / "pictures", tmp_path / "out.mp4"
    pictures.mkdir()
    for number in range(3):
        cv2.imwrite(str(pictures / f"{number}.png"), frame(number))
    (job,) = plan_jobs([str(pictures)], out, OutputOptions(), tmp_path / "m", may_replace=True)
    assert not job.is_done
    assert run(monkeypatch, "--input", pictures, "--output", out) == 0
    assert job.is_done
