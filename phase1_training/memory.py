"""How many images fit: probing training steps of the largest shape before a run starts."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.models.detection import FasterRCNN

from common import timing
from common.cli import UserError, log
from phase1_training.batch import Batch
from phase1_training.distributed import Ranks
from phase1_training.engine import Trainer
from phase1_training.recipe import Recipe

LARGEST = {"cuda": 64, "cpu": 16, "mps": 16}  # a CPU gets no faster with more images at a time
SHARE = 0.9  # of the memory that is free: allocators fragment
PROBE_STEPS = 2  # the second one has the optimizer's state in memory


def largest_batch_size(
    model: FasterRCNN,
    recipe: Recipe,
    ranks: Ranks,
    canvas: tuple[int, int],
    boxes_per_image: int,
) -> int:
    """The most images per step that a training of the largest shape has memory for.

    On a GPU steps are made until the memory runs out (doubling, then bisection); elsewhere, where
    that would take the machine down, the memory of one and of two images is extrapolated.

    Args:
        model: probed on a copy, with its gradients, optimizer state and average.
        canvas: the largest (height, width) of a padded batch, in pixels.
        boxes_per_image: the most ground-truth boxes of any image.

    Raises:
        UserError: not even one image fits.
    """
    device = ranks.device
    largest = LARGEST[device.type]

    def peak_mib(batch_size: int) -> float | None:
        return _probe(model, recipe, device, _worst_batch(batch_size, canvas, boxes_per_image))

    if device.type != "cuda":
        return _extrapolated(peak_mib, largest, timing.available_mib())
    free, _ = torch.cuda.mem_get_info(device)
    limit = SHARE * free / 2**20

    def fits(batch_size: int) -> bool:
        peak = peak_mib(batch_size)
        torch.cuda.empty_cache()
        return peak is not None and peak <= limit

    return _bisected(fits, largest)


def _bisected(fits: Callable[[int], bool], largest: int) -> int:
    if not fits(1):
        raise UserError(
            "--batch-size auto", "not even one image fits", "lower --min-size and --max-size"
        )
    good, bad = 1, largest + 1
    while good < largest and 2 * good < bad:
        if fits(2 * good):
            good *= 2
        else:
            bad = 2 * good
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def _extrapolated(
    peak_mib: Callable[[int], float | None], largest: int, available: float | None
) -> int:
    one, two = peak_mib(1), peak_mib(2)
    if one is None or two is None or available is None:
        log.warning("This system does not tell its memory: one image per step")
        return 1
    per_image = max(two - one, 1.0)
    room = SHARE * available - one
    return min(largest, max(1, 1 + int(room / per_image)))


def _probe(model: FasterRCNN, recipe: Recipe, device: torch.device, batch: Batch) -> float | None:
    """The memory two steps take beyond what is in use, in MiB; None when they run out of it."""
    timing.release_free_memory(device)
    before = _in_use(device)
    try:
        # A step of the probe that fails leaves its batch of noise in a folder that goes.
        with tempfile.TemporaryDirectory() as folder, timing.PeakMemory(device) as peak:
            trainer = Trainer(
                copy.deepcopy(model).to(device),
                recipe,
                device,
                1,
                ranks=Ranks(0, 1, device),
                folder=Path(folder),
            )
            trainer.train_epoch([batch] * PROBE_STEPS)
    except UserError:  # not even one image
        return None
    except RuntimeError as error:
        if not timing.is_out_of_memory(error):
            raise
        return None
    ran_out = bool(trainer.parts)
    return None if ran_out or peak.mib is None else peak.mib - before


def _in_use(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return timing.resident_mib() or 0.0


def _worst_batch(batch_size: int, canvas: tuple[int, int], boxes_per_image: int) -> Batch:
    """Noise with as many boxes as any image has, small ones everywhere."""
    height, width = canvas
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (batch_size, 3, height, width), generator=generator, dtype=torch.uint8
    )
    corners = torch.rand((boxes_per_image, 2), generator=generator)
    corners = corners * torch.tensor([width * 0.8, height * 0.8])
    boxes = torch.cat([corners, corners + torch.tensor([width * 0.2, height * 0.2])], dim=1)
    target = {"boxes": boxes, "labels": torch.ones(boxes_per_image, dtype=torch.int64)}
    return Batch(
        images.contiguous(memory_format=torch.channels_last),
        sizes=[canvas] * batch_size,
        targets=[target] * batch_size,
        image_ids=range(batch_size),
        paths=["a probe"] * batch_size,
        seeds=range(batch_size),
    )
