"""Runs that are stopped, in child processes, and what --resume makes of them."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phase3_tracking import video_detector
from tests.phase3_tracking.video_files import RedSquareModel, decoded, write_video

ROOT = Path(__file__).resolve().parents[2]
FRAMES, BATCH, PAUSE_S = 30, 3, 0.03
OF_THE_MOMENT = ("command", "created", "fps_end_to_end", "stage_ms")
RESULTS = {
    *("out.mp4", "out.mot.txt", "out.csv", "out.tracks.json", "out.coco.json", "out.events.csv"),
    *("out.heatmap.png", "out.contact.jpg", "out.json"),
}


class Run:
    """The command in a child process, writing to `folder`; see stub_run.py."""

    def __init__(self, folder: Path, video: Path, name: str, *options: object, pause_s=PAUSE_S):
        self.calls = folder / f"{name}.calls"
        self.calls.touch()
        inputs = ("--input", video, "--output", folder / "out.mp4", "--line", "0.4,0,0.4,1")
        command = [self.calls, pause_s, *inputs, "--batch-size", BATCH, "--no-fps", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.phase3_tracking.stub_run", *map(str, command)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def frames(self) -> list[int]:
        """Numbers of the frames it has detected."""
        return [int(line) for line in self.calls.read_text().splitlines()]

    def wait_for(self, frames: int) -> None:
        while len(self.frames) < frames:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


def results(folder: Path) -> dict[str, object]:
    """Every result, without what is of the moment in the report."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.glob("out.*")}
    report = json.loads((folder / "out.json").read_text())
    found["out.json"] = {key: value for key, value in report.items() if key not in OF_THE_MOMENT}
    return found


def kept_frames(folder: Path) -> list[int]:
    """Numbers of the frames whose detections were kept for --resume."""
    lines = (folder / "out.resume.jsonl").read_text().splitlines()[1:]
    return [int(frame) for line in lines if line.endswith("}") for frame in json.loads(line)]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "walk.mp4", FRAMES)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, video):
    folder = tmp_path_factory.mktemp("whole")
    run = Run(folder, video, "whole", pause_s=0)
    assert run.ended()[0] == 0
    assert sorted(run.frames) == list(range(FRAMES))
    found = results(folder)
    assert set(found) == RESULTS  # among them no out.resume.jsonl
    report = found["out.json"]
    assert isinstance(report, dict)
    assert (report["frames_read"], report["frames_written"], report["complete"]) == (30, 30, True)
    assert report["regions"]["events_total"] == 1
    return found


