"""The steps that are profiled, stage by stage: this project's own, and torchvision's beside them.

The training step is phase 1's: the same shared parts in the same order, with the optimizer it
takes for the architecture. Images are read in the main process, so that the wait for data is their
whole cost, and are not augmented.
"""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from common import models
from common.coco import COCODataset, CocoSplit, ImageRecord, read_image
from common.fast_inference import shipped_graph
from common.fastpath import fast_training, native_amp, normalise_batch, precision_safe_autocast
from common.inference_graph import graph_predictor
from common.training_losses import set_training_mode, training_losses
from common.training_update import update_if_finite
from phase2_optimization.amp_batches import image_seeds, training_batches
from phase2_optimization.inputs import most_common_size
from phase2_optimization.stages import DATA_WAIT, StageClock, watch_detector, watch_graph

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

LEARNING_RATE = 1e-6  # leaves the weights where they are: their usual step is what is profiled
LOOK_EVERY = {"cpu": 1, "cuda": 10, "mps": 10}  # steps, as phase 1: reading a loss waits for a GPU
DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Arm:
    """One kind of step.

    Attributes:
        description: what it is, in words.
        dtype: what its networks compute in.
        step: makes one step and names its stages to a clock.
        watch: while it is open, the clock sees the stages inside the forward pass, too.
    """

    description: str
    dtype: torch.dtype
    step: Callable[[StageClock], None]
    watch: Callable[[StageClock], AbstractContextManager[None]]


