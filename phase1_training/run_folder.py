"""The folder of a run: in the hands of one process at a time, and cleared of the run it replaces.

A training that writes into the folder of another one leaves a mixture of both. So the main process
holds a lock on OUTPUT/.lock from before the first file is written to the end of the run. Some
network disks have no locks: there it is for the person to start one run at a time.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common import artifacts
from common.cli import UserError
from common.file_lock import held

if TYPE_CHECKING:
    from phase1_training.run_files import Run

LOCK = ".lock"
# In the order of removal: what --resume would take goes first.
CHECKPOINTS = ("last.pth", "last.previous.pth", "best_model.pth", "trained_model.pth")
METRICS = (
    *("training.json", "training_log.csv", "training_curves.png", "training_batch.png"),
    *("val_predictions.png", "per_class_ap.png", "bad_batch_epoch*_step*.pth"),
    *("evaluation.json", "worst_misses.png"),
)


@contextlib.contextmanager
def hold(*folders: Path) -> Iterator[None]:
    """Keeps other runs out of `folders`, which are made where they are missing.

    Raises:
        UserError: another run holds one of them, or nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        for folder in {folder.resolve(): folder for folder in folders}.values():
            stack.enter_context(held(folder / LOCK, of=folder))
        yield


def refuse_another_run(output: Path) -> None:
    """A run, or a model somebody has put there, is not replaced unasked.

    Raises:
        UserError: there is one in `output`.
    """
    found = [name for name in CHECKPOINTS if (output / name).exists()]
    if not found:
        return
    if found[0].startswith("last"):
        remedy = "choose another --output, continue it with --resume or replace it with --overwrite"
        raise UserError(output, "holds another run", remedy)
    remedy = "choose another --output or replace it with --overwrite"
    raise UserError(output / found[0], "is there already", remedy)


def is_of_launch(output: Path, launches: Sequence[str]) -> bool:
    """Whether last.pth was written under one of these torchrun agents, see `Ranks.launches`: the
    ranks are restarted ones and have to go on with it."""
    beside = artifacts.sidecar(output / "last.pth")
    if not launches or not beside.is_file():
        return False
    return not set(launches).isdisjoint(artifacts.read_json(beside).get("launches") or ())


def is_cleared(file: Path, output: Path) -> bool:
    """Whether `file` is a checkpoint that `clear` removes from `output`."""
    return file.resolve() in [(output / name).resolve() for name in CHECKPOINTS]


def clear(run: "Run") -> None:
    """Removes the checkpoints and metrics of the run that `run` replaces.

    Otherwise a run killed before its first save would leave them to be taken for its own.

    Raises:
        UserError: a file cannot be removed.
    """
    checkpoints = [run.output / name for name in CHECKPOINTS]
    files = [file for path in checkpoints for file in (path, artifacts.sidecar(path))]
    files += [file for name in METRICS for file in run.metrics.glob(name)]
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            what = f"cannot be removed ({error.strerror})"
            raise UserError(file, what, "remove it, or choose another --output") from None
