"""Fleets of videos, with a cluster in this process; on Ray they are in fleet/test_on_ray.py."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from phase3_tracking import track_fleet, video_detector
from phase3_tracking.fleet.dispatch import NoNodeError
from phase3_tracking.fleet.manifest import FILE
from phase3_tracking.fleet.task import track, try_detector
from tests.phase3_tracking.fleet_results import results, rows, same_but_for_the_fleet
from tests.phase3_tracking.video_files import RedSquareModel, write_video

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "phase3_tracking" / "track_fleet.py"


def states(folder: Path) -> dict[str, str]:
    return {row["name"].split("_")[0]: row["state"] for row in rows(folder)}


# --- the command, with tasks in this process --------------------------------------------------


class InThisProcess:
    """In place of RayCluster: a task runs when it is asked for its outcome."""

    def __init__(self, address, cpus, gpus):
        self._orders: dict[int, object] = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def places(self):
        return 2

    def try_detector(self, order):
        outcome = try_detector(order)
        if outcome.error:
            raise track_fleet.UserError("detector", outcome.error, "mend it")
        return outcome.row

    def submit(self, order):
        self._orders[len(self._orders)] = order
        return len(self._orders) - 1

    def finished(self, tasks, timeout_s):
        return [(tasks[0], track(self._orders[tasks[0]]))]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with clips/a.mp4, b.mp4 and c.mp4, and a model that finds squares."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for number, name in enumerate("abc"):
        write_video(tmp_path / "clips" / f"{name}.mp4", 6 + number)
    (tmp_path / "model.pth").write_text("any")
    monkeypatch.setattr(track_fleet, "RayCluster", InThisProcess)
    monkeypatch.setattr(track_fleet, "check_installed", lambda: None)
    monkeypatch.setattr("phase3_tracking.fleet.dispatch.BACKOFF_S", 0.01)
    monkeypatch.setattr("phase3_tracking.fleet.dispatch.TICK_S", 0.01)
    return tmp_path


def run(monkeypatch, *arguments, script=track_fleet) -> tuple[int, RedSquareModel]:
    model = RedSquareModel(file=Path("model.pth"))
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: model.backend)
    inputs = () if "--input" in arguments else ("--input", "clips")
    command = [*inputs, "--model-path", "model.pth", "--no-fps", *arguments]
    return script.main([*map(str, command)]), model


def test_the_results_are_those_of_the_single_process_script(folder, monkeypatch, capsys):
    assert run(monkeypatch, "--output", "out", "--line", "0.4,0,0.4,1")[0] == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "3 of 3 videos are done" in captured.out
    options = ("--output", "alone", "--line", "0.4,0,0.4,1")
    assert run(monkeypatch, *options, script=video_detector)[0] == 0
    assert len(results(Path("out"))) == 3 * 9
    assert same_but_for_the_fleet(Path("out"), Path("alone"))
    assert states(Path("out")) == {"a": "done", "b": "done", "c": "done"}


def test_a_second_run_does_nothing(folder, monkeypatch, capsys):
    run(monkeypatch, "--output", "out")
    before = {path: path.read_bytes() for path in Path("out").iterdir() if FILE in path.name}
    capsys.readouterr()
    status, model = run(monkeypatch, "--output", "out")
    assert (status, model.frames) == (0, [])
    assert "3 videos, 3 of them done already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("change", ["result", "report", "input"])
def test_what_does_not_verify_is_made_again_and_nothing_else(folder, monkeypatch, change):
    run(monkeypatch, "--output", "out")
    whole = results(Path("out"))
    if change == "result":
        Path("out/b_tracked.csv").write_text("mine")
    elif change == "report":
        Path("out/b_tracked.json").unlink()
    else:
        os.utime("clips/b.mp4", (1, 1))
    times = {path: path.stat().st_mtime_ns for path in Path("out").glob("[ac]_*")}
    status, model = run(monkeypatch, "--output", "out")
    assert (status, model.frames) == (0, list(range(7)))
    assert results(Path("out")) == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_bad_video_is_a_row_and_status_2_and_mended_done(folder, monkeypatch, capsys):
    good = Path("clips/b.mp4").read_bytes()
    Path("clips/b.mp4").write_text("no video")
    assert run(monkeypatch, "--output", "out", "--retries", "1")[0] == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: clips/b.mp4: ")
    assert captured.err.count("\n") == 1
    assert "2 of 3 videos are done" in captured.out
    assert states(Path("out")) == {"a": "done", "b": "failed", "c": "done"}
    (failed,) = (row for row in rows(Path("out")) if row["state"] == "failed")
    assert failed["attempts"] == 2
    assert not list(Path("out").glob("b_*"))
    summary = json.loads(Path("out/fleet.json").read_text(encoding="utf-8"))
    assert (summary["done"], summary["failed"], summary["frames"]) == (2, 1, 6 + 8)
    Path("clips/b.mp4").write_bytes(good)
    status, model = run(monkeypatch, "--output", "out")
    assert (status, model.frames) == (0, list(range(7)))


def test_a_stopped_fleet_keeps_what_is_done_and_says_how_to_go_on(folder, monkeypatch, capsys):
    finished = InThisProcess.finished

    def stopped(self, tasks, timeout_s):
        signal.raise_signal(signal.SIGINT)  # while the first video is in work
        return finished(self, tasks, timeout_s)

    monkeypatch.setattr(InThisProcess, "finished", stopped)
    monkeypatch.setattr(sys, "argv", ["track_fleet.py", "--input", "clips", "--overwrite"])
    assert run(monkeypatch, "--output", "out", "--overwrite")[0] == 130
    out = capsys.readouterr().out
    assert "Go on with: python track_fleet.py --input clips\n" in out
    assert states(Path("out")) == {"a": "done", "b": "planned", "c": "planned"}
    assert "2 of 3 videos have not been tracked yet." in Path("out/fleet.html").read_text("utf-8")
    monkeypatch.setattr(InThisProcess, "finished", finished)
    status, model = run(monkeypatch, "--output", "out")
    assert (status, sorted(model.frames)) == (0, sorted([*range(7), *range(8)]))


def test_a_cluster_that_lost_its_nodes_ends_the_run_and_keeps_what_is_done(
    folder, monkeypatch, capsys
):
    orders = track_fleet.run_orders

    def lost(*args):
        yield next(orders(*args))
        raise NoNodeError("Ray", "no node of the cluster had room", "start nodes")

    monkeypatch.setattr(track_fleet, "run_orders", lost)
    monkeypatch.setattr(sys, "argv", ["track_fleet.py", "--input", "clips"])
    assert run(monkeypatch, "--output", "out")[0] == 2
    out, err = capsys.readouterr()
    assert "Stopped: 1 done, 0 failed" in out
    assert "Go on with: python track_fleet.py --input clips\n" in out
    assert err == "error: Ray: no node of the cluster had room – start nodes\n"
    assert states(Path("out")) == {"a": "done", "b": "planned", "c": "planned"}
    assert Path("out/fleet.html").is_file()


def test_a_result_that_the_driver_does_not_see_is_not_done(folder, monkeypatch, capsys):
    """Each node has a disk of its own."""
    finished = InThisProcess.finished

    def elsewhere(self, tasks, timeout_s):
        found = finished(self, tasks, timeout_s)
        for path in Path("out").glob("*_tracked.*"):
            path.unlink()
        return found

    monkeypatch.setattr(InThisProcess, "finished", elsewhere)
    assert run(monkeypatch, "--output", "out")[0] == 2
    error = capsys.readouterr().err
    assert error.count("let all nodes share the disk of --output") == 3


def test_strict_fails_what_is_cut_short_without_a_second_attempt(folder, monkeypatch, capsys):
    whole = write_video(folder / "clips" / "b.mp4", 40).read_bytes()
    Path("clips/b.mp4").write_bytes(whole[: len(whole) * 9 // 10])
    assert run(monkeypatch, "--output", "out", "--strict", "--no-video")[0] == 2
    assert "error: clips/b.mp4: is cut short after " in capsys.readouterr().err
    (failed,) = (row for row in rows(Path("out")) if row["state"] == "failed")
    assert failed["attempts"] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--input", "clips", "more"), "would be the result of clips/a.mp4 and of more/a.mp4"),
        (("--output", "clips"), "holds inputs"),
        (("--input", "clips/x.mp4"), "no such file"),
        (("--classes", "bicycle"), "--classes bicycle: not known"),
        (("--device", "cuda"), "a task is given no GPU"),
        (("--device", "cuda:1", "--gpus-per-task", "1"), "Ray chooses the GPU"),
        (("--start", "5", "--end", "4"), "is not after --start"),
        (("--model-path", "missing.pth"), "missing.pth: no such file"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_leaves_nothing(
    folder, monkeypatch, capsys, arguments, reason
):
    write_video(folder / "more" / "a.mp4", 3)
    before = sorted(folder.rglob("*"))
    output = () if "--output" in arguments else ("--output", "out")
    assert run(monkeypatch, *arguments, *output)[0] == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("amount", ["0", "-1", "1.5", "nan"])
def test_an_amount_that_ray_cannot_give_is_refused(capsys, amount):
    with pytest.raises(SystemExit) as caught:
        track_fleet.main(["--input", "x", f"--cpus-per-task={amount}"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: --cpus-per-task: ")


def test_files_of_others_are_kept_until_they_may_go(folder, monkeypatch, capsys):
    Path("out").mkdir()
    Path("out/b_tracked.csv").write_text("mine")
    assert run(monkeypatch, "--output", "out")[0] == 2
    assert "out/b_tracked.csv: exists already" in capsys.readouterr().err
    assert [path.read_text() for path in Path("out").iterdir()] == ["mine"]
    assert run(monkeypatch, "--output", "out", "--overwrite")[0] == 0


def test_other_options_are_refused_and_overwrite_begins_anew(folder, monkeypatch, capsys):
    run(monkeypatch, "--output", "out")
    assert run(monkeypatch, "--output", "out", "--tracker", "iou")[0] == 2
    assert "is of a fleet with another --tracker" in capsys.readouterr().err
    Path("model.pth").write_text("another")
    assert run(monkeypatch, "--output", "out")[0] == 2
    assert "is of a fleet with another --model-path" in capsys.readouterr().err
    status, model = run(monkeypatch, "--output", "out", "--tracker", "iou", "--overwrite")
    assert (status, len(model.frames)) == (0, 6 + 7 + 8)


def test_two_fleets_do_not_share_a_folder(folder, monkeypatch, capsys):
    with track_fleet.held(Path("out") / track_fleet.LOCK, of=Path("out")):
        assert run(monkeypatch, "--output", "out")[0] == 2
    assert "out: in use by another run" in capsys.readouterr().err


def test_without_ray_it_is_a_line(run_script, tmp_path):
    """A package of that name that cannot be found."""
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text("import sys\nsys.modules['ray'] = None\n")
    done = run_script(SCRIPT, "--input", "x", env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: Ray: is not installed – pip install -r requirements-extras.txt\n"
    )
