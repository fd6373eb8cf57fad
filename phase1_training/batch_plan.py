"""Which images are read together at every step, planned for a whole epoch before it starts.

Images of similar aspect ratio share a batch, and a batch is padded to a canvas of a short list:
cudnn.benchmark, torch.compile, CUDA graphs and the memory allocator meet the same few shapes again
and again. The plan depends on the data, the seed and the epoch only, so a continued run skips the
steps it has done, and every process of a distributed run knows the plan of all.
"""

from typing import NamedTuple

import numpy as np

from common.coco import CocoSplit

MAX_GROUPS = 4  # of aspect ratios; each adds shapes, and a fifth would save little padding
STRIDE = 32  # sides of a canvas are multiples of it, as torchvision pads


class PlannedBatch(NamedTuple):
    """What one process reads at one step: keys only, small enough to be sent to a loader process.

    Attributes:
        indices: into `split.records`; empty where the last images are fewer than the processes.
        min_size: short side the images are resized to, pixels.
        canvas: (height, width) they are padded to, pixels.
        epoch: settles the augmentation together with the seed and the index.
    """

    indices: tuple[int, ...]
    min_size: int
    canvas: tuple[int, int]
    epoch: int


def plan_epoch(
    split: CocoSplit,
    *,
    batch_size: int,
    min_sizes: tuple[int, ...],
    max_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[PlannedBatch]:
    """The batches of one epoch for one of `world_size` processes, in the order of the steps.

    A step takes `batch_size * world_size` images, every `world_size`-th of them goes to process
    `rank`. All processes have equally many batches and together every image once; one step of the
    epoch, not always the last, takes the images that are left over.

    Args:
        batch_size: images per process and step.
        min_sizes: short sides after the resize, pixels; one is drawn for each step.
        max_size: longest side after the resize, pixels.
    """
    global_batch = batch_size * world_size
    sizes = _image_sizes(split)
    groups = _group_by_shape(sizes, min_sizes, max_size)
    canvases = [_canvases(sizes, groups, side, max_size, global_batch) for side in min_sizes]
    rng = np.random.default_rng((seed % 2**64, epoch))
    order = rng.permutation(len(sizes))
    order = order[np.argsort(groups[order], kind="stable")]
    scales = rng.integers(len(min_sizes), size=len(canvases[0]))
    plan = []
    for step in rng.permutation(len(scales)).tolist():
        images = order[step * global_batch : (step + 1) * global_batch]
        height, width = canvases[scales[step]][step].tolist()
        indices = tuple(images[rank::world_size].tolist())
        plan.append(PlannedBatch(indices, min_sizes[scales[step]], (height, width), epoch))
    return plan


def distinct_shapes(
    split: CocoSplit,
    *,
    batch_size: int,
    min_sizes: tuple[int, ...],
    max_size: int,
    world_size: int = 1,
) -> list[tuple[int, int]]:
    """Every canvas (height, width) that a plan with these settings can hold, the largest last.

    They are at most `len(min_sizes) * MAX_GROUPS * (MAX_GROUPS + 1) / 2`, whatever the data.
    """
    sizes = _image_sizes(split)
    groups = _group_by_shape(sizes, min_sizes, max_size)
    global_batch = batch_size * world_size
    shapes = {
        (height, width)
        for side in min_sizes
        for height, width in _canvases(sizes, groups, side, max_size, global_batch).tolist()
    }
    return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))


def _image_sizes(split: CocoSplit) -> np.ndarray:
    """(N, 2) heights and widths, int64."""
    return np.array([(record.height, record.width) for record in split.records], dtype=np.int64)


def _padded(sizes: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    """The resized sizes, (N, 2), rounded up to multiples of the stride."""
    short, long = sizes.min(axis=1, keepdims=True), sizes.max(axis=1, keepdims=True)
    resized = np.minimum(sizes * min_size // short, sizes * max_size // long)  # `resized_size`
    return -(-np.maximum(resized, 1) // STRIDE) * STRIDE


def _canvases(
    sizes: np.ndarray, groups: np.ndarray, min_size: int, max_size: int, global_batch: int
) -> np.ndarray:
    """The canvas (height, width) of every batch when the images stand in order of their groups.

    Where a group ends inside a batch, the batch goes on with the next group, and its canvas holds
    every image of either: it is the same in every epoch, whichever images meet in the batch.
    """
    padded = _padded(sizes, min_size, max_size)
    of_group = np.stack([padded[groups == k].max(axis=0) for k in range(groups.max() + 1)])
    in_order = np.sort(groups)
    starts = np.arange(0, len(sizes), global_batch)
    firsts, lasts = in_order[starts], in_order[np.minimum(starts + global_batch, len(sizes)) - 1]
    ranges, batches = np.unique(np.stack([firsts, lasts], 1), axis=0, return_inverse=True)
    of_range = np.stack([of_group[first : last + 1].max(axis=0) for first, last in ranges])
    return of_range[batches.reshape(-1)]


def _group_by_shape(sizes: np.ndarray, min_sizes: tuple[int, ...], max_size: int) -> np.ndarray:
    """(N,) group of each image, from 0, tall to wide: at most MAX_GROUPS groups, cut where the
    padded area at the largest scale is least."""
    kinds, kind_of, counts = np.unique(
        _padded(sizes, max(min_sizes), max_size), axis=0, return_inverse=True, return_counts=True
    )
    order = np.argsort(kinds[:, 1] - kinds[:, 0], kind="stable")
    place = np.argsort(order)[kind_of.reshape(-1)]  # of the image's kind among all, tall to wide
    starts = _least_padding(kinds[order], counts[order], MAX_GROUPS)
    return np.searchsorted(starts, place, side="right") - 1


def _least_padding(kinds: np.ndarray, counts: np.ndarray, group_count: int) -> list[int]:
    """Cuts kinds of images, (K, 2) sizes in order, into at most `group_count` runs so that the
    area is least when every image is padded to what holds its run. Dynamic programming.

    Returns:
        Where the runs start.
    """
    total = len(kinds)
    area = np.full((total + 1, total + 1), np.inf)  # area[i, j]: of all images of kinds[i:j]
    np.fill_diagonal(area, 0)
    for i in range(total):
        area[i, i + 1 :] = np.maximum.accumulate(kinds[i:]).prod(axis=1) * counts[i:].cumsum()
    least = area[0]  # least[j]: of kinds[:j] in one run, then in two, ...
    cuts = []
    for _ in range(group_count - 1):
        with_last_run = least[:, None] + area
        cuts.append(with_last_run.argmin(axis=0))
        least = with_last_run.min(axis=0)
    starts, end = {0}, total
    for cut in reversed(cuts):
        end = int(cut[end])
        starts.add(end)
    return sorted(starts - {total})
