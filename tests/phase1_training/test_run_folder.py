"""The folder of a run: one run at a time, replaced when that is asked for and not before."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from common import artifacts, cli
from common.cli import UserError
from phase1_training import run_folder, train
from tests.child_processes import CONTEXT
from tests.coco_data import write_shapes
from tests.training_runs import (
    checksums,
    copy_of,
    ended,
    equal,
    error_of,
    metrics,
    run_training,
    start_training,
    weights,
)


@pytest.fixture(scope="module")
def finished(straight, tmp_path_factory) -> Path:
    """A run of its own, should one of these tests replace it against the rules."""
    return copy_of(straight, tmp_path_factory.mktemp("finished") / "run")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


def pause_in_the_examination(folder: Path) -> None:
    """The process says that it has come to the examination of the data, and waits to go on."""
    examine = train._examine_data

    def paused(*arguments):
        (folder / "held").touch()
        wait_for(folder / "go on")
        return examine(*arguments)

    train._examine_data = paused


# --- one run at a time ------------------------------------------------------------------------


@pytest.mark.fault("C-09")
def test_of_two_runs_started_together_one_is_whole_and_one_refused(
    straight, shapes, tmp_path, capsys
):
    output = tmp_path / "run"
    first = start_training(
        *(tmp_path / "printed.txt", shapes, output, "--epochs", 2),
        change=pause_in_the_examination,
        at=tmp_path,
    )
    wait_for(tmp_path / "held")
    before = checksums(output)
    assert list(before) == [".lock"]
    for more in ([], ["--overwrite"], ["--resume"]):
        assert run_training(shapes, output, "--epochs", 2, "--seed", 2, *more) == 2
        assert error_of(capsys) == (
            f"error: {output}: in use by another run (process {first.pid}) – wait for its end, or "
            "choose another --output"
        )
    assert checksums(output) == before
    (tmp_path / "go on").touch()
    assert ended(first) == 0, (tmp_path / "printed.txt").read_text()
    assert metrics(output) == metrics(straight)
    for name in ("last", "best_model", "trained_model"):
        assert equal(weights(output / f"{name}.pth"), weights(straight / f"{name}.pth")), name
    assert sorted(checksums(output)) == sorted(checksums(straight))  # the lock is gone


def test_a_run_that_ends_while_another_starts_is_not_replaced(
    straight, shapes, tmp_path, capsys, monkeypatch
):
    """It was not there at the first look, and no longer holds the folder at the second."""
    output = tmp_path / "run"
    hold = run_folder.hold

    def too_late(*folders):
        copy_of(straight, output)
        return hold(*folders)

    monkeypatch.setattr(run_folder, "hold", too_late)
    assert run_training(shapes, output, "--epochs", 1) == 2
    assert "holds another run" in error_of(capsys)
    assert checksums(output) == checksums(straight)


def hold_with_a_child_and_wait(folder: Path) -> None:
    """As a training does, with a loader process that outlives it."""
    with run_folder.hold(folder):
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        (folder / "held").touch()
        time.sleep(60)


@pytest.mark.fault("C-09")
def test_a_killed_owner_leaves_no_lock_behind(tmp_path):
    owner = CONTEXT.Process(target=hold_with_a_child_and_wait, args=(tmp_path,))
    owner.start()
    wait_for(tmp_path / "held")
    with pytest.raises(UserError, match=rf"in use by another run \(process {owner.pid}\)"):
        run_folder.hold(tmp_path).__enter__()
    os.kill(owner.pid, signal.SIGKILL)
    assert ended(owner) == -signal.SIGKILL
    assert (tmp_path / ".lock").read_text() == f"{owner.pid}\n"
    with run_folder.hold(tmp_path, tmp_path / "." / "new"):
        for folder in (tmp_path, tmp_path / "new"):
            assert (folder / ".lock").read_text() == f"{os.getpid()}\n"
    assert not list(tmp_path.rglob(".lock"))


def count_alone(folder: Path, times: int) -> None:
    """Adds to a number, which is only right if nobody else does so at the same time."""
    done = 0
    while done < times:
        try:
            with run_folder.hold(folder):
                number = int((folder / "number").read_text())
                time.sleep(0.0005)
                (folder / "number").write_text(str(number + 1))
                done += 1
        except UserError as error:
            assert "in use by another run" in str(error)  # noqa: PT017
            time.sleep(0.0001)


def test_the_lock_is_never_held_twice_though_its_file_comes_and_goes(tmp_path):
    (tmp_path / "number").write_text("0")
    counters = [CONTEXT.Process(target=count_alone, args=(tmp_path, 100)) for _ in range(3)]
    for counter in counters:
        counter.start()
    assert [ended(counter) for counter in counters] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "300"


def test_a_disk_without_locks_is_told_and_trained_on(tmp_path, monkeypatch, caplog):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with run_folder.hold(tmp_path):
        assert "cannot be locked" in caplog.text
    assert not list(tmp_path.iterdir())


# --- replacing a run --------------------------------------------------------------------------


@pytest.mark.fault("P1-49")
def test_an_existing_run_is_neither_replaced_nor_touched(finished, shapes, capsys):
    before = checksums(finished)
    assert run_training(shapes, finished, "--epochs", 1) == 2
    line = error_of(capsys)
    assert "holds another run" in line
    assert "--resume or replace it with --overwrite" in line
    assert run_training(shapes, finished, "--epochs", 1, "--resume", "--overwrite") == 2
    assert "contradicts --overwrite" in error_of(capsys)
    assert checksums(finished) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last.previous.pth", "run: holds another run"),
        ("best_model.pth", "best_model.pth: is there already"),
        ("trained_model.pth", "trained_model.pth: is there already"),
    ],
)
def test_whatever_is_left_of_a_run_is_not_replaced(shapes, tmp_path, capsys, name, message):
    output = tmp_path / "run"
    output.mkdir()
    (output / name).write_bytes(b"mine")
    assert run_training(shapes, output, "--epochs", 1) == 2
    assert message in error_of(capsys)
    assert [path.name for path in output.iterdir()] == [name]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--multi-scale", "64,500"], "above the longest side"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--model-path", "none.pth", "--min-size", "64"], "settled by --model-path"),
        (["--data-path", "none"], "no such folder"),
        (["--weights", "coco"], "the demo model has none"),
        (["--trainable-stages", 99], "--trainable-stages 99: "),
        (["--anchor-sizes", "8,16"], "--anchor-sizes: "),
    ],
)
def test_a_mistake_leaves_the_run_to_be_replaced(finished, shapes, capsys, more, message):
    before = checksums(finished)
    assert run_training(shapes, finished, "--epochs", 1, "--overwrite", *more) == 2
    assert message in error_of(capsys)
    assert checksums(finished) == before


def test_a_model_to_start_from_is_not_removed(finished, shapes, capsys):
    before = checksums(finished)
    words = ["--data-path", shapes, "--output", finished, "--overwrite", "--model-path"]
    assert train.main([*map(str, words), str(finished / ".." / "run" / "best_model.pth")]) == 2
    assert "best_model.pth: is removed by --overwrite – choose another" in error_of(capsys)
    assert checksums(finished) == before


def test_damaged_data_leave_the_run_to_be_replaced(finished, tmp_path, capsys):
    data = write_shapes(tmp_path / "data", splits={"train": 4, "val": 1})
    (data / "images" / "train_1.png").write_bytes(b"")
    before = checksums(finished)
    assert run_training(data, finished, "--epochs", 1, "--overwrite") == 2
    assert "train_1.png: " in error_of(capsys)
    assert checksums(finished) == before


def kill_before_the_first_step(_: object) -> None:
    from phase1_training import training_run

    training_run._Session.go_on = lambda session: os.kill(os.getpid(), signal.SIGKILL)


def test_killed_right_after_the_start_nothing_is_left_of_the_replaced_run(
    straight, shapes, tmp_path, capsys
):
    output = copy_of(straight, tmp_path / "run")
    (output / "bad_batch_epoch1_step7.pth").touch()
    (output / "notes.txt").write_text("mine")
    process = start_training(
        *(tmp_path / "printed.txt", shapes, output, "--epochs", 2, "--overwrite"),
        change=kill_before_the_first_step,
        at=None,
    )
    assert ended(process) == -signal.SIGKILL, (tmp_path / "printed.txt").read_text()
    assert set(checksums(output)) == {".lock", "notes.txt"}
    assert run_training(shapes, output, "--epochs", 2, "--resume") == 2
    assert "last.pth: nothing to continue" in error_of(capsys)
    assert run_training(shapes, output, "--epochs", 2) == 0, "nothing is in the way of a new start"
    assert metrics(output) == metrics(straight)


def test_an_overwriting_run_has_no_previous_checkpoint_of_the_replaced_one(
    straight, shapes, tmp_path, monkeypatch
):
    from phase1_training import training_run

    def stopped(*arguments, **keywords):
        raise cli.Terminated

    output = copy_of(straight, tmp_path / "replaced")
    monkeypatch.setattr(training_run, "validate", stopped)  # after the first save
    words = ["--epochs", 1, "--seed", 5]
    assert run_training(shapes, output, *words, "--overwrite") == 143
    assert set(checksums(output)) == {"last.pth", "last.json", "training_batch.png"}
    monkeypatch.undo()
    assert run_training(shapes, output, *words, "--resume") == 0
    assert not equal(weights(output / "last.pth"), weights(straight / "last.pth"))
    assert artifacts.read_json(output / "training.json")["complete"]


def test_what_cannot_be_removed_is_one_line(straight, shapes, tmp_path, capsys):
    output = copy_of(straight, tmp_path / "run")
    (output / "best_model.pth").unlink()
    (output / "best_model.pth").mkdir()
    assert run_training(shapes, output, "--epochs", 1, "--overwrite") == 2
    assert "best_model.pth: cannot be removed" in error_of(capsys)
