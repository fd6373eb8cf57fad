"""Batches for training, read and augmented in loader processes.

What a sample looks like depends on the seed, the epoch and its index in the data alone: neither
the number of loader processes, nor that of training processes, nor where an interrupted run goes
on changes a pixel.
"""

import contextlib
import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from common.cli import UserError
from common.coco import COCODataset, CocoSplit, ImageRecord
from common.models import resized_size
from phase1_training.augmentation import TrainTransform
from phase1_training.batch_plan import PlannedBatch, distinct_shapes, plan_epoch


class Batch:
    """Images padded to one canvas and their ground truth, in three tensors. It may be empty.

    Attributes:
        images: uint8 (B, 3, H, W), channels last, zero right of and below each image.
        sizes: (height, width) of each image inside the canvas.
        boxes, labels: of all images one after the other, see `targets`.
        box_counts: how many boxes each image has.
        image_ids: as in the annotations.
        paths: the files, for messages.
        seeds: for proposal sampling, one per image, 0 <= seed < 2**63.
    """

    def __init__(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]],
        image_ids: Sequence[int],
        paths: Sequence[str],
        seeds: Sequence[int],
    ):
        self.images = images
        self.sizes = tuple(sizes)
        self.boxes = torch.cat([t["boxes"] for t in targets]) if targets else torch.zeros(0, 4)
        self.labels = (
            torch.cat([t["labels"] for t in targets])
            if targets
            else torch.zeros(0, dtype=torch.int64)
        )
        self.box_counts = tuple(len(target["boxes"]) for target in targets)
        self.image_ids = tuple(image_ids)
        self.paths = tuple(paths)
        self.seeds = tuple(seeds)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def targets(self) -> list[dict[str, Tensor]]:
        """`boxes` float32 (N, 4), xyxy pixels, and `labels` int64 (N,), from 1, of each image:
        views of the packed tensors."""
        boxes, labels = self.boxes.split(self.box_counts), self.labels.split(self.box_counts)
        return [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]

    def to(self, device: torch.device) -> "Batch":
        """On a device: three copies, which the host does not wait for if the memory is pinned."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """In page-locked memory; DataLoader calls it in a thread of its own."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        batch = copy.copy(self)
        batch.images, batch.boxes = change(self.images), change(self.boxes)
        batch.labels = change(self.labels)
        return batch

    def part(self, start: int, stop: int) -> "Batch":
        """Images `start` to `stop` on the same canvas, as views: a micro-batch."""
        boxes = slice(sum(self.box_counts[:start]), sum(self.box_counts[:stop]))
        part = copy.copy(self)
        part.boxes, part.labels = self.boxes[boxes], self.labels[boxes]
        for name in ("images", "sizes", "box_counts", "image_ids", "paths", "seeds"):
            setattr(part, name, getattr(self, name)[start:stop])
        return part


