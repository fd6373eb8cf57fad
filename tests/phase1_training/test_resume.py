"""Stopping a run at any moment and continuing it: the same weights, the same log."""

import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import artifacts, cli, models
from common.models import load_model
from phase1_training import run_files
from tests.coco_data import write_shapes
from tests.training_runs import (
    arguments,
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

CPU = torch.device("cpu")
AVERAGED = ["--epochs", 2, "--ema-decay", 0.9, "--multi-scale", "48,64", "--clip-norm", 5]


def signal_after_step(number: signal.Signals, step: int, *, saved: bool = False) -> None:
    """The process sends itself a signal after a step; `saved`: when that has been saved."""
    from phase1_training import training_run

    after_step = training_run._Session._after_step

    def signalled(session, losses):
        here = session.trainer.steps_done == step
        if here and not saved:
            os.kill(os.getpid(), number)
        if here and saved:
            session.run = replace(session.run, save_every_s=0)
        after_step(session, losses)
        if here and saved:
            os.kill(os.getpid(), number)

    training_run._Session._after_step = signalled


def kill_after_step(step: int) -> None:
    signal_after_step(signal.SIGKILL, step, saved=True)


def killed_in_the_second_epoch(data: Path, output: Path, *more: object) -> None:
    """Ended by SIGKILL after step 5 of 6, two steps into the second epoch."""
    log = output.with_name(f"{output.name}.txt")
    process = start_training(log, data, output, *more, change=kill_after_step, at=5)
    assert ended(process) == -signal.SIGKILL, log.read_text()


@pytest.fixture(scope="module")
def averaged(shapes, tmp_path_factory) -> Path:
    """Two epochs in one go, with every part of the recipe that has a state."""
    output = tmp_path_factory.mktemp("averaged")
    assert run_training(shapes, output, *AVERAGED) == 0
    return output


@pytest.fixture(scope="module")
def killed(shapes, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("killed")
    killed_in_the_second_epoch(shapes, output, *AVERAGED)
    return output


# --- continuing -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.fault("P1-51", "P1-52")
def test_a_run_killed_within_an_epoch_continues_bit_for_bit(
    averaged, killed, shapes, tmp_path, capsys, workers
):
    output = tmp_path / "continued"
    if workers == 0:
        copy_of(killed, output)
    else:
        killed_in_the_second_epoch(shapes, output, *AVERAGED, "--workers", workers)
    assert len(metrics(output)) == 1
    assert run_training(shapes, output, *AVERAGED, "--workers", workers, "--resume") == 0
    assert "Continuing after step 2 of 3 of epoch 2" in capsys.readouterr().out
    for name in ("last", "best_model", "trained_model"):
        assert equal(weights(output / f"{name}.pth"), weights(averaged / f"{name}.pth")), name
    assert (output / "training_log.csv").read_bytes() == (
        averaged / "training_log.csv"
    ).read_bytes()
    assert metrics(output) == metrics(averaged)
    ours, theirs = (artifacts.load_checkpoint(f / "last.pth")["state"] for f in (output, averaged))
    assert same_values(ours["optimizer"]["state"], theirs["optimizer"]["state"])
    assert same_values(ours["ema"], theirs["ema"])
    assert same_values(ours["totals"]["losses"], theirs["totals"]["losses"])


def same_values(first, second) -> bool:
    """Equality of nested containers of tensors."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            same_values(first[k], second[k]) for k in first
        )
    if isinstance(first, (list, tuple)):
        pairs = zip(first, second, strict=True)
        return all(same_values(one, other) for one, other in pairs)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_killed_while_validating_the_epoch_is_not_trained_again(averaged, shapes, tmp_path, capsys):
    from phase1_training import training_run

    output = tmp_path / "run"
    validate, calls = training_run.validate, []

    def stopped_in_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise cli.Terminated
        return validate(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "validate", stopped_in_the_second)
        assert run_training(shapes, output, *AVERAGED) == 143
    capsys.readouterr()
    assert run_training(shapes, output, *AVERAGED, "--resume") == 0
    assert "Continuing after step 3 of 3 of epoch 2" in capsys.readouterr().out
    assert metrics(output) == metrics(averaged)
    assert equal(weights(output / "best_model.pth"), weights(averaged / "best_model.pth"))


@pytest.mark.parametrize("at", range(5))
def test_stopped_between_any_two_files_nothing_is_lost(straight, shapes, tmp_path, monkeypatch, at):
    """last before validation, best, last, (epoch 2) last, ...: an exception in place of each."""
    save, calls = run_files.save, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == at + 1:
            raise cli.Terminated
        save(*args, **kwargs)

    monkeypatch.setattr(run_files, "save", interrupted)
    output = tmp_path / "run"
    assert run_training(shapes, output, "--epochs", 2) == 143
    monkeypatch.setattr(run_files, "save", save)
    resume = ["--resume"] if (output / "last.pth").exists() else []
    assert bool(resume) == (at > 0)
    assert run_training(shapes, output, "--epochs", 2, *resume) == 0
    assert metrics(output) == metrics(straight)
    for name in ("last", "best_model", "trained_model"):
        assert equal(weights(output / f"{name}.pth"), weights(straight / f"{name}.pth")), name


@pytest.mark.fault("P1-52")
def test_a_finished_run_is_continued_by_nothing(straight, shapes, tmp_path):
    output = copy_of(straight, tmp_path / "finished")
    before = checksums(output)
    assert run_training(shapes, output, "--epochs", 2, "--resume") == 0
    assert checksums(output) == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["--lr", 0.5], "learning_rate 0.001, not 0.5"),
        (["--epochs", 3], "epochs 2, not 3"),
        (["--seed", 1], "seed 0, not 1"),
        (["--batch-size", 4], "batch_size 2, not 4"),
        (["--min-size", 80], "min_size 64, not 80"),
        (["--optimizer", "sgd"], "optimizer adamw, not sgd"),
        (["--architecture", "fasterrcnn_resnet50_fpn"], "architecture demo, not fasterrcnn"),
    ],
)
@pytest.mark.fault("P1-52")
def test_resuming_with_other_settings_is_refused(straight, shapes, capsys, change, difference):
    before = checksums(straight)
    assert run_training(shapes, straight, "--epochs", 2, *change, "--resume") == 2
    assert f"last.pth: was trained with {difference}" in error_of(capsys)
    assert checksums(straight) == before


def test_resuming_with_other_data_is_refused(straight, shapes, tmp_path, capsys):
    other = write_shapes(tmp_path / "other", splits={"train": 5, "val": 2}, seed=9)
    assert run_training(other, straight, "--epochs", 2, "--resume") == 2
    assert "was trained with train annotations (sha256)" in error_of(capsys)
    exchanged = copy_of(shapes, tmp_path / "exchanged")
    picture = exchanged / "images" / "train_0.png"
    picture.write_bytes((exchanged / "images" / "train_1.png").read_bytes())
    assert run_training(exchanged, straight, "--epochs", 2, "--resume") == 2
    assert "was trained with pictures (sha256 of pixels)" in error_of(capsys)


def test_with_only_the_previous_checkpoint_left_the_way_back_is_told(
    straight, shapes, tmp_path, capsys
):
    output = copy_of(straight, tmp_path / "run")
    for name in ("last.pth", "last.json"):
        (output / name).unlink()
    assert run_training(shapes, output, "--epochs", 2, "--resume") == 2
    line = error_of(capsys)
    assert "last.pth: no such file – go back to the one before it: rename last.previous.*" in line
    for name in ("last.previous.pth", "last.previous.json"):
        (output / name).rename(output / name.replace(".previous", ""))
    assert run_training(shapes, output, "--epochs", 2, "--resume") == 0
    assert metrics(output) == metrics(straight)


@pytest.mark.fault("P1-52")
def test_resuming_what_is_no_training_is_refused(straight, shapes, tmp_path, capsys):
    assert run_training(shapes, tmp_path / "none", "--epochs", 2, "--resume") == 2
    assert "last.pth: nothing to continue" in error_of(capsys)
    (tmp_path / "foreign").mkdir()
    model = load_model(straight / "last.pth", CPU).model
    models.save_model(
        tmp_path / "foreign" / "last.pth",
        model,
        architecture="demo",
        class_names=["disc", "box"],
        category_ids=[3, 7],
        summary={},
    )
    assert run_training(shapes, tmp_path / "foreign", "--epochs", 2, "--resume") == 2
    assert "last.pth: holds no training to continue" in error_of(capsys)
    (tmp_path / "foreign" / "last.json").unlink()
    (tmp_path / "foreign" / "last.pth").write_bytes((straight / "last.pth").read_bytes()[:-999])
    assert run_training(shapes, tmp_path / "foreign", "--epochs", 2, "--resume") == 2
    assert "last.pth: not a checkpoint, damaged" in error_of(capsys)


# --- being stopped ----------------------------------------------------------------------------


def terminate_after_step(step: int) -> None:
    signal_after_step(signal.SIGTERM, step)


def interrupt_after_step(step: int) -> None:
    signal_after_step(signal.SIGINT, step)


@pytest.mark.parametrize(
    ("change", "status", "workers"),
    [(terminate_after_step, 143, 0), (interrupt_after_step, 130, 1)],
)
@pytest.mark.fault("P1-51")
def test_a_stopped_run_is_saved_and_says_how_to_continue(shapes, tmp_path, change, status, workers):
    output, printed = tmp_path / "a run", tmp_path / "printed.txt"
    more = ["--epochs", 500, "--workers", workers, "--overwrite"]
    process = start_training(printed, shapes, output, *more, change=change, at=2)
    assert ended(process) == status, printed.read_text()
    text = printed.read_text()
    assert "Traceback" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("Stopped. "))
    continued = shlex.split(line.removeprefix("Stopped. Continue with: "))
    words = [word for word in arguments(shapes, output, *more) if word != "--overwrite"]
    assert continued == ["python", "phase1_training/train.py", *words, "--resume"]
    totals = artifacts.load_checkpoint(output / "last.pth")["state"]["totals"]
    assert (totals["epoch"], totals["step"]) == (1, 2)
    assert not list(output.glob(".*"))  # neither a file half written nor a lock
