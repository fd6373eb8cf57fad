"""The precisions that are compared, and one arm of the comparison: a model and its steps."""

import contextlib
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.fastpath import fast_training, native_amp, normalise_batch, precision_safe_autocast
from common.inference_graph import InferenceGraph, graph_predictor
from common.models import Predictor
from common.training_losses import set_training_mode, training_losses
from common.training_update import update_if_finite
from phase2_optimization.amp_batches import Batch, image_seeds
from phase2_optimization.builders import tf32

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

MOMENTUM = 0.9
NEEDS_AMPERE = "needs a CUDA GPU of compute capability 8.0 (Ampere) or newer"


@dataclass(frozen=True)
class Precision:
    """One way of computing a training step.

    Attributes:
        dtype: what the networks compute in; torch.float32 is no autocast at all.
        tf32: whether FP32 products may round to TF32.
        stock: torchvision's own training forward, the whole of it under autocast.
        emulated: whether the processor lacks instructions for the dtype.
        unavailable: why it cannot run on the device; "" where it can.
    """

    description: str
    dtype: torch.dtype = torch.float32
    tf32: bool = False
    stock: bool = False
    emulated: bool = False
    unavailable: str = ""


def precisions(device: torch.device) -> dict[str, Precision]:
    """Every precision by name, FP32 first, also those that cannot run on the device."""
    on_cuda, on_cpu = device.type == "cuda", device.type == "cpu"
    ampere = on_cuda and native_amp(device) == "bf16"
    emulated = on_cpu and native_amp(device) != "bf16"
    nowhere = "" if on_cuda or on_cpu else f"half precision needs a CUDA GPU or a CPU, not {device}"
    cpu_has = "float16 with loss scaling needs a CUDA GPU; the half precision of CPUs is bfloat16"
    return {
        "fp32": Precision("strict FP32, TF32 off: the baseline"),
        "tf32": Precision(
            "FP32 whose matrix products and convolutions round to TF32",
            tf32=True,
            unavailable="" if ampere else NEEDS_AMPERE,
        ),
        "amp_fp16": Precision(
            "networks in float16 with loss scaling, boxes and losses in FP32",
            torch.float16,
            unavailable="" if on_cuda else nowhere or cpu_has,
        ),
        "amp_bf16": Precision(
            "networks in bfloat16, boxes and losses in FP32",
            torch.bfloat16,
            emulated=emulated,
            unavailable=NEEDS_AMPERE if on_cuda and not ampere else nowhere,
        ),
        "amp_stock": Precision(
            "torchvision's own training forward, autocast around the whole of it",
            torch.float16 if on_cuda else torch.bfloat16,  # what autocast() takes by itself
            stock=True,
            emulated=emulated,
            unavailable=nowhere,
        ),
    }


def usual_amp(device: torch.device) -> str:
    """The AMP precision that suits the device: what a training with `--amp auto` takes, but
    bfloat16 also where a processor emulates it."""
    return "amp_fp16" if native_amp(device) == "fp16" else "amp_bf16"


class TrainingArm:
    """A copy of a model that is trained in one precision; `step` is for inside its `with` block.

    A step is that of phase 1's training: copy to the device, normalise, forward with the fast
    paths, backward, SGD; a step without a finite gradient changes nothing. Only under `stock` the
    forward is torchvision's. Weights and gradients are FP32 in every precision (Micikevicius et
    al. 2018, https://arxiv.org/abs/1710.03740).

    Args:
        model: copied, so every arm starts from the same weights.
        batches: gone through in order, again and again; the same for every arm.
        seed: of the random sampling of anchors and proposals in each step.
    """

    def __init__(
        self,
        model: "FasterRCNN",
        precision: Precision,
        batches: Sequence[Batch],
        learning_rate: float,
        device: torch.device,
        seed: int,
    ):
        self._precision, self._batches = precision, batches
        self._device, self._seed = device, seed
        layout = torch.contiguous_format if precision.stock else torch.channels_last
        self._model = copy.deepcopy(model).to(device).to(memory_format=layout)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = _sgd(self._parameters, learning_rate, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype is torch.float16)
        self._losses: list[Tensor] = []
        self._made: list[Tensor] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "TrainingArm":
        set_training_mode(self._model)
        if not self._precision.stock:
            self._stack.enter_context(fast_training(self._model))
            if self._precision.dtype is not torch.float32:
                self._stack.enter_context(
                    precision_safe_autocast(self._model, self._precision.dtype, self._device.type)
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One training step on the next batch; waits for the device no more than phase 1 does."""
        number = len(self._losses)
        batch = self._batches[number % len(self._batches)].to(self._device)
        seeds = image_seeds(self._seed, number, len(batch.sizes))
        with tf32(self._precision.tf32):
            loss = self._loss(batch, seeds)
            self._scaler.scale(loss).backward()
        _, made = update_if_finite(self._parameters, self._optimizer, self._scaler, loss.detach())
        self._optimizer.zero_grad(set_to_none=True)  # an arm that waits holds no gradients
        self._losses.append(loss.detach())
        self._made.append(made)

    def _loss(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        if self._precision.stock:
            torch.manual_seed(seeds[0])  # torchvision samples with the global generator
            pictures = [
                image[:, :height, :width].float() / 255
                for image, (height, width) in zip(batch.images, batch.sizes, strict=True)
            ]
            with torch.autocast(self._device.type, dtype=self._precision.dtype):
                return sum(self._model(pictures, batch.targets).values())
        images = normalise_batch(self._model, batch.images, batch.sizes)
        sums = training_losses(self._model, images, batch.sizes, batch.targets, seeds)
        return torch.stack(list(sums.losses().values())).sum()

    # --- what came out; reading it waits for the device -------------------------------------------

    def losses(self) -> list[float | None]:
        """The loss of every step; None where it was not finite."""
        values = torch.stack(self._losses).float().tolist() if self._losses else []
        return [value if math.isfinite(value) else None for value in values]

    def skipped_steps(self) -> int:
        """Steps that changed nothing, mostly because a scaled float16 gradient overflowed."""
        return len(self._made) - int(torch.stack(self._made).sum()) if self._made else 0

    def predictor(self) -> Predictor:
        """FP32 inference with the trained weights, so that all arms are judged alike."""
        return graph_predictor(InferenceGraph(self._model), self._device)


def _sgd(
    parameters: list[nn.Parameter], learning_rate: float, device: torch.device
) -> torch.optim.Optimizer:
    """SGD with its momentum made at once: a first step that is skipped would leave it undefined,
    and the first step's peak memory would lack it."""
    fused = device.type in ("cpu", "cuda")
    sgd = torch.optim.SGD(parameters, lr=learning_rate, momentum=MOMENTUM, fused=fused)
    for parameter in parameters:
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd
