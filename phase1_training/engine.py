"""The training loop: one step, one epoch, and the state a run can be continued from."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

from common import timing
from common.cli import UserError, log
from common.fastpath import fast_training, normalise_batch, precision_safe_autocast
from common.training_losses import (
    LOSS_NAMES,
    LossSums,
    count_samples,
    set_training_mode,
    training_losses,
)
from common.training_update import update_if_finite
from phase1_training import rng
from phase1_training.batch import Batch
from phase1_training.distributed import Ranks
from phase1_training.nonfinite import StepMonitor
from phase1_training.recipe import (
    AMP_DTYPES,
    ModelEMA,
    Recipe,
    build_optimizer,
    hold_zeros,
    learning_rate,
)


@dataclass
class EpochTotals:
    """What an epoch has come to so far.

    Attributes:
        step: position in the epoch's plan of batches.
        losses: sums over the images of this rank's share of the mean losses, on the device.
        weight: number of those images, over all ranks; a skipped step counts for neither.
        images: all images of this rank.
        seconds: spent on steps and on waiting for batches.
        skipped_before: steps skipped in earlier epochs.
    """

    epoch: int
    losses: dict[str, torch.Tensor]
    weight: torch.Tensor
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    skipped_before: int = 0


@dataclass(frozen=True)
class EpochResult:
    """Mean losses over an epoch's images, and what it took."""

    losses: dict[str, float]
    images: int
    seconds: float
    learning_rate: float
    skipped_steps: int
    parts: int  # the most a batch was computed in, see `Trainer.parts`

    @property
    def train_loss(self) -> float:
        return sum(self.losses.values())


