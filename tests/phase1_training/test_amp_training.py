"""Training in half precision is as good as in FP32: the difference is within that of the seeds."""

from dataclasses import replace

import numpy as np
import torch

from tests.training_batches import SGD, make_batch, make_trainer, small_detector

SEEDS = range(4)
STEPS = 24


def loss_curve(amp: str, seed: int) -> np.ndarray:
    """The total loss of every step on pictures and initial weights of the seed."""
    torch.manual_seed(seed)
    model = small_detector(frozen_norms=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    trainer = make_trainer(model, replace(SGD, amp=amp, optimizer="adamw", learning_rate=1e-3))
    batches = [make_batch(4, seed=seed, first=4 * k) for k in range(4)]
    with trainer.training():
        return np.array(
            [
                float(sum(trainer.train_step(batches[step % len(batches)]).values()))
                for step in range(STEPS)
            ]
        )


def test_the_loss_curve_stays_within_the_spread_of_the_seeds():
    exact = np.stack([loss_curve("off", seed) for seed in SEEDS])
    half = np.stack([loss_curve("bf16", seed) for seed in SEEDS])
    thirds = np.s_[:, : STEPS // 3 * 3]
    exact, half = (curve[thirds].reshape(len(SEEDS), 3, -1).mean(axis=2) for curve in (exact, half))
    assert (exact[:, 2] < 0.8 * exact[:, 0]).all()  # it learns
    spread = exact.std(axis=0, ddof=1)
    assert (np.abs(half.mean(axis=0) - exact.mean(axis=0)) < 2 * spread).all(), (exact, half)
