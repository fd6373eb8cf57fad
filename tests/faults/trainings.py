"""Trainings in processes of their own, and how one that is refused has to end."""

from collections.abc import Callable
from pathlib import Path

from tests.training_runs import ended, start_training


def draw_nothing(_: object) -> None:
    """The process trains without its pictures, which take most of the time here."""
    from phase1_training import run_files, training_run

    session = training_run._Session
    session._with_picture = lambda self, batches: batches
    session._tell = lambda self, report, row, val: run_files.write_metrics(self.run, report)


def train_elsewhere(
    printed: Path,
    data: Path,
    output: Path,
    *more: object,
    change: Callable[..., None] = draw_nothing,
    at: object = None,
) -> tuple[int, str]:
    """Trains in another process; returns its status (minus the number of the signal that ended it)
    and what it printed.

    Args:
        printed: a file for what it prints.
        change: a function of a module; `change(at)` is called in the process before the training.
    """
    status = ended(start_training(printed, data, output, *more, change=change, at=at))
    return status, printed.read_text(encoding="utf-8")


def assert_refused(status: int, printed: str, says: str) -> None:
    """One line at the end that says it, no traceback, and no signal that ended the process."""
    assert status == 2, printed
    lines = printed.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], printed
    assert says in lines[-1]
    assert "Traceback" not in printed
