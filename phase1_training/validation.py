"""What a model is worth between two epochs: detections, COCO mAP and the validation loss.

A torchvision detector returns detections in evaluation mode and losses in training mode, so the
loss on the validation images usually costs a second pass, with BatchNorm statistics that change.
Here one pass of the backbone in evaluation mode serves both.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.models.detection import FasterRCNN

from common import cli, evaluation
from common.cli import UserError
from common.coco import CocoSplit, ImageRecord, read_image
from common.models import Detections, resized_size
from common.training_losses import LOSS_NAMES, LossSums, training_losses

if TYPE_CHECKING:
    from phase1_training.distributed import Ranks

BATCH_SIZE = 4
BATCHES_AHEAD = 4  # decoded while the model is busy


@dataclass(frozen=True)
class Validation:
    """A model on a validation split.

    Attributes:
        scores: `map`, `map_50`, `map_75` (0.0 where there is no box to find), `per_class` and
            `images`, see `evaluation.coco_map`.
        losses: torchvision's four losses and `loss`, their sum. Each is what torchvision computes
            on the whole split as one batch: a mean over the sampled anchors or regions of all
            images, so neither the batch size nor the number of processes changes it.
        detections: one for each record of the split, in its order.
    """

    scores: dict[str, Any]
    losses: dict[str, float]
    detections: list[Detections]


def validate(
    model: FasterRCNN,
    split: CocoSplit,
    device: torch.device,
    *,
    ranks: "Ranks | None" = None,
    workers: int = 0,
    batch_size: int = BATCH_SIZE,
    after_batch: Callable[[], None] = lambda: None,
) -> Validation:
    """Detects on every image of a split and computes the loss there; the model stays as it is.

    The detections are those of torchvision's own forward pass, one image at a time: only images
    of the same resized size share a batch, so none is padded more than it would be alone. The
    anchors and regions of the loss are sampled with one seed per image, the same at every call,
    so the loss is comparable between epochs. Crowd regions are left out of the loss.

    Args:
        ranks: the processes that share the work; rank r takes every size-th record from r on,
            and all of them return the whole.
        workers: threads that decode images ahead, at least one.
        batch_size: images at a time.
        after_batch: called between two batches; what it raises ends the validation.

    Raises:
        UserError: an image cannot be read; on every rank, whichever met it.
    """
    rank, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
    batches = _batches(split.records, model, rank, size, batch_size)
    loaded = _decoded_ahead(split.records, batches, workers, pin=device.type == "cuda")
    found: dict[int, Detections] = {}
    rows = [torch.zeros(len(LOSS_NAMES) + 2, device=device)]
    error: UserError | None = None
    try:
        with _evaluation_mode(model), torch.no_grad():
            for indices, images in cli.progress(
                loaded, total=len(batches), label="validation batch"
            ):
                records = [split.records[index] for index in indices]
                detections, losses = _validate_batch(model, records, images, indices, device)
                found.update(zip(indices, detections, strict=True))
                sums = torch.stack([losses.sums[name] for name in LOSS_NAMES])
                rows.append(torch.cat((sums, losses.counts)))
                after_batch()
    except UserError as mistake:  # told to the other ranks first: they wait for this one's share
        error = mistake
    shares = [(found, torch.stack(rows).cpu().double().sum(dim=0).tolist(), error)]
    if ranks is not None:
        shares = [share for (share,) in ranks.gather(shares)]
    return _merged(split, shares)


def _merged(
    split: CocoSplit, shares: Sequence[tuple[dict[int, Detections], list[float], UserError | None]]
) -> Validation:
    for _, _, error in shares:
        if error is not None:
            raise error
    found = {index: detection for share, _, _ in shares for index, detection in share.items()}
    detections = [found[index] for index in range(len(split.records))]
    totals = torch.tensor([row for _, row, _ in shares], dtype=torch.float64).sum(dim=0)
    sums = dict(zip(LOSS_NAMES, totals[:-2], strict=True))
    losses = {name: float(loss) for name, loss in LossSums(sums, totals[-2:]).losses().items()}
    scores = evaluation.coco_map(split, detections)
    # A validation set without any box has no average precision: report 0, not a fault.
    scores = {key: 0.0 if value is None else value for key, value in scores.items()}
    return Validation(scores, {**losses, "loss": sum(losses.values())}, detections)


def _batches(
    records: Sequence[ImageRecord], model: FasterRCNN, rank: int, size: int, batch_size: int
) -> list[list[int]]:
    """Indices of this rank's records, those of one resized size together, the largest first: if
    the memory does not do, that shows at once."""
    transform = model.transform
    groups: dict[tuple[int, int], list[int]] = {}
    for index in range(rank, len(records), size):
        sides = (records[index].height, records[index].width)
        resized = resized_size(*sides, transform.min_size[-1], transform.max_size)
        groups.setdefault(resized, []).append(index)
    return [
        group[start : start + batch_size]
        for _, group in sorted(groups.items(), key=lambda item: -item[0][0] * item[0][1])
        for start in range(0, len(group), batch_size)
    ]


def _decoded_ahead(
    records: Sequence[ImageRecord], batches: Sequence[list[int]], workers: int, *, pin: bool
) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """Each batch with its images, uint8 (H, W, 3), while threads decode those that follow."""

    def decode(index: int) -> torch.Tensor:
        record = records[index]
        pixels = torch.from_numpy(read_image(record.path, (record.width, record.height)))
        return pixels.pin_memory() if pin else pixels

    pool = ThreadPoolExecutor(max(1, workers))
    waiting: deque = deque()
    try:
        for indices in batches:
            waiting.append((indices, [pool.submit(decode, index) for index in indices]))
            if len(waiting) > BATCHES_AHEAD:
                ready, images = waiting.popleft()
                yield ready, [image.result() for image in images]
        for ready, images in waiting:
            yield ready, [image.result() for image in images]
    finally:
        pool.shutdown(cancel_futures=True)


def _validate_batch(
    model: FasterRCNN,
    records: Sequence[ImageRecord],
    images: Sequence[torch.Tensor],
    seeds: Sequence[int],
    device: torch.device,
) -> tuple[list[Detections], LossSums]:
    """The steps of torchvision's `GeneralizedRCNN.forward`, and the loss from the same features."""
    inputs = [
        image.to(device, non_blocking=True).permute(2, 0, 1).to(torch.float32) / 255
        for image in images
    ]
    resized, targets = model.transform(inputs, [_target(record, device) for record in records])
    features = model.backbone(resized.tensors)
    proposals, _ = model.rpn(resized, features)
    outputs, _ = model.roi_heads(features, proposals, resized.image_sizes)
    sizes = [(record.height, record.width) for record in records]
    outputs = model.transform.postprocess(outputs, resized.image_sizes, sizes)
    detections = [
        Detections(*(output[key].cpu().numpy() for key in ("boxes", "scores", "labels")))
        for output in outputs
    ]
    with _proposals_of_training(model.rpn):
        losses = training_losses(
            model, resized.tensors, resized.image_sizes, targets, seeds, features=features
        )
    return detections, losses


def _target(record: ImageRecord, device: torch.device) -> dict[str, torch.Tensor]:
    single = np.flatnonzero(~record.is_crowd)
    return {
        "boxes": torch.from_numpy(record.boxes_xyxy[single]).to(device, non_blocking=True),
        "labels": torch.from_numpy(record.labels[single]).to(device, non_blocking=True),
    }


@contextlib.contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def _proposals_of_training(rpn: torch.nn.Module) -> Iterator[None]:
    """As many proposals as in training. The flag of this one module is changed: normalisation
    layers inside it go on using their running statistics."""
    rpn.training = True
    try:
        yield
    finally:
        rpn.training = False
