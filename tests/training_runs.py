"""Running `train.py` on tiny data, in this process or another, and reading what it left."""

import os
import shutil
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from common import artifacts, paths
from phase1_training import train
from tests.child_processes import CONTEXT

TINY = ["--architecture", "demo", "--min-size", "64", "--max-size", "96", "--batch-size", "2"]
TINY += ["--warmup-steps", "1", "--device", "cpu", "--amp", "off"]
CHECKPOINTS = ("best_model", "last", "last.previous", "trained_model")
SPEED = ("seconds", "images_per_s")  # of an epoch's row: depends on the machine


def arguments(data: Path, output: Path, *more: object) -> list[str]:
    words = ["--data-path", data, "--output", output, *TINY]
    if "--workers" not in more:
        words += ["--workers", 0]
    return [str(word) for word in (*words, *more)]


def run_training(data: Path, output: Path, *more: object) -> int:
    return train.main(arguments(data, output, *more))


def start_training(
    printed: Path, data: Path, output: Path, *more: object, change: Callable[..., None], at: object
) -> ForkServerProcess:
    """Starts `train.py` in a process of its own, to be killed or to hold a folder.

    Args:
        printed: file of what it prints, to stdout and stderr.
        change: a function of a module; `change(at)` is called in the process before the training.
    """
    words = arguments(data, output, *more)
    process = CONTEXT.Process(target=_train, args=(printed, words, change, at))
    process.start()
    return process


def _train(printed: Path, words: list[str], change: Callable[..., None], at: object) -> None:
    with open(printed, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [str(paths.ROOT / "phase1_training" / "train.py"), *words]
    change(at)
    raise SystemExit(train.main(words))


def ended(process: ForkServerProcess) -> int:
    """Its exit status, or minus the number of the signal that killed it."""
    process.join(100)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def error_of(capsys) -> str:
    """The one line a person sees."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return artifacts.load_checkpoint(path)["model_state_dict"]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def metrics(output: Path) -> list[dict]:
    """The epochs of training.json without what depends on the machine's speed."""
    epochs = artifacts.read_json(output / "training.json")["epochs"]
    return [{key: value for key, value in row.items() if key not in SPEED} for row in epochs]


def checksums(folder: Path) -> dict[str, str]:
    """sha256 by name of a run's files, without its TensorBoard log and what is known of images."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.name != "image_cache.json"]
    return {path.name: artifacts.sha256(path) for path in files}


def copy_of(run_folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(run_folder, target))  # with the times: they tell a finished run