class TrainingLoader:
    """Reads the batches of every epoch of a run with one set of loader processes.

    Args:
        split: the training images.
        batch_size: images per training process and step.
        min_sizes: short sides after the resize, pixels; one is drawn for each step.
        max_size: longest side after the resize, pixels.
        crop_probability: how often a random part of an image is taken.
        seed: settles order, scales and augmentation, together with the epoch.
        workers: loader processes; 0 reads in this one.
        pin_memory: whether batches arrive in page-locked memory, for a CUDA device.
        rank, world_size: which of how many training processes this is.
    """

    def __init__(
        self,
        split: CocoSplit,
        *,
        batch_size: int,
        min_sizes: tuple[int, ...],
        max_size: int,
        crop_probability: float,
        seed: int,
        workers: int,
        pin_memory: bool,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.batches_per_epoch = -(-len(split.records) // (batch_size * world_size))
        self.workers = workers
        self._plan_epoch = partial(
            plan_epoch,
            split,
            batch_size=batch_size,
            min_sizes=min_sizes,
            max_size=max_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        self._shapes = partial(
            distinct_shapes,
            split,
            batch_size=batch_size,
            min_sizes=min_sizes,
            max_size=max_size,
            world_size=world_size,
        )
        self._plan: list[PlannedBatch] = []
        self._processes: list[BaseProcess] = []
        self._loader: DataLoader = DataLoader(
            _BatchReader(split, max_size, crop_probability, seed),  # type: ignore[arg-type]
            batch_size=None,  # an item is a batch already
            sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_leave_stopping_to_the_main_process,
            generator=torch.Generator(),  # the workers' base seed is not drawn from the global one
        )

    def shapes(self) -> list[tuple[int, int]]:
        """Every padded (height, width) a batch of the run can have, the largest last."""
        return self._shapes()

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `first_batch` on. Reading starts at once, ahead of the
        first batch asked for, and ends what an earlier epoch has left unread.

        Raises:
            UserError: while iterating, for an image that cannot be read or a loader process that
                was killed.
        """
        self._plan[:] = self._plan_epoch(epoch=epoch)[first_batch:]
        with self._ended_processes_told(), _sigchld_untouched():
            others = multiprocessing.active_children()
            batches = iter(self._loader)
            if not self._processes:
                started = multiprocessing.active_children()
                self._processes = [process for process in started if process not in others]
        return self._checked(batches)

    def close(self) -> None:
        """Ends the loader processes; another epoch would start new ones."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
        self._processes = []

    def _checked(self, batches: Iterator[Batch | str]) -> Iterator[Batch]:
        while True:
            with self._ended_processes_told(), _one_thread(when=self.workers == 0):
                batch = next(batches, None)
            if batch is None:
                return
            if isinstance(batch, str):
                raise UserError.__new__(UserError, batch)  # its text is complete
            yield batch

    @contextlib.contextmanager
    def _ended_processes_told(self) -> Iterator[None]:
        """DataLoader's many errors about a loader process that is gone become one UserError."""
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            gone = wait([process.sentinel for process in self._processes], timeout=1)
            codes = [p.exitcode for p in self._processes if p.sentinel in gone]
            if not codes:
                raise
            raise UserError(f"--workers {self.workers}", *_why_it_ended(codes[0])) from error


def _why_it_ended(exit_code: int | None) -> tuple[str, str]:
    """What happened to a loader process, and what to do."""
    if exit_code == -getattr(signal, "SIGBUS", 0):
        what = "a loader process found no shared memory left"
        return what, "use fewer --workers, or enlarge /dev/shm (docker run --shm-size=8g)"
    if exit_code == -getattr(signal, "SIGKILL", 0):
        what = "a loader process was killed, as the system does when memory runs out"
        return what, "use fewer --workers or a smaller --batch-size"
    what = f"a loader process ended by itself (exit status {exit_code})"
    return what, "use --workers 0, which shows the cause"


def _leave_stopping_to_the_main_process(worker_id: int) -> None:
    """Ctrl-C and a signal to the process group (from `timeout`, for instance) reach every process
    of the run; the main one still needs its loaders, to finish the step and save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


@contextlib.contextmanager
def _sigchld_untouched() -> Iterator[None]:
    """DataLoader's handler for ended loaders would raise anywhere in the main process, while a
    checkpoint is saved for instance. Without it, `next` finds out by itself within seconds."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


@contextlib.contextmanager
def _one_thread(*, when: bool) -> Iterator[None]:
    """Loader processes compute with one thread. The mean that contrast is changed about depends on
    the number of threads in its last bits, so reading in this process does the same."""
    threads = torch.get_num_threads()
    if when:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if when:
            torch.set_num_threads(threads)


# --- in the loader process --------------------------------------------------------------------


class _BatchReader:
    """A data set of batches: its index is a PlannedBatch. A UserError comes back as text: raised in
    a loader process, it would arrive as a RuntimeError with a traceback inside."""

    def __init__(self, split: CocoSplit, max_size: int, crop_probability: float, seed: int):
        self.images = COCODataset(split)
        self.images.records = PackedRecords(split.records)
        self.transform = TrainTransform(crop_probability)
        self.max_size = max_size
        self.seed = seed

    def __getitem__(self, planned: PlannedBatch) -> Batch | str:
        shape = (len(planned.indices), 3, *planned.canvas)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last).zero_()
        records = [self.images.records[index] for index in planned.indices]
        sizes, targets, seeds = [], [], []
        try:
            for padded, index in zip(images, planned.indices, strict=True):
                image, target, seed = self._sample(index, planned)
                padded[:, : image.shape[1], : image.shape[2]] = image
                sizes.append((image.shape[1], image.shape[2]))
                targets.append(target)
                seeds.append(seed)
        except UserError as error:
            return str(error)
        image_ids = [record.image_id for record in records]
        return Batch(images, sizes, targets, image_ids, [str(r.path) for r in records], seeds)

    def _sample(self, index: int, planned: PlannedBatch) -> tuple[Tensor, dict[str, Tensor], int]:
        image, target = self.images[index]
        height, width = image.shape[1:]
        size = resized_size(height, width, planned.min_size, self.max_size)
        augmentation_seed, sampling_seed = sample_seeds(self.seed, planned.epoch, index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(augmentation_seed)  # and no CUDA generator
            image, target = self.transform(image, target, size)
        return image, target, sampling_seed


def sample_seeds(seed: int, epoch: int, index: int) -> tuple[int, int]:
    """Two independent seeds of a sample in an epoch, 0 <= seed < 2**63: of its augmentation and of
    its proposal sampling."""
    sequence = np.random.SeedSequence((seed % 2**64, epoch, index))
    first, second = sequence.generate_state(2, np.uint64).tolist()
    return first >> 1, second >> 1


class PackedRecords(Sequence[ImageRecord]):
    """The records of a split in a few flat arrays; a record is made when it is asked for.

    A forked process shares the parent's memory until a page is written to, and merely looking at a
    Python object writes its reference count: with a record of six objects per image, every loader
    process would come to hold a copy of the annotations.
    """

    def __init__(self, records: Sequence[ImageRecord]):
        paths = [os.fsencode(record.path) for record in records]
        self.image_ids = tuple(record.image_id for record in records)  # of any size, so no array
        self.sizes = np.array([(r.width, r.height) for r in records], dtype=np.int64)
        self.paths = np.frombuffer(b"".join(paths), dtype=np.uint8)
        self.path_ends = np.cumsum([0, *map(len, paths)])
        self.box_ends = np.cumsum([0, *(len(record.labels) for record in records)])
        self.boxes_xyxy = np.concatenate([r.boxes_xyxy for r in records])
        self.labels = np.concatenate([r.labels for r in records])
        self.is_crowd = np.concatenate([r.is_crowd for r in records])
        self.areas = np.concatenate([r.areas for r in records])

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index):
        path = self.paths[self.path_ends[index] : self.path_ends[index + 1]].tobytes()
        boxes = slice(self.box_ends[index], self.box_ends[index + 1])
        width, height = self.sizes[index].tolist()
        return ImageRecord(
            self.image_ids[index],
            Path(os.fsdecode(path)),
            width,
            height,
            self.boxes_xyxy[boxes],
            self.labels[boxes],
            self.is_crowd[boxes],
            self.areas[boxes],
        )