def name_of(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


# --- training -----------------------------------------------------------------------------------


@contextlib.contextmanager
def training_arm(
    loaded: models.LoadedModel,
    split: CocoSplit,
    device: torch.device,
    batch_size: int,
    amp: str,
    seed: int,
) -> Iterator[Arm]:
    """Phase 1's step on a copy of the model, which has its fast paths while the block lasts.

    Args:
        amp: "off", "bf16" or "fp16", the precision of the heavy layers.
    """
    model = _trained_copy(loaded.model, device).to(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(loaded.architecture, parameters, fused=device.type in ("cpu", "cuda"))
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    size = {"min_size": model.transform.min_size[-1], "max_size": model.transform.max_size}
    losses_log, numbers = LossesLog(device), itertools.count(seed)

    def step(clock: StageClock) -> None:
        number = next(numbers)
        with clock.stage(DATA_WAIT):
            (batch,) = training_batches(split, batch_size, 1, **size, seed=number)
            if device.type == "cuda":
                batch = batch.pin_memory()
        with clock.stage("optimizer"):
            optimizer.zero_grad(set_to_none=True)
        with clock.stage("copy to device"):
            batch = batch.to(device)
        with clock.stage("transform"):
            images = normalise_batch(model, batch.images, batch.sizes)
        with clock.stage("RPN"):  # what follows the backbone, up to where the RoI heads take over
            seeds = image_seeds(seed, number, len(batch.sizes))
            sums = training_losses(model, images, batch.sizes, batch.targets, seeds)
            losses = sums.losses()
        with clock.stage("backward"):
            total = torch.stack(list(losses.values())).sum()
            scaler.scale(total).backward()
        with clock.stage("optimizer"):
            _, is_made = update_if_finite(parameters, optimizer, scaler, total.detach())
        with clock.stage("logging"):
            losses_log.note(losses, is_made)

    with contextlib.ExitStack() as stack:
        stack.enter_context(fast_training(model))
        if amp != "off":
            stack.enter_context(precision_safe_autocast(model, DTYPES[amp], device.type))
        words = f"phase 1's training step, {name_of(DTYPES[amp])} and fast paths"
        yield Arm(words, DTYPES[amp], step, partial(watch_detector, model=model))


def stock_training_arm(
    loaded: models.LoadedModel, split: CocoSplit, device: torch.device, batch_size: int, seed: int
) -> Arm:
    """torchvision's step as its reference scripts make it: lists of float images, FP32, and the
    loss read at every step."""
    model = _trained_copy(loaded.model, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(loaded.architecture, parameters, fused=False)
    dataset, indices = COCODataset(split), _endless_order(len(split.records), seed)

    def step(clock: StageClock) -> None:
        with clock.stage(DATA_WAIT):
            samples = [dataset[index] for index in itertools.islice(indices, batch_size)]
            images = [image.as_subclass(Tensor).float() / 255 for image, _ in samples]
        with clock.stage("copy to device"):
            images = [image.to(device) for image in images]
            targets = [
                {key: target[key].as_subclass(Tensor).to(device) for key in ("boxes", "labels")}
                for _, target in samples
            ]
        total = sum(model(images, targets).values())
        with clock.stage("logging"):
            float(total.detach())
        with clock.stage("backward"):
            optimizer.zero_grad()
            total.backward()
        with clock.stage("optimizer"):
            optimizer.step()

    words = "torchvision's own training step, float32"
    return Arm(words, torch.float32, step, partial(watch_detector, model=model))


def _trained_copy(model: "FasterRCNN", device: torch.device) -> "FasterRCNN":
    """A copy on the device, in training mode."""
    model = copy.deepcopy(model).to(device)
    set_training_mode(model)
    return model


def _optimizer(
    architecture: str, parameters: list[nn.Parameter], *, fused: bool
) -> torch.optim.Optimizer:
    """What phase 1 takes by default."""
    if architecture == models.DEMO:
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=fused)
    return torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, fused=fused)


class LossesLog:
    """Sums of the losses on the device, read every few steps."""

    def __init__(self, device: torch.device):
        self.rows: list[list[float]] = []
        self._every = LOOK_EVERY[device.type]
        self._unread: list[Tensor] = []

    def note(self, losses: dict[str, Tensor], is_made: Tensor) -> None:
        values = torch.stack([loss.detach() for loss in losses.values()])
        self._unread.append(torch.where(is_made, values, 0.0))
        if len(self._unread) == self._every:
            self.rows += torch.stack(self._unread).tolist()
            self._unread.clear()


def _endless_order(count: int, seed: int) -> Iterator[int]:
    random = np.random.default_rng(seed % 2**64)
    while True:
        yield from random.permutation(count).tolist()


# --- inference ----------------------------------------------------------------------------------


def inference_arm(
    loaded: models.LoadedModel, split: CocoSplit, device: torch.device, batch_size: int
) -> Arm:
    """Reading images and detecting objects in them as the video pipeline does: with the fast
    graph, in the half precision that the device computes natively, if any."""
    dtype = DTYPES[native_amp(device)]
    graph = shipped_graph(loaded.model, device, dtype)
    predict = graph_predictor(graph, device)
    coming = itertools.cycle(_of_the_common_size(split))

    def step(clock: StageClock) -> None:
        with clock.stage(DATA_WAIT):
            images = _read(itertools.islice(coming, batch_size))
        with clock.stage("copy to device"):  # up to where the graph takes over
            predict(images)

    words = f"the fast inference graph, as videos are detected with, {name_of(dtype)}"
    return Arm(words, dtype, step, partial(watch_graph, graph=graph))


def stock_inference_arm(
    loaded: models.LoadedModel, split: CocoSplit, device: torch.device, batch_size: int
) -> Arm:
    """The same with torchvision's own forward pass, in FP32."""
    model = copy.deepcopy(loaded.model).to(device).eval()
    coming = itertools.cycle(_of_the_common_size(split))

    def step(clock: StageClock) -> None:
        with clock.stage(DATA_WAIT):
            images = _read(itertools.islice(coming, batch_size))
        with clock.stage("copy to device"):
            inputs = [torch.from_numpy(image).to(device) for image in images]
        with clock.stage("transform"):
            inputs = [image.permute(2, 0, 1).to(torch.float32) / 255 for image in inputs]
        with torch.inference_mode():
            outputs = model(inputs)
        with clock.stage("results to host"):
            for output in outputs:
                for value in output.values():
                    value.cpu()

    words = "torchvision's own forward pass, float32"
    return Arm(words, torch.float32, step, partial(watch_detector, model=model))


def _of_the_common_size(split: CocoSplit) -> Sequence[ImageRecord]:
    common = most_common_size(split)
    return [record for record in split.records if (record.width, record.height) == common]


def _read(records: Iterator[ImageRecord]) -> list[np.ndarray]:
    return [read_image(record.path, (record.width, record.height)) for record in records]