class Trainer:
    """A stock torchvision detector, its optimizer and everything a step consists of.

    The heavy layers compute in half precision and the box arithmetic in FP32
    (`precision_safe_autocast`); the model's slow places are replaced while it trains
    (`fast_training`) and whole again afterwards, so the weights are plain torchvision's.

    Args:
        model: changed in place, on `device`.
        steps_per_epoch: batches of one epoch on one rank.
        ranks: the processes that train together; one alone by default.
        folder: where batches with a loss that is no number are saved.

    Attributes:
        parts: in how many parts batches of a canvas (height, width) are computed, where memory ran
            out; the others are in the recipe's `accumulate`.
        totals: of the epoch that is being trained.
        ema: the averaged weights, or None.
    """

    def __init__(
        self,
        model: FasterRCNN,
        recipe: Recipe,
        device: torch.device,
        steps_per_epoch: int,
        *,
        ranks: Ranks,
        folder: Path,
    ):
        self.model = model.to(memory_format=torch.channels_last)  # what convolutions compute in
        self.recipe = recipe
        self.device = device
        self.steps_per_epoch = steps_per_epoch
        self.ranks = ranks
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if recipe.keep_zeros:
            hold_zeros(self.parameters)
        self.optimizer = build_optimizer(model, recipe, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self.ema = ModelEMA(model, recipe.ema_decay) if recipe.ema_decay else None
        self.parts: dict[tuple[int, int], int] = {}
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        trained = [norm for norm in norms if norm.weight.requires_grad]
        self.statistics = [buffer for norm in trained for buffer in norm.buffers()]
        self.monitor = StepMonitor(model, self.statistics, folder, device.type)
        self.start_epoch(1)

    def evaluated_model(self) -> FasterRCNN:
        """The model that is validated and shipped: the averaged one where an average is kept."""
        return self.ema.averaged_model(self.model) if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs beside the model's own weights. Every rank has to call
        it."""
        self.monitor.look()
        losses = {
            name: self.ranks.sum_(value.clone()) for name, value in self.totals.losses.items()
        }
        totals = {**vars(self.totals), "losses": losses}
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "totals": totals,
            "parts": [[*canvas, number] for canvas, number in self._parts_of_all_ranks().items()],
            "statistics": self.ranks.gather([buffer.cpu() for buffer in self.statistics]),
            "skipped": self.monitor.skipped,
            "in_a_row": self.monitor.in_a_row,
            "rng": rng.rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned, on any rank of as many."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        totals = state["totals"]
        losses = {name: value.to(self.device) for name, value in totals["losses"].items()}
        if not self.ranks.is_main:  # the sums are those of all ranks
            losses = {name: torch.zeros_like(value) for name, value in losses.items()}
        weight = totals["weight"].to(self.device)
        self.totals = EpochTotals(**{**totals, "losses": losses, "weight": weight})
        self.parts = {(height, width): number for height, width, number in state["parts"]}
        for buffer, value in zip(
            self.statistics, state["statistics"][self.ranks.rank], strict=True
        ):
            buffer.copy_(value)
        self.monitor.remember_statistics()
        self.monitor.skipped = state["skipped"]
        self.monitor.in_a_row = state["in_a_row"]
        rng.set_rng_state(state["rng"])

    def _parts_of_all_ranks(self) -> dict[tuple[int, int], int]:
        merged: dict[tuple[int, int], int] = {}
        for (parts,) in self.ranks.gather([self.parts]):
            for canvas, number in parts.items():
                merged[canvas] = max(number, merged.get(canvas, 1))
        return merged

    @property
    def steps_done(self) -> int:
        """Optimizer steps of the whole run."""
        return (self.totals.epoch - 1) * self.steps_per_epoch + self.totals.step

    def start_epoch(self, epoch: int) -> None:
        losses = {name: torch.zeros((), device=self.device) for name in LOSS_NAMES}
        weight = torch.zeros((), device=self.device)
        self.totals = EpochTotals(epoch, losses, weight, skipped_before=self.monitor.skipped)

    def train_epoch(
        self,
        batches: Iterable[Batch],
        after_step: Callable[[Mapping[str, torch.Tensor]], None] = lambda losses: None,
    ) -> None:
        """Trains on the batches that are left of the epoch in `totals`.

        Args:
            batches: as the loader gives them, in the host's memory.
            after_step: called between two steps, where everything can be saved, with the losses of
                the step (this rank's share).

        Raises:
            UserError: memory does not suffice for one image, or the loss is no number for several
                steps in a row.
        """
        with self.training():
            started = time.perf_counter()
            for batch in batches:
                losses = self.train_step(batch)
                self.totals.seconds += time.perf_counter() - started
                after_step(losses)
                started = time.perf_counter()
        self.monitor.look()
        self.ranks.mean_buffers(self.statistics)

    def status(self) -> str:
        """`loss 0.812`, the mean of the epoch so far on this rank; waits for the device."""
        total = torch.stack(list(self.totals.losses.values())).sum()
        return f"loss {float(self.ranks.size * total / self.totals.weight.clamp(min=1)):.3f}"

    def finish_epoch(self) -> EpochResult:
        """The means over the epoch's images on all ranks."""
        totals = self.totals
        images = int(self.ranks.sum_(torch.tensor(totals.images, device=self.device)))
        means = {
            name: float(self.ranks.sum_(value.clone()) / totals.weight.clamp(min=1))
            for name, value in totals.losses.items()
        }
        step = (totals.epoch - 1) * self.steps_per_epoch
        return EpochResult(
            means,
            images,
            totals.seconds,
            learning_rate(self.recipe, step, self.steps_per_epoch),
            self.monitor.skipped - totals.skipped_before,
            max([self.recipe.accumulate, *self._parts_of_all_ranks().values()]),
        )

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Where `train_step` can be called: the model in training mode, fast, its heavy layers in
        the recipe's precision."""
        set_training_mode(self.model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(fast_training(self.model))
            if self.recipe.amp != "off":
                dtype = AMP_DTYPES[self.recipe.amp]
                stack.enter_context(precision_safe_autocast(self.model, dtype, self.device.type))
            yield

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One step of the optimizer; returns this rank's share of the losses, on the device."""
        totals, step = self.totals, self.steps_done
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step, self.steps_per_epoch)
        losses, images = self._backward_whatever_it_takes(batch)
        own = torch.stack([images.new_zeros(()), *(loss.float() for loss in losses.values())])
        total = self.ranks.sum_(own.sum())
        self.ranks.sum_gradients(self.parameters)
        norms, is_finite = self._update(total)
        if self.ema:
            self.ema.update(self.model, step)
        self.monitor.note(totals.epoch, totals.step + 1, batch, losses, norms, is_finite)
        for name, loss in losses.items():
            totals.losses[name] += torch.where(is_finite, loss * images, 0.0)
        totals.weight += torch.where(is_finite, images, 0.0)
        totals.images += len(batch)
        totals.step += 1
        return losses

    # --- forward and backward -----------------------------------------------------------------

    def _backward_whatever_it_takes(
        self, batch: Batch
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """`_backward`, in more parts when the memory does not suffice; the gradient stays the same.

        Returns:
            This rank's share of the mean losses, and the number of images on all ranks.
        """
        counts: list[torch.Tensor] = []  # all ranks wait for them: once, not at every attempt
        before = [buffer.clone() for buffer in self.statistics]
        while True:
            try:
                return self._backward(batch, counts)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not timing.is_out_of_memory(error):
                    raise
                message = str(error)  # the error itself holds on to the memory
            if before:  # the attempt counts once
                torch._foreach_copy_(self.statistics, before)
            self._use_smaller_parts(batch, message)

    def _backward(
        self, batch: Batch, counts: list[torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        images_per_part = -(-len(batch) // self._parts_for(batch))
        starts = range(0, len(batch), max(1, images_per_part))
        parts = [batch.part(start, start + images_per_part) for start in starts]
        own = torch.zeros(3, device=self.device)  # sampled anchors, sampled RoIs, images
        own[2] = len(batch)
        if len(parts) == 1:
            found = self._forward(parts[0])
            own[:2] = found.counts
        elif not counts:
            for part in parts:
                own[:2] += self._count(part)
        if not counts:
            counts.append(self.ranks.sum_(own))
        divisors, images = counts[0][:2].clamp(min=1), counts[0][2]
        sums: dict[str, torch.Tensor] = {}
        for part in parts:
            if len(parts) > 1:
                found = self._forward(part)
            losses = found.losses(divisors)
            self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
        return sums, images

    def _parts_for(self, batch: Batch) -> int:
        height, width = batch.images.shape[-2:]
        return self.parts.get((height, width), self.recipe.accumulate)

    def _forward(self, part: Batch) -> LossSums:
        return training_losses(self.model, *self._inputs(part))

    def _count(self, part: Batch) -> torch.Tensor:
        return count_samples(self.model, *self._inputs(part))

    def _inputs(self, part: Batch) -> tuple:
        part = part.to(self.device)
        images = normalise_batch(self.model, part.images, part.sizes)
        return images, part.sizes, part.targets, part.seeds

    def _use_smaller_parts(self, batch: Batch, message: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        height, width = batch.images.shape[-2:]
        parts = self._parts_for(batch)
        if parts >= len(batch):
            raise UserError(
                f"one image of {width}x{height} px",
                f"does not fit into the memory of {self.device}{_free_memory(self.device)}",
                "lower --min-size and --max-size, give --amp bf16 or fewer --trainable-stages",
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.parts[height, width] = min(2 * parts, len(batch))
        log.warning(
            "Out of memory with %d images of %dx%d px: such batches are computed in %d parts from "
            "here on; the gradients stay the same (%.100s)",
            *(len(batch), width, height, self.parts[height, width], message.split("\n")[0]),
        )

    # --- update -------------------------------------------------------------------------------

    def _update(self, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`update_if_finite`; returns the norms, and whether the step counts."""
        scale = self.scaler.scale(torch.ones((), device=self.device))  # the update may change it
        norms, is_made = update_if_finite(
            self.parameters, self.optimizer, self.scaler, total, clip_norm=self.recipe.clip_norm
        )
        # Gradients too large for fp16 are the scaler's business, until it cannot scale less.
        return norms, is_made | (torch.isfinite(total) & (scale > 1))


def _free_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
    return f" ({free:.1f} of {total:.1f} GiB free)"
