"""One arm of a precision comparison: a model, its optimizer and the steps it makes."""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from common import timing
from common.coco import COCODataset, CocoSplit
from common.fastpath import precision_safe_autocast
from common.models import Predictor, stock_predictor

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

Batch = tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]
MOMENTUM = 0.9
MEMORY_STEPS = 2  # the second one has the optimizer's momentum in memory too


def precisions(device: torch.device) -> dict[str, torch.dtype]:
    """The arms of a device, FP32 first and the usual AMP precision of the device second."""
    arms = {"fp32": torch.float32}
    if device.type == "cuda":
        arms["amp_fp16"] = torch.float16
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return arms
    return {**arms, "amp_bf16": torch.bfloat16}


def training_batches(
    split: CocoSplit, batch_size: int, count: int, device: torch.device, seed: int
) -> list[Batch]:
    """Seeded random batches as torchvision's detectors take them, decoded and on the device."""
    dataset = COCODataset(split)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < batch_size * count:
        order += torch.randperm(len(dataset), generator=generator).tolist()
    batches = []
    for start in range(0, batch_size * count, batch_size):
        samples = [dataset[index] for index in order[start : start + batch_size]]
        images = [image.as_subclass(torch.Tensor).to(device).float() / 255 for image, _ in samples]
        targets = [
            {key: target[key].as_subclass(torch.Tensor).to(device) for key in ("boxes", "labels")}
            for _, target in samples
        ]
        batches.append((images, targets))
    return batches


class TrainingArm:
    """A copy of a model that is trained in one precision.

    Args:
        model: copied, so every arm starts from the same weights.
        batches: gone through in order, again and again; the same for every arm.
        dtype: torch.float32 for plain FP32; torch.bfloat16 or torch.float16 (with loss scaling,
            Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740) for AMP.
        seed: of the random sampling of anchors and proposals in each step.
    """

    def __init__(
        self,
        model: "FasterRCNN",
        batches: Sequence[Batch],
        dtype: torch.dtype,
        learning_rate: float,
        device: torch.device,
        seed: int,
    ):
        self._batches, self._dtype, self._device, self._seed = batches, dtype, device, seed
        self._model = copy.deepcopy(model).to(device).train()
        self._optimizer = torch.optim.SGD(
            [parameter for parameter in self._model.parameters() if parameter.requires_grad],
            lr=learning_rate,
            momentum=MOMENTUM,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        self._losses: list[torch.Tensor] = []
        self._scales: list[float] = []

    def step(self) -> None:
        """One training step on the next batch."""
        number = len(self._losses)
        torch.manual_seed(self._seed + number)  # every arm samples the same proposals
        images, targets = self._batches[number % len(self._batches)]
        with self._precision():
            loss = torch.stack(list(self._model(images, targets).values())).sum()
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._losses.append(loss.detach())  # reading it here would wait for the GPU
        if self._scaler.is_enabled():
            self._scales.append(self._scaler.get_scale())

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype is torch.float32:
            return contextlib.nullcontext()
        return precision_safe_autocast(self._model, self._dtype, self._device.type)

    def losses(self) -> list[float | None]:
        """The loss of every step made; None where it was not finite."""
        values = torch.stack(self._losses).tolist()
        return [value if math.isfinite(value) else None for value in values]

    def final_loss(self, count: int) -> float | None:
        """Mean loss of the last `count` steps, None when one of them was not finite."""
        last = self.losses()[-count:]
        return None if None in last else sum(last) / len(last)  # type: ignore[arg-type]

    def skipped_steps(self) -> int:
        """Steps the loss scaling left out because a float16 gradient overflowed: the scale fell."""
        return sum(later < earlier for earlier, later in itertools.pairwise(self._scales))

    def predictor(self) -> Predictor:
        """FP32 inference with the trained weights, so that all arms are judged alike."""
        return stock_predictor(self._model.eval(), self._device)


def peak_memory(
    make_arm: Callable[[torch.dtype], TrainingArm], dtype: torch.dtype, device: torch.device
) -> timing.PeakMemory:
    """The peak memory of an arm's first steps, with no other arm in memory."""
    timing.release_free_memory(device)
    with timing.PeakMemory(device) as memory:
        arm = make_arm(dtype)
        for _ in range(MEMORY_STEPS):
            arm.step()
    return memory
