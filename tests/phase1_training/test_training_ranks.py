"""Several processes that train together: the losses and gradients of one with the whole batch."""

import copy
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import artifacts
from phase1_training.distributed import join
from tests.child_processes import run_ranks
from tests.training_batches import (
    SGD,
    exact_detector,
    gradients,
    make_batch,
    make_trainer,
    small_detector,
)
from tests.training_runs import arguments, metrics, weights

ROOT = Path(__file__).resolve().parents[2]
STEPS = [5, 6, 1, 2]  # images of each step: whole, uneven, and one rank without any


def share(count: int, rank: int, size: int, dtype: torch.dtype = torch.float32):
    """Every size-th image, as the plan deals them out."""
    whole = make_batch(count, dtype=dtype)
    chosen = range(rank, count, size)
    batch = whole.part(0, 0)
    for index in chosen:
        batch = joined(batch, whole.part(index, index + 1))
    return batch


def joined(first, second):
    both = second.part(0, len(second))
    for name in ("images", "boxes", "labels"):
        setattr(both, name, torch.cat([getattr(first, name), getattr(second, name)]))
    for name in ("sizes", "box_counts", "image_ids", "paths", "seeds"):
        setattr(both, name, getattr(first, name) + getattr(second, name))
    return both


def train_together(parts: int, dtype: torch.dtype) -> tuple[list, dict, dict]:
    """Losses and gradients of single steps, then the weights and means after all of them."""
    recipe = replace(SGD, accumulate=parts)
    with join("cpu") as ranks:
        found = []
        for count in STEPS:
            trainer = make_trainer(exact_detector(dtype), recipe, ranks=ranks)
            batch = share(count, ranks.rank, ranks.size, dtype)
            with trainer.training():
                losses, images = trainer._backward_whatever_it_takes(batch)
            ranks.sum_gradients(trainer.parameters)
            assert images == count
            losses = {
                name: float(ranks.sum_(losses.get(name, torch.zeros(())).double()))
                for name in trainer.totals.losses
            }
            made = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
            found.append((losses, {name: value.clone() for name, value in made.items()}))
        trainer = make_trainer(small_detector(frozen_norms=False), recipe, ranks=ranks)
        trainer.train_epoch([share(count, ranks.rank, ranks.size) for count in STEPS])
        result = trainer.finish_epoch()
        assert result.images == sum(STEPS)
        return found, trainer.model.state_dict(), result.losses


@pytest.mark.parametrize(
    ("parts", "dtype", "tolerance"),
    [(1, torch.float32, 1e-5), (1, torch.float64, 1e-12), (2, torch.float64, 1e-12)],
)
def test_two_processes_have_the_losses_and_gradients_of_one(parts, dtype, tolerance):
    alone = [losses_and_gradients(count, dtype) for count in STEPS]
    together = run_ranks(train_together, 2, parts, dtype)
    for found, _, _ in together:
        for (losses, made), (expected_losses, expected) in zip(found, alone, strict=True):
            assert losses == pytest.approx(expected_losses, rel=max(tolerance, 1e-6))
            scale = max(float(value.abs().max()) for value in expected.values())
            for name, value in expected.items():
                assert float((made[name] - value).abs().max()) <= tolerance * scale, name
    (_, first, means), (_, second, other_means) = together
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert means == other_means


def losses_and_gradients(count: int, dtype: torch.dtype):
    trainer = make_trainer(exact_detector(dtype))
    batch = make_batch(count, dtype=dtype)
    made = gradients(trainer, batch)
    with trainer.training():
        losses, _ = trainer._backward_whatever_it_takes(batch)
    return {name: float(loss) for name, loss in losses.items()}, made


def continue_together() -> bool:
    """Whether a run of two halves, the second from a checkpoint of the main rank, is the straight
    one: batch normalisation's statistics differ between the ranks within an epoch."""
    with join("cpu") as ranks:
        batches = [share(count, ranks.rank, ranks.size) for count in (4, 3, 5, 4)]
        straight, first, second = (
            make_trainer(small_detector(frozen_norms=False), ranks=ranks) for _ in range(3)
        )
        with straight.training():
            for batch in batches:
                straight.train_step(batch)
        with first.training():
            for batch in batches[:2]:
                first.train_step(batch)
        saved = {"model": first.model.state_dict(), "state": first.state_dict()}
        ((checkpoint,), _) = ranks.gather([copy.deepcopy(saved)])
        second.model.load_state_dict(checkpoint["model"])
        second.load_state_dict(checkpoint["state"])
        with second.training():
            for batch in batches[2:]:
                second.train_step(batch)
        ours, theirs = second.model.state_dict(), straight.model.state_dict()
        return all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_two_processes_continue_bit_for_bit():
    assert run_ranks(continue_together, 2) == [True, True]


@pytest.mark.slow
def test_torchrun_trains_validates_and_continues(shapes, tmp_path):
    """5 images, 2 per rank: the second step has one image for the first rank and none for the
    other; 2 validation images, one on each."""
    output = tmp_path / "run"
    words = [*arguments(shapes, output, "--epochs", 1), "--multi-scale", "48,64"]
    script = str(ROOT / "phase1_training" / "train.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, script, *words], env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    report = artifacts.read_json(output / "training.json")
    assert report["ranks"] == 2
    assert [row["epoch"] for row in metrics(output)] == [1]
    assert len(re.findall(r"^epoch 1/1: loss", done.stdout, re.MULTILINE)) == 1  # told once
    assert all(value.isfinite().all() for value in weights(output / "best_model.pth").values())
    again = subprocess.run(
        [sys.executable, script, *words, "--resume"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert again.returncode == 2
    assert "was trained with processes 2, not 1" in again.stderr
