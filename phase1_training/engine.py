"""The training loop: recipe, one epoch, and the state a run can be continued from."""

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN

from common import cli
from common.cli import UserError
from common.coco import COCODataset, CocoSplit, collate
from common.fastpath import precision_safe_autocast
from phase1_training.augmentation import train_transform

LOSS_CHECK_STEPS = 10  # reading the losses waits for the GPU, so not at every step
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How a run is optimised. `learning_rate` is reached after `warmup_steps` linear steps."""

    epochs: int
    batch_size: int
    optimizer: str  # "sgd" or "adamw"
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str  # "step" (times gamma every step_size epochs) or "cosine" (to zero)
    step_size: int
    gamma: float
    warmup_steps: int
    amp: str  # "off", "bf16" or "fp16"
    crop_probability: float  # how often a random part of the image is trained on


@dataclass(frozen=True)
class EpochResult:
    """Mean losses over an epoch's images, and what it took."""

    train_loss: float
    losses: dict[str, float]
    images: int
    seconds: float
    learning_rate: float


def build_optimizer(model: FasterRCNN, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )


def learning_rate_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied with at a step (from 0): warm-up, then the schedule."""
    warmup = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
    if recipe.schedule == "cosine":
        progress = step / max(1, recipe.epochs * steps_per_epoch)
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return warmup * recipe.gamma ** (step // steps_per_epoch // recipe.step_size)


def epoch_loader(
    split: CocoSplit,
    model: FasterRCNN,
    recipe: Recipe,
    *,
    workers: int,
    seed: int,
    epoch: int,
    pin_memory: bool,
) -> DataLoader:
    """Shuffled batches of one epoch. Order and augmentation depend on (seed, epoch, workers) only,
    so a continued run sees the batches that an uninterrupted one would have seen. In place of a
    batch that cannot be read comes the text of the error."""
    epoch_seed = (seed * 100_003 + epoch) % 2**63
    torch.manual_seed(epoch_seed)  # augmentation without workers, proposal sampling
    generator = torch.Generator().manual_seed(epoch_seed)
    sizes = (model.transform.min_size[-1], model.transform.max_size)
    transform = train_transform(*sizes, recipe.crop_probability)
    return DataLoader(
        _TrainingImages(split, transform),  # type: ignore[arg-type]
        batch_size=recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=_collate_or_error,
        generator=generator,
        pin_memory=pin_memory,
    )


class _TrainingImages(COCODataset):
    """Hands a UserError over as text: raised in a loader process, it would arrive as a RuntimeError
    with a traceback inside."""

    def __getitem__(self, index: int):
        try:
            return super().__getitem__(index)
        except UserError as error:
            return str(error)


def _collate_or_error(batch: list) -> tuple[tuple, tuple] | str:
    error = next((sample for sample in batch if isinstance(sample, str)), None)
    return error or collate(batch)


class Trainer:
    """A model, its optimizer and its schedule.

    `state_dict` holds what a continued run needs beside the weights and the seed.
    """

    def __init__(
        self, model: FasterRCNN, recipe: Recipe, device: torch.device, steps_per_epoch: int
    ):
        self.model = model.to(memory_format=torch.channels_last)  # what convolutions compute in
        self.recipe = recipe
        self.device = device
        self.optimizer = build_optimizer(model, recipe)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(recipe, step, steps_per_epoch)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])

    def train_epoch(self, loader: DataLoader, label: str) -> EpochResult:
        """One pass over the data.

        Raises:
            UserError: an image cannot be read, or the loss is no longer a finite number.
        """
        self.model.train()
        sums: dict[str, torch.Tensor] = {}
        images_done, started = 0, time.perf_counter()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        with self._autocast():
            for step, batch in enumerate(cli.progress(loader, total=len(loader), label=label)):
                if isinstance(batch, str):
                    raise UserError.__new__(UserError, batch)  # its text is complete
                losses = self._train_step(*batch)
                for name, loss in losses.items():
                    weighted = loss.detach() * len(batch[0])
                    sums[name] = sums[name] + weighted if name in sums else weighted
                images_done += len(batch[0])
                if step % LOSS_CHECK_STEPS == 0 or step == len(loader) - 1:
                    _require_finite(sums, label, step)
        # The last step may have spoilt the weights, and no loss has shown it yet.
        largest = torch.stack([p.detach().abs().max() for p in self.model.parameters()]).max()
        _require_finite({"a weight": largest}, label, step)
        means = {name: value.item() / images_done for name, value in sums.items()}
        seconds = time.perf_counter() - started
        return EpochResult(sum(means.values()), means, images_done, seconds, learning_rate)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.recipe.amp == "off":
            return contextlib.nullcontext()
        return precision_safe_autocast(self.model, AMP_DTYPES[self.recipe.amp], self.device.type)

    def _train_step(self, images: tuple, targets: tuple) -> dict[str, torch.Tensor]:
        inputs = [
            image.to(self.device, non_blocking=True).to(torch.float32) / 255 for image in images
        ]
        truth = [
            {key: target[key].to(self.device, non_blocking=True) for key in ("boxes", "labels")}
            for target in targets
        ]
        losses = self.model(inputs, truth)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(sum(losses.values())).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return losses


def _require_finite(sums: dict[str, torch.Tensor], label: str, step: int) -> None:
    for name, value in sums.items():
        if not math.isfinite(value.item()):
            what = f"{name} is no longer a finite number by step {step + 1}"
            remedy = "lower --lr, raise --warmup-steps, or use --amp off"
            raise UserError(label, what, remedy)
