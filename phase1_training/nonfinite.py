"""Noticing a loss or gradient that is no number before it reaches the weights, and telling why."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import FasterRCNN

from common import artifacts, paths
from common.cli import UserError, log
from phase1_training.batch import Batch

CHECK_EVERY = {"cpu": 1, "cuda": 10, "mps": 10}  # steps; reading a flag waits for a GPU
MAX_IN_A_ROW = 5  # skipped steps before the run ends
SHOWN_IMAGES = 8
REMEDY = "lower --lr, raise --warmup-steps, give --clip-norm 10, or use --amp off"
MAX_SAVED = 5  # bad batches kept on disk


@dataclass(frozen=True)
class _Step:
    epoch: int
    step: int
    batch: Batch  # as it came from the loader, in the host's memory
    losses: dict[str, torch.Tensor]
    gradient_norms: torch.Tensor
    is_finite: torch.Tensor


class StepMonitor:
    """Remembers the steps since the last look at the device, and looks every few steps.

    The optimizer skips a bad step on its own (the flag is handed to it as a tensor), so nothing
    waits for the device in between; here the guilty images, loss and parameter are named. Running
    statistics of BatchNorm layers, which a bad step spoils before it is noticed, are set back.

    Args:
        model: the model trained.
        statistics: those running statistics.
        folder: where the bad batches are saved.
        device_type: "cpu", "cuda" or "mps".

    Attributes:
        skipped: steps skipped so far.
        in_a_row: bad steps at the end of the steps looked at.
    """

    def __init__(
        self,
        model: FasterRCNN,
        statistics: Sequence[torch.Tensor],
        folder: Path,
        device_type: str,
    ):
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.statistics = statistics
        self.remember_statistics()
        self.folder = folder
        self.every = CHECK_EVERY[device_type]
        self.recent: deque[_Step] = deque()
        self.skipped = self.in_a_row = 0

    def remember_statistics(self) -> None:
        """The present running statistics are what a bad step is set back to."""
        self.good_statistics = [buffer.clone() for buffer in self.statistics]

    def note(
        self,
        epoch: int,
        step: int,
        batch: Batch,
        losses: dict[str, torch.Tensor],
        gradient_norms: torch.Tensor,
        is_finite: torch.Tensor,
    ) -> None:
        """Takes the outcome of a step, all tensors still on the device.

        Args:
            losses: 0-dim tensors by name.
            gradient_norms: float32 (parameters,), the L2 norm of every parameter's gradient.
            is_finite: bool, whether the step was made.
        """
        self.recent.append(_Step(epoch, step, batch, losses, gradient_norms, is_finite))
        if len(self.recent) >= self.every:
            self.look()

    def look(self) -> None:
        """Reads the flags of the steps since the last look.

        Raises:
            UserError: MAX_IN_A_ROW steps after one another were bad.
        """
        if not self.recent:
            return
        steps = list(self.recent)
        self.recent.clear()
        flags = torch.stack([step.is_finite for step in steps]).tolist()
        if all(flags):
            self.in_a_row = 0
            self.remember_statistics()
            return
        for buffer, good in zip(self.statistics, self.good_statistics, strict=True):
            buffer.copy_(good)
        for step, is_good in zip(steps, flags, strict=True):
            self.in_a_row = 0 if is_good else self.in_a_row + 1
            if not is_good:
                self._report(step)

    def _report(self, step: _Step) -> None:
        self.skipped += 1
        culprits = [name for name, loss in step.losses.items() if not torch.isfinite(loss)]
        bad = [
            name
            for name, norm in zip(self.names, step.gradient_norms.tolist(), strict=True)
            if not math.isfinite(norm)
        ]
        images = ", ".join(paths.display(Path(p)) for p in step.batch.paths[:SHOWN_IMAGES])
        saved = self.folder / f"bad_batch_epoch{step.epoch}_step{step.step}.pth"
        where = f"epoch {step.epoch}, step {step.step}"
        what = f"{' and '.join(culprits) or 'a gradient'} is not a finite number"
        first = f"; first parameter without a finite gradient: {bad[0]}" if bad else ""
        log.warning("%s: %s%s. Step skipped. Images: %s", where, what, first, images)
        if self.skipped <= MAX_SAVED:
            _save_batch(saved, step)
            log.warning("The batch is in %s", paths.display(saved))
        if self.in_a_row >= MAX_IN_A_ROW:
            raise UserError(where, f"{what}, {MAX_IN_A_ROW} steps in a row", REMEDY)


def _save_batch(path: Path, step: _Step) -> None:
    content: dict[str, Any] = {
        "images": step.batch.images,
        "sizes": list(step.batch.sizes),
        "targets": list(step.batch.targets),
        "image_ids": list(step.batch.image_ids),
        "paths": list(step.batch.paths),
        "losses": {name: float(loss) for name, loss in step.losses.items()},
    }
    with artifacts.atomic_path(path) as temporary:
        torch.save(content, temporary)
