"""Small detectors, batches and recipes for tests of the training step."""

from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import FasterRCNN

from common import models
from phase1_training.batch import Batch
from phase1_training.distributed import Ranks
from phase1_training.engine import Trainer
from phase1_training.recipe import Recipe
from tests.random_detectors import random_detector

CPU = torch.device("cpu")
CANVAS = (64, 96)
SGD = Recipe(
    epochs=10, batch_size=2, accumulate=1, optimizer="sgd", learning_rate=0.02, momentum=0.9,
    weight_decay=0.0, schedule="step", step_size=3, gamma=0.1, warmup_steps=0, clip_norm=0.0,
    ema_decay=0.0, trainable_stages=None, patience=0, amp="off", min_sizes=(64,),
    color_jitter=0.0, crop_probability=0.0,
)  # fmt: skip


def small_detector(*, frozen_norms: bool = True) -> FasterRCNN:
    """The demo architecture for two classes; frozen norms make every image independent of the
    others in its batch, as in a pretrained detector."""
    torch.manual_seed(0)
    model = models.build_model("demo", 3, min_size=64, max_size=96)
    if frozen_norms:
        models.freeze_norms(model, eps=1e-5)
    return model


def exact_detector(dtype: torch.dtype = torch.float64) -> FasterRCNN:
    """As `small_detector`, with scores that differ widely: those of a model just initialised are
    nearly equal, and the last bit of a sum would decide which proposals are kept. In FP64 that bit
    is far behind the ones compared; in FP32 all proposals are kept and sampled."""
    model = random_detector("demo", num_classes=3, min_size=64, max_size=96)
    if dtype == torch.float32:
        everything = 100_000
        for counts in (model.rpn._pre_nms_top_n, model.rpn._post_nms_top_n):
            counts["training"] = everything
        model.rpn.nms_thresh = 1.0
        for sampler in (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler):
            sampler.batch_size_per_image, sampler.positive_fraction = everything, 0.5
    state = model.state_dict()
    models.freeze_norms(model, eps=1e-5)
    model.load_state_dict(state, strict=False)  # frozen norms do not count their batches
    return model.to(dtype).train()


def make_batch(
    count: int,
    *,
    boxes: int = 2,
    seed: int = 0,
    first: int = 0,
    canvas: tuple[int, int] = CANVAS,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Images of noise with a bright rectangle for every box; image k is the same in any batch."""
    height, width = canvas
    images, targets = [], []
    for index in range(first, first + count):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        image = torch.randint(0, 60, (3, height, width), generator=generator, dtype=torch.uint8)
        corners = torch.randint(0, 30, (boxes, 2), generator=generator).float()
        corners[:, 0] += width - CANVAS[1]
        sides = torch.randint(12, 34, (boxes, 2), generator=generator).float()
        found = torch.cat([corners, corners + sides], dim=1)
        for x1, y1, x2, y2 in found.int().tolist():
            image[:, y1:y2, x1:x2] += 120
        labels = torch.randint(1, 3, (boxes,), generator=generator)
        images.append(image)
        targets.append({"boxes": found.to(dtype), "labels": labels})
    numbers = range(first, first + count)
    stacked = torch.stack(images) if images else torch.zeros((0, 3, *canvas), dtype=torch.uint8)
    return Batch(
        stacked.contiguous(memory_format=torch.channels_last),
        sizes=[canvas] * count,
        targets=targets,
        image_ids=numbers,
        paths=[f"image_{number}.png" for number in numbers],
        seeds=[77 + number for number in numbers],
    )


def make_trainer(
    model: FasterRCNN, recipe: Recipe = SGD, *, folder: Path = Path(), **changes: Any
) -> Trainer:
    """Alone on the CPU, with ten steps an epoch; pixels come in the precision of the weights."""
    settings = {"ranks": Ranks(0, 1, CPU), "folder": folder, **changes}
    trainer = Trainer(model, recipe, CPU, 10, **settings)
    dtype, inputs = next(model.parameters()).dtype, trainer._inputs

    def in_precision_of_the_weights(part: Batch) -> tuple:
        images, *others = inputs(part)
        return images.to(dtype), *others

    trainer._inputs = in_precision_of_the_weights
    return trainer


def gradients(trainer: Trainer, batch: Batch) -> dict[str, torch.Tensor]:
    """What one step would be made with; the weights stay."""
    with trainer.training():
        trainer._backward_whatever_it_takes(batch)
    return {
        name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None
    }
