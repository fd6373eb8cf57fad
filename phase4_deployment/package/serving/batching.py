"""Images from many requests in one inference.

One thread runs the detector. Images of one size share a batch, so nothing is padded and the boxes
are those that the same batch has elsewhere.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Detect = Callable[["Sequence[np.ndarray]"], "Sequence[np.ndarray]"]


@dataclass(eq=False)
class Job:
    """An image that waits for its detections."""

    image: "np.ndarray"
    found: "Future[np.ndarray]" = field(default_factory=Future)
    arrived_s: float = field(default_factory=time.monotonic)


class Batcher:
    """Context manager: collects images and detects in them, in a thread of its own.

    A batch has the size of the image that has waited longest. It starts when it is full, or when
    that image has waited `wait_s`: while the detector works images gather, so under load nobody
    waits for company.

    Args:
        detect: images -> detections of each; called with at most `batch_size` images of one size.
        batch_size: images of one inference.
        wait_s: the longest that an image waits for others, in seconds.
        on_batch: told the number of images and the seconds of every inference.
    """

    def __init__(
        self,
        detect: Detect,
        batch_size: int,
        wait_s: float,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ):
        self._detect, self._on_batch = detect, on_batch
        self.batch_size, self._wait_s = batch_size, wait_s
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="detector", daemon=True)

    def __enter__(self) -> "Batcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Answers what was submitted; the thread has ended afterwards."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, image: "np.ndarray") -> "Future[np.ndarray]":
        """Detections to be of an image (H, W, 3); cancelled in time, it costs nothing.

        Raises:
            RuntimeError: the block has ended.
        """
        job = Job(image)
        job.found.add_done_callback(self._forget)  # which holds no image
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the detector's thread has ended")
            self._jobs.append(job)
            self._changed.notify()
        return job.found

    def _forget(self, found: "Future[np.ndarray]") -> None:
        """Lets go of an image nobody waits for, also while the detector is stuck in another."""
        if found.cancelled():
            with self._changed:
                self._jobs = deque(job for job in self._jobs if job.found is not found)

    def _work(self) -> None:
        while self._answer_next():
            pass

    def _answer_next(self) -> bool:
        """Waits for a batch and answers it; whether there was one. Nothing of it stays behind."""
        batch = self._next_batch()
        wanted = [job for job in batch if job.found.set_running_or_notify_cancel()]
        if wanted:
            self._answer(wanted)
        return bool(batch)

    def _next_batch(self) -> list[Job]:
        """Waits for a batch; empty at the end."""
        with self._changed:
            while True:
                if self._jobs:
                    batch, rest_s = self._first_size()
                    if len(batch) == self.batch_size or rest_s <= 0 or self._is_closed:
                        for job in batch:
                            self._jobs.remove(job)
                        return batch
                    self._changed.wait(rest_s)
                elif self._is_closed:
                    return []
                else:
                    self._changed.wait()

    def _first_size(self) -> tuple[list[Job], float]:
        """Images of the first one's size, and the seconds it may still wait."""
        first = self._jobs[0]
        same = [job for job in self._jobs if job.image.shape == first.image.shape]
        return same[: self.batch_size], first.arrived_s + self._wait_s - time.monotonic()

    def _answer(self, batch: list[Job]) -> None:
        """Detects; when that fails, in each image alone, so that one cannot spoil the others'."""
        start = time.monotonic()
        try:
            answers = list(zip(batch, self._detect([job.image for job in batch]), strict=True))
            self._on_batch(len(batch), time.monotonic() - start)
            for job, one in answers:
                job.found.set_result(one)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next batch gets its turn
            if len(batch) == 1:
                batch[0].found.set_exception(error)
                return
            for job in batch:
                self._answer([job])
