"""A training that is stopped, starved or given the wrong thing: what it says, and what is left."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common import artifacts
from phase1_training import engine, setup_model
from tests.child_processes import obey_permissions
from tests.coco_data import write_shapes
from tests.faults.trainings import assert_refused
from tests.training_runs import (
    TINY,
    checksums,
    equal,
    error_of,
    metrics,
    run_training,
    weights,
)

TWO = ("--epochs", 2)  # of three steps each
RESUME = (*TWO, "--resume")


def assert_whole(folder: Path, epoch: int) -> None:
    """Its checkpoints are those after an epoch, they verify, and nothing is half-written."""
    for name in ("last", "best_model"):
        content = artifacts.load_checkpoint(folder / f"{name}.pth")  # checks the sha256
        assert len(content["history"]) == epoch
        assert all(value.isfinite().all() for value in content["model_state_dict"].values())
    assert not list(folder.glob(".*")), "a temporary file or a lock"


def assert_continues(data: Path, folder: Path, straight: Path) -> None:
    """To the same end as a run that nothing happened to."""
    assert run_training(data, folder, *RESUME) == 0
    assert metrics(folder) == metrics(straight)
    assert equal(weights(folder / "last.pth"), weights(straight / "last.pth"))


def after_an_epoch(change: Callable[[object], None], trainer: object) -> None:
    from phase1_training.engine import Trainer

    start = Trainer.start_epoch

    def started(self, epoch):
        if epoch == 2:
            change(self)
        start(self, epoch)

    Trainer.start_epoch = started  # type: ignore[method-assign]


# --- the output -------------------------------------------------------------------------------


def limit_files(_: object) -> None:
    """From the second epoch on no file may be larger than 50 kB, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def fill_the_disk(at: object) -> None:
    after_an_epoch(limit_files, at)


def test_p1_48_a_disk_that_fills_leaves_the_older_checkpoints(straight, shapes, tmp_path, train):
    status, printed = train(shapes, tmp_path / "run", *TWO, change=fill_the_disk)
    assert_refused(status, printed, "last.pth: cannot be written (File too large) – free some")
    assert_whole(tmp_path / "run", epoch=1)
    assert_continues(shapes, tmp_path / "run", straight)


def test_p1_48_an_output_without_permission_is_refused(older_run, shapes, train):
    before = checksums(older_run)
    older_run.chmod(0o555)
    assert_refused(
        *train(shapes, older_run, *TWO, "--overwrite", change=obey_permissions),
        "run: cannot be written to (Permission denied) – choose another --output",
    )
    older_run.chmod(0o755)
    assert checksums(older_run) == before


# --- the model --------------------------------------------------------------------------------


def test_p1_23_data_of_more_classes_than_the_model_are_refused(shapes, tmp_path, capsys):
    words = ["--num-classes", "2", "--output", str(tmp_path), "--device", "cpu"]
    assert setup_model.main([*words, "--min-size", "64", "--max-size", "96"]) == 0
    capsys.readouterr()
    model = tmp_path / "initial_model.pth"
    rest = [word for word in TINY if word not in ("--architecture", "demo")]
    assert rest[:4] == ["--min-size", "64", "--max-size", "96"]
    options = ["--data-path", shapes, "--output", tmp_path / "run", "--model-path", model]
    from phase1_training import train as script

    assert script.main([*map(str, options), *rest[4:]]) == 2
    assert "initial_model.pth: knows the classes class_1, the data has disc, box" in error_of(
        capsys
    )
    assert not (tmp_path / "run").exists()


# --- signals ----------------------------------------------------------------------------------


def interrupt_twice_in_a_step(step: int) -> None:
    from phase1_training.engine import Trainer

    train_step = Trainer.train_step

    def interrupted(self, batch):
        if self.steps_done == step:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, batch)

    Trainer.train_step = interrupted  # type: ignore[method-assign]


def test_p1_51_a_second_sigint_ends_it_within_the_step(straight, shapes, tmp_path, train):
    status, printed = train(shapes, tmp_path / "run", *TWO, change=interrupt_twice_in_a_step, at=4)
    assert status == 130, printed
    assert printed.splitlines()[-1] == "interrupted"
    assert "Traceback" not in printed
    assert_whole(tmp_path / "run", epoch=1)
    assert_continues(shapes, tmp_path / "run", straight)


# --- checkpoints to continue from -------------------------------------------------------------


