"""rng_state: what was drawn after it is drawn again, also from a file and in another process."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from common import artifacts, paths
from phase1_training.rng import rng_state, set_rng_state


@pytest.fixture(autouse=True)
def _own_generators():
    """Leaves the generators of the other tests where they were."""
    before = rng_state()
    yield
    set_rng_state(before)


def draw() -> list:
    """Of every generator, of every kind of number that leaves another state behind."""
    numbers = [random.random(), random.gauss(0, 1), random.getrandbits(70)]
    numbers += [np.random.rand(), np.random.normal(), np.random.randint(2**40)]  # noqa: NPY002
    numbers += torch.rand(3).tolist() + torch.randn(17).tolist() + torch.randperm(5).tolist()
    for index in range(torch.cuda.device_count()):
        numbers += torch.rand(3, device=f"cuda:{index}").tolist()
    return numbers


# After an odd number of normal draws Python and NumPy hold a second one back.
@pytest.mark.parametrize("draws_before", [0, 1, 2, 7])
def test_the_same_numbers_are_drawn_again(tmp_path, draws_before):
    for _ in range(draws_before):
        draw()
    state = rng_state()
    drawn = draw()
    assert draw() != drawn
    set_rng_state(state)
    assert draw() == drawn
    artifacts.save_checkpoint(
        tmp_path / "last.pth", {"model_state_dict": {}, "rng": state}, {"epoch": 1}
    )
    set_rng_state(artifacts.load_checkpoint(tmp_path / "last.pth")["rng"])
    assert draw() == drawn


def test_drawing_does_not_change_a_state_taken_before():
    state = rng_state()
    drawn = draw()
    draw()
    set_rng_state(state)
    assert draw() == drawn


DRAW_IN_ANOTHER_PROCESS = """
import random, sys
import numpy as np, torch
from pathlib import Path
from common import artifacts
from phase1_training.rng import set_rng_state
set_rng_state(artifacts.load_checkpoint(Path(sys.argv[1]))["rng"])
print([random.gauss(0, 1), float(np.random.normal()), *torch.randn(3).tolist()])
"""


def test_another_process_draws_the_same(tmp_path):
    random.gauss(0, 1)
    np.random.normal()  # noqa: NPY002
    content = {"model_state_dict": {}, "rng": rng_state()}
    artifacts.save_checkpoint(tmp_path / "last.pth", content, {})
    drawn = [random.gauss(0, 1), np.random.normal(), *torch.randn(3).tolist()]  # noqa: NPY002
    done = subprocess.run(
        [sys.executable, "-c", DRAW_IN_ANOTHER_PROCESS, str(tmp_path / "last.pth")],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str([float(number) for number in drawn]), done.stderr


def test_gpus_that_are_gone_are_passed_over():
    state = rng_state()
    state["cuda"] = [*state["cuda"], torch.zeros(16, dtype=torch.uint8)]
    drawn = draw()
    set_rng_state(state)
    assert draw() == drawn
