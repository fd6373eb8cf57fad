"""Trainings that are killed again and again and come to the result of one that never was."""

from pathlib import Path

import pytest

from common import artifacts
from tests.faults.trainings import draw_nothing
from tests.killing import (
    TIMEOUT_S,
    Moments,
    assert_reported_files_verify,
    duration_of,
    ended_by_itself,
)
from tests.long_runs import times
from tests.training_runs import equal, metrics, start_training, weights


def save_after_every_step(_: object) -> None:
    """Most of the time is then spent on saving."""
    from phase1_training import training_run

    draw_nothing(None)
    training_run.SAVE_INTERVAL_S = 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.fault("P1-51")
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(straight, shapes, tmp_path):
    def start(folder: Path, *more: str):
        words = (shapes, folder, "--epochs", 2, *more)
        printed = folder.with_name(f"{folder.name}.txt")
        return start_training(printed, *words, change=save_after_every_step, at=None)

    moments = Moments(1, duration_of(lambda: start(tmp_path / "whole", "--overwrite")))
    killed = runs = 0
    while killed < times(3, 50):
        runs += 1
        folder, is_finished = tmp_path / f"run {runs}", False
        while not is_finished:
            is_over = killed >= times(3, 50)  # no more kills: it may come to its end
            resume = ["--resume"] if (folder / "last.pth").exists() else []
            is_finished = ended_by_itself(
                start(folder, *resume), TIMEOUT_S if is_over else moments.draw()
            )
            killed += not is_finished
            assert_reported_files_verify(folder)
        assert metrics(folder) == metrics(straight)
        for name in ("last", "best_model", "trained_model"):
            assert equal(weights(folder / f"{name}.pth"), weights(straight / f"{name}.pth")), name
        assert artifacts.read_json(folder / "training.json")["complete"]