class Malicious:
    """Unpickling it would create the file `target`."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-999])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def malicious(path: Path) -> None:
    content = {"model_state_dict": Malicious(path.with_name("executed"))}
    torch.save(content, path)
    path.with_suffix(".json").unlink()


DIFFERS = "last.pth: differs from the sha256 in its .json – go back to the one before it"
NO_CHECKPOINT = "last.pth: not a checkpoint, damaged, or holds code that is never executed"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, DIFFERS),
        (flipped, DIFFERS),
        (lambda path: path.write_bytes(b""), DIFFERS),
        (lambda path: path.write_text("epoch,loss\n"), DIFFERS),
        (malicious, NO_CHECKPOINT),
        (lambda path: shutil.copy(path.with_name("training.json"), path), DIFFERS),
    ],
    ids=["truncated", "flipped bit", "empty", "text", "malicious", "another file"],
)
def test_p1_52_no_damaged_checkpoint_is_continued(older_run, shapes, train, damage, says):
    damage(older_run / "last.pth")
    before = checksums(older_run)
    assert_refused(*train(shapes, older_run, *RESUME), says)
    assert checksums(older_run) == before
    assert not (older_run / "executed").exists()
    artifacts.load_checkpoint(older_run / "last.previous.pth")


def test_p1_52_data_of_another_number_of_classes_continue_nothing(older_run, tmp_path, train):
    data = write_shapes(tmp_path / "data", splits={"train": 5, "val": 2})
    for file in (data / "annotations").iterdir():
        content = artifacts.read_json(file)
        categories = [*content["categories"], {"id": 9, "name": "cone"}]
        artifacts.write_json(file, {**content, "categories": categories})
    before = checksums(older_run)
    assert_refused(*train(data, older_run, *RESUME), "last.pth: was trained with train annotations")
    assert checksums(older_run) == before


# --- while it computes ------------------------------------------------------------------------


def spoil_losses(trainer: object) -> None:
    from phase1_training.engine import Trainer

    forward = Trainer._forward

    def spoilt(self, part):
        found = forward(self, part)
        found.sums["loss_box_reg"] = found.sums["loss_box_reg"] * torch.nan
        return found

    Trainer._forward = spoilt  # type: ignore[method-assign]


def spoil_the_second_epoch(at: object) -> None:
    after_an_epoch(spoil_losses, at)


def test_p1_53_losses_of_nan_end_a_run_whose_last_good_weights_are_kept(shapes, tmp_path, train):
    words = (shapes, tmp_path / "run", "--epochs", 4)
    status, printed = train(*words, change=spoil_the_second_epoch)
    assert_refused(status, printed, "loss_box_reg is not a finite number, 5 steps in a row")
    assert "lower --lr" in printed.splitlines()[-1]
    told = [line for line in printed.splitlines() if "Step skipped. Images: " in line]
    assert len(told) == 5
    assert all(".png" in line for line in told)
    batches = sorted(path.name for path in (tmp_path / "run").glob("bad_batch_*.pth"))
    assert batches[0] == "bad_batch_epoch2_step1.pth"
    for path in batches:
        (tmp_path / "run" / path).unlink()
    state = artifacts.load_checkpoint(tmp_path / "run" / "last.pth")
    assert all(value.isfinite().all() for value in state["model_state_dict"].values())
    assert artifacts.load_checkpoint(tmp_path / "run" / "best_model.pth")


def raise_in_the_second_epoch(message: str) -> None:
    from phase1_training.engine import Trainer

    def failing(self, part):
        raise RuntimeError(message)

    def fail(trainer: object) -> None:
        Trainer._forward = failing  # type: ignore[method-assign]

    after_an_epoch(fail, None)


OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"
FAILURES = {
    "P1-54": (OUT_OF_MEMORY, "one image of 96x64 px: does not fit into the memory of cpu – lower"),
    "P1-56-assert": (
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later",
        "--device cpu: has failed (CUDA error: device-side assert triggered) – continue with",
    ),
    "P1-56-lost": ("CUDA error: unspecified launch failure", "--device cpu: has failed (CUDA"),
}


@pytest.mark.parametrize(("message", "says"), FAILURES.values(), ids=FAILURES)
def test_a_device_that_is_full_or_fails_is_told_and_the_run_goes_on_later(
    straight, shapes, tmp_path, train, message, says
):
    words = (shapes, tmp_path / "run", *TWO)
    status, printed = train(*words, change=raise_in_the_second_epoch, at=message)
    assert_refused(status, printed, says)
    assert_whole(tmp_path / "run", epoch=1)
    assert_continues(shapes, tmp_path / "run", straight)


def test_p1_54_what_is_free_on_a_gpu_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 8 << 30))
    assert engine._free_memory(torch.device("cuda")) == " (1.0 of 8.0 GiB free)"


def kill_a_loader_in_the_second_epoch(at: object) -> None:
    import multiprocessing

    def kill(trainer: object) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    after_an_epoch(kill, at)


@pytest.mark.slow  # the loss of a loader process is looked for every five seconds
def test_p1_55_a_run_whose_loader_was_killed_can_be_resumed(straight, shapes, tmp_path, train):
    words = (shapes, tmp_path / "run", *TWO, "--workers", 1)
    status, printed = train(*words, change=kill_a_loader_in_the_second_epoch)
    assert_refused(status, printed, "--workers 1: a loader process was killed, as the system does")
    assert_whole(tmp_path / "run", epoch=1)
    assert_continues(shapes, tmp_path / "run", straight)


# --- pretrained weights -----------------------------------------------------------------------


def be_offline(hub: Path) -> None:
    import urllib.request
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    urllib.request.urlopen = offline  # type: ignore[assignment]
    torch.hub.urlopen = offline
    torch.hub.set_dir(str(hub))


@pytest.mark.parametrize("content", [None, b"cut short"])
def test_p1_56_weights_that_cannot_be_had_leave_the_older_run(
    older_run, shapes, tmp_path, train, content
):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    file = tmp_path / "hub" / "checkpoints" / f"{name}-907ea3f9.pth"
    file.parent.mkdir(parents=True)
    if content:
        file.write_bytes(content)
    before = checksums(older_run)
    words = (shapes, older_run, *TWO, "--overwrite", "--architecture", name, "--weights", "coco")
    status, printed = train(*words, change=be_offline, at=tmp_path / "hub")
    says = "is damaged: its sha256 is not" if content else f"put {file.name} into {file.parent}, or"
    assert_refused(status, printed, says)
    assert checksums(older_run) == before


def test_p1_49_a_second_run_of_the_same_output_is_refused(older_run, shapes, train):
    before = checksums(older_run)
    assert_refused(*train(shapes, older_run, *TWO), "run: holds another run – choose another")
    assert checksums(older_run) == before
