"""Trains a pruned checkpoint further, with phase 1's own train.py in a process of its own."""

import subprocess
import sys
import tempfile
from pathlib import Path

from common import paths
from common.cli import UserError, log

TRAIN = paths.ROOT / "phase1_training" / "train.py"
STOP_S = 30.0  # what a training that is told to end may take to save


def finetune(
    checkpoint: Path,
    folder: Path,
    *,
    data_path: Path | None,
    epochs: int,
    learning_rate: float | None,
    keep_zeros: bool,
    device_name: str,
    seed: int,
) -> Path:
    """Trains `checkpoint` with phase 1's recipe and returns the best model of the run.

    Args:
        folder: an empty one for all that the training writes.
        data_path: COCO data set; None for the demo data.
        learning_rate: None for the one train.py chooses.
        keep_zeros: weights that are zero stay zero.

    Raises:
        UserError: the training ended with an error, which is told.
    """
    command = [sys.executable, str(TRAIN), "--model-path", str(checkpoint), "--output", str(folder)]
    command += ["--epochs", str(epochs), "--device", device_name, "--seed", str(seed)]
    if data_path is not None:
        command += ["--data-path", str(data_path)]
    if learning_rate is not None:
        command += ["--lr", str(learning_rate)]
    if keep_zeros:
        command.append("--keep-zeros")
    status, errors = _run(command)
    if status:
        lines = [line for line in errors.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ") if lines else "no message"
        remedy = "mend it, or leave --finetune-epochs out"
        raise UserError("fine-tuning", f"train.py ended with status {status}: {reason}", remedy)
    return folder / paths.BEST_MODEL.name


def _run(command: list[str]) -> tuple[int, str]:
    """Exit status and stderr of a training, whose epochs are told as they end."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("epoch "):
                    log.info("  %s", line.rstrip())
            status = process.wait()
        except BaseException:  # a signal, too: no training goes on without us
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        errors.seek(0)
        return status, errors.read()
