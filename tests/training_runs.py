"""Running `train.py` in this process on tiny data, and reading what it left."""

import shutil
from pathlib import Path

import torch

from common import artifacts
from phase1_training import train

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
