"""The training step on a GPU: the CPU's losses, real memory that runs out, half precision."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from phase1_training.distributed import Ranks
from phase1_training.engine import Trainer
from phase1_training.recipe import Recipe
from tests.training_batches import SGD, exact_detector, gradients, make_batch, make_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fp32_strict(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def on_gpu(recipe: Recipe = SGD) -> Trainer:
    model = exact_detector(torch.float32).to(CUDA)
    return Trainer(model, recipe, CUDA, 10, ranks=Ranks(0, 1, CUDA), folder=Path())


def relative_difference(first: dict, second: dict) -> float:
    scale = max(float(value.abs().max()) for value in first.values())
    return max(float((first[n].cpu() - second[n].cpu()).abs().max()) for n in first) / scale


@pytest.mark.parametrize("parts", [1, 3])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    whole = gradients(on_gpu(), make_batch(6))
    split = gradients(on_gpu(replace(SGD, accumulate=parts)), make_batch(6))
    assert relative_difference(whole, split) < 1e-3


def test_an_epoch_learns_as_on_the_cpu():
    """The random numbers differ, so the sampled anchors do: the losses are near, not equal."""
    losses = []
    for trainer in (on_gpu(), make_trainer(exact_detector(torch.float32))):
        trainer.train_epoch([make_batch(4).part(0, 4)] * 3)
        losses.append(trainer.finish_epoch().train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_trains(amp):
    trainer = on_gpu(replace(SGD, amp=amp, optimizer="adamw", learning_rate=1e-3))
    for _ in range(3):
        trainer.train_epoch([make_batch(4).pin_memory()] * 10)
    assert trainer.finish_epoch().skipped_steps == 0
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in trainer.parameters)


def test_memory_that_runs_out_is_split_and_the_run_goes_on():
    trainer = on_gpu()
    with trainer.training():
        trainer.train_step(make_batch(1))
        torch.cuda.reset_peak_memory_stats(CUDA)
        trainer.train_step(make_batch(2))
    peak = torch.cuda.max_memory_allocated(CUDA)
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.5 * peak / total, CUDA)
    try:
        with trainer.training():
            trainer.train_step(make_batch(64))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    assert trainer.parts > 1
    assert all(p.isfinite().all() for p in trainer.parameters)
