"""The training loop that torchvision's detection references make, as a baseline.

https://github.com/pytorch/vision/tree/main/references/detection: float images of their own sizes
in a list, the model's own input transform, whole-model autocast with --amp, every loss read at
every step. Written anew, step for step, around the same model, batches and learning rates that the
other arms of a comparison have.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from common.coco import COCODataset, CocoSplit
from phase1_training.recipe import AMP_DTYPES, Recipe, learning_rate


class ReferencesLoop:
    """A model, trained as torchvision's references do.

    Args:
        model: changed in place; its resize becomes torchvision's own.
        batches: the images of each step, as indices into the split's records.
        recipe: with `amp` the whole model runs under autocast, as with the references' --amp.
        steps_per_epoch: for the schedule of the recipe.
    """

    def __init__(
        self,
        model: FasterRCNN,
        recipe: Recipe,
        split: CocoSplit,
        batches: Sequence[Sequence[int]],
        *,
        device: torch.device,
        workers: int,
        steps_per_epoch: int,
    ):
        self.model = model.to(device).train()
        own = model.transform
        self.model.transform = GeneralizedRCNNTransform(
            own.min_size[-1], own.max_size, own.image_mean, own.image_std
        )
        self.recipe, self.device = recipe, device
        self.steps_per_epoch = steps_per_epoch
        self.steps_done = 0
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if recipe.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
            )
        else:
            self.optimizer = torch.optim.SGD(
                parameters,
                lr=recipe.learning_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        transform = v2.Compose(
            [v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
        )
        loader = DataLoader(
            COCODataset(split, transform),  # type: ignore[arg-type]
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_listed,
        )
        self._batches = _forever(loader)

    def step(self) -> dict[str, float]:
        """One optimizer step; returns the losses it read."""
        images, targets = next(self._batches)
        images = [image.to(self.device) for image in images]
        targets = [{k: t[k].to(self.device) for k in ("boxes", "labels")} for t in targets]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.steps_done, self.steps_per_epoch)
        with self._autocast():
            losses = self.model(images, targets)
            total = sum(losses.values())
        read = {name: loss.item() for name, loss in losses.items()}
        if not math.isfinite(total.item()):
            raise FloatingPointError(f"step {self.steps_done}: {read}")
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps_done += 1
        return read

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.recipe.amp == "off":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=AMP_DTYPES[self.recipe.amp])


def _listed(samples: Sequence[tuple]) -> list[tuple]:
    """Images of different sizes cannot be stacked: all images, and all targets."""
    return list(zip(*samples, strict=True))


def _forever(loader: DataLoader) -> Iterator:
    while True:
        yield from loader
