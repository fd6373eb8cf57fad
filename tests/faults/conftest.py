"""Tiny data and a finished training on it, as in the tests of phase 1."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.trainings import train_elsewhere
from tests.phase1_training.conftest import shapes as shapes
from tests.phase1_training.conftest import straight as straight
from tests.training_runs import copy_of


@pytest.fixture
def older_run(straight, tmp_path) -> Path:
    """The folder of a finished run, to be replaced by none that fails."""
    return copy_of(straight, tmp_path / "run")


@pytest.fixture
def train(tmp_path) -> Callable[..., tuple[int, str]]:
    """`train_elsewhere` that prints into a file of the test's."""
    return partial(train_elsewhere, tmp_path / "printed.txt")