@pytest.mark.parametrize(
    ("number", "status", "seed"),
    [
        pytest.param(signal.SIGINT, 130, 0, id="p3_34_sigint"),
        pytest.param(signal.SIGTERM, 143, 1, id="p3_34_sigterm"),
        *(pytest.param(signal.SIGKILL, -9, seed, id=f"p3_35_sigkill_{seed}") for seed in (2, 3)),
    ],
)
def test_a_resumed_run_has_the_results_of_one_never_stopped(
    tmp_path, video, uninterrupted, number, status, seed
):
    moment = random.Random(seed)
    first = Run(tmp_path, video, "first")
    first.wait_for(moment.randint(BATCH + 1, FRAMES // 2))
    time.sleep(moment.uniform(0, 2 * PAUSE_S))
    first.process.send_signal(number)
    code, out, err = first.ended()
    assert code == status, err
    if number != signal.SIGKILL:
        assert "Go on with: python" in out
        report = json.loads((tmp_path / "out.json").read_text())
        assert (report["complete"], report["truncated"]) == (False, False)
        assert len(decoded(tmp_path / "out.mp4")) == report["frames_written"] < FRAMES
    kept = kept_frames(tmp_path)
    assert kept == list(range(len(kept)))
    assert BATCH <= len(kept) < FRAMES
    if number != signal.SIGKILL:
        assert kept == first.frames  # what was detected is kept
    second = Run(tmp_path, video, "second", "--resume", pause_s=0)
    code, _, err = second.ended()
    assert (code, err) == (0, "")
    assert second.frames == list(range(len(kept), FRAMES))  # none is detected again
    assert results(tmp_path) == uninterrupted


def test_p3_35_what_a_killed_run_has_encoded_can_be_played(tmp_path, video):
    run = Run(tmp_path, video, "killed", pause_s=0.1)
    run.wait_for(25)
    run.process.kill()
    run.ended()
    assert not (tmp_path / "out.mp4").exists()
    assert (tmp_path / "out.partial.mp4").stat().st_size > 0
    again = Run(tmp_path, video, "again", "--overwrite", pause_s=0)
    assert again.ended()[0] == 0
    assert len(decoded(tmp_path / "out.mp4")) == FRAMES
    assert not (tmp_path / "out.partial.mp4").exists()


# --- in this process ----------------------------------------------------------------------------


def run(monkeypatch, model: RedSquareModel, *arguments) -> int:
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: model.backend)
    return video_detector.main([*map(str, arguments), "--quiet"])


def stopping_at(frame: int, file: Path) -> RedSquareModel:
    def told(number: int) -> None:
        if number == frame:
            signal.raise_signal(signal.SIGTERM)

    return RedSquareModel(told, file)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The arguments of a run that was stopped in its fifth batch."""
    video, model = write_video(tmp_path / "walk.mp4", FRAMES), tmp_path / "model.pth"
    model.touch()
    arguments = ("--input", video, "--output", tmp_path / "out.mp4", "--batch-size", BATCH)
    assert run(monkeypatch, stopping_at(13, model), *arguments) == 143
    assert (tmp_path / "out.resume.jsonl").exists()
    return arguments


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (("--confidence", "0.05"), "confidence"),
        (("--classes", "car"), "classes"),
        (("--batch-size", "4"), "batch size"),
        (("--frame-skip", "2"), "frame skip"),
        (("--start", "0.5"), "start"),
        (("--resize", "48"), "resize"),
        (("--fps", "7"), "fps"),
    ],
)
def test_other_settings_are_refused_in_one_line(
    tmp_path, monkeypatch, capsys, stopped, options, setting
):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = RedSquareModel(file=tmp_path / "model.pth")
    assert run(monkeypatch, model, *stopped, *options, "--resume") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"out.resume.jsonl: is of a run with another {setting} –" in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert model.frames == []


@pytest.mark.parametrize(("name", "setting"), [("walk.mp4", "input"), ("model.pth", "model")])
def test_a_changed_file_is_refused(tmp_path, monkeypatch, capsys, stopped, name, setting):
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\0")
    model = RedSquareModel(file=tmp_path / "model.pth")
    assert run(monkeypatch, model, *stopped, "--resume") == 2
    assert f"with another {setting} –" in capsys.readouterr().err


def test_what_does_not_change_detections_may_change(tmp_path, monkeypatch, stopped):
    model = RedSquareModel(file=tmp_path / "model.pth")
    kept = len(kept_frames(tmp_path))
    counting = ("--zone", "0,0,1,0,1,1", "--no-heatmap")
    options = ("--no-video", "--max-age", "7", "--confidence", "0.6", *counting)
    assert run(monkeypatch, model, *stopped, *options, "--resume") == 0
    first = json.loads((tmp_path / "out.json").read_text())
    assert (first["complete"], first["settings"]["max_age"]) == (True, 7)
    assert kept >= 15  # five batches, or what was in work beside the fifth
    assert first["frames_read"] == len(model.frames) + kept == FRAMES


def test_nothing_to_resume_is_told_in_one_line(tmp_path, monkeypatch, capsys, stopped):
    model = RedSquareModel(file=tmp_path / "model.pth")
    assert run(monkeypatch, model, *stopped, "--resume") == 0
    assert not (tmp_path / "out.resume.jsonl").exists()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert run(monkeypatch, model, *stopped, "--resume") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "out.resume.jsonl: no such file: nothing to resume" in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("options", [(), ("--no-video",), ("--smooth",)])
def test_p3_34_a_signal_before_the_first_frame_leaves_a_result(tmp_path, monkeypatch, options):
    """One batch is the least, as a video needs a frame."""
    from phase3_tracking.inputs import sources as inputs

    def opened(*arguments, **more):
        signal.raise_signal(signal.SIGTERM)
        return open_source(*arguments, **more)

    open_source = inputs.open_source
    monkeypatch.setattr(inputs, "open_source", opened)
    paths = ("--input", write_video(tmp_path / "walk.mp4"), "--output", tmp_path / "out.mp4")
    if "--smooth" in options:
        monkeypatch.setattr(inputs, "open_source", OpenedOnce(opened, open_source))
    assert run(monkeypatch, RedSquareModel(), *paths, "--batch-size", 2, *options) == 143
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["complete"], report["frames_read"]) == (False, 2)
    assert "--no-video" in options or len(decoded(tmp_path / "out.mp4")) == 2


class OpenedOnce:
    """Calls the first function first, then the other."""

    def __init__(self, first, then):
        self.functions = iter((first, then))

    def __call__(self, *arguments, **more):
        return next(self.functions)(*arguments, **more)
