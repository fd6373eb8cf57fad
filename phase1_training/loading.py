"""The batches of a run, epoch by epoch, from one set of loader processes."""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader

from common.cli import UserError
from common.coco import CocoSplit
from phase1_training.augmentation import TrainTransform
from phase1_training.batch import Batch
from phase1_training.batch_plan import PlannedBatch, distinct_shapes, plan_epoch
from phase1_training.batch_reader import BatchReader


class TrainingLoader:
    """Reads the batches of every epoch of a run with one set of loader processes.

    Args:
        split: the training images.
        batch_size: images per training process and step.
        min_sizes: short sides after the resize, pixels; one is drawn for each step.
        max_size: longest side after the resize, pixels.
        crop_probability: how often a random part of an image is taken.
        color_jitter: largest relative change of brightness, contrast and saturation.
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
        color_jitter: float,
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
            BatchReader(  # type: ignore[arg-type]
                split, max_size, TrainTransform(crop_probability, color_jitter), seed
            ),
            batch_size=None,  # an item is a batch already
            sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_begin_loader_process,
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
        if self.workers and not self._processes:
            gc.collect()  # see _begin_loader_process
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

    def _checked(self, batches: Iterator[Batch | UserError]) -> Iterator[Batch]:
        while True:
            with self._ended_processes_told(), _one_thread(when=self.workers == 0):
                batch = next(batches, None)
            if batch is None:
                return
            if isinstance(batch, UserError):
                raise batch
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
    stopped_by = -(exit_code or 0)
    if stopped_by == getattr(signal, "SIGBUS", None):
        what = "a loader process found no shared memory left"
        return what, "use fewer --workers, or enlarge /dev/shm (docker run --shm-size=8g)"
    if stopped_by == getattr(signal, "SIGKILL", None):
        what = "a loader process was killed, as the system does when memory runs out"
        return what, "use fewer --workers or a smaller --batch-size"
    what = f"a loader process ended unexpectedly (exit status {exit_code})"
    return what, "use --workers 0, which shows the cause"


def _begin_loader_process(worker_id: int) -> None:
    """Leaves to the main process what is its own: stopping, and what it has thrown away.

    Ctrl-C and a signal to the process group (from `timeout`, for instance) reach every process of
    the run; the main one still needs its loaders, to finish the step and save. And a forked process
    must not free what it inherits: a decoder of video, for one, waits for its threads, which no
    fork takes along.
    """
    gc.freeze()
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
