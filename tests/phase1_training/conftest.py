"""Tiny data and one finished training on it, shared by the tests of the scripts."""

from pathlib import Path

import pytest

from tests.coco_data import write_shapes
from tests.training_runs import run_training


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """COCO-format data of two classes with the ids 3 and 7: 5 images to train on, 2 to validate."""
    return write_shapes(tmp_path_factory.mktemp("train") / "data", splits={"train": 5, "val": 2})


@pytest.fixture(scope="session")
def straight(shapes, tmp_path_factory) -> Path:
    """The folder of a run of two epochs in one go."""
    output = tmp_path_factory.mktemp("straight")
    assert run_training(shapes, output, "--epochs", 2) == 0
    return output
