"""Hands videos to a cluster, a few more than it has room for, and those that fail once more."""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phase3_tracking.fleet.task import Order, Outcome

TICK_S = 0.5  # between looks at the cluster
BACKOFF_S, LONGEST_BACKOFF_S = 2.0, 60.0
AHEAD = 2  # tasks for each place: the next one waits on the node, and not for the driver


class Cluster(Protocol):
    """What can run tasks; see ray_cluster.py."""

    def places(self) -> int:
        """How many tasks run at a time."""

    def submit(self, order: Order) -> Any:
        """Starts a task as soon as there is a place; what is returned stands for it."""

    def finished(self, tasks: Sequence[Any], timeout_s: float) -> list[tuple[Any, Outcome]]:
        """Those that have ended, at the latest after the timeout."""


@dataclass(frozen=True)
class Finished:
    """A video with its last outcome.

    Attributes:
        attempts: from 1.
    """

    order: Order
    outcome: Outcome
    attempts: int


def backoff_s(attempts: int) -> float:
    """How long to wait after so many attempts, in seconds: 2, 4, 8, ... 60."""
    return min(BACKOFF_S * 2 ** (attempts - 1), LONGEST_BACKOFF_S)


def run_orders(
    cluster: Cluster,
    orders: Sequence[Order],
    retries: int,
    on_tick: Callable[[int], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Finished]:
    """Each video once it is done, or has failed for good.

    Args:
        retries: further attempts for one that fails, whatever the reason: a disk of the network
            comes back, and a damaged video is refused quickly.
        on_tick: called with the number of tasks in work, every TICK_S or more often; what it raises
            ends the loop.
    """
    ready = deque((order, 1) for order in orders)
    delayed: list[tuple[float, int, Order, int]] = []
    running: dict[Any, tuple[Order, int]] = {}
    serial = itertools.count()  # of two that are due together the earlier one is first
    while ready or delayed or running:
        while delayed and delayed[0][0] <= clock():
            _, _, order, attempt = heapq.heappop(delayed)
            ready.appendleft((order, attempt))
        places = cluster.places()
        while ready and len(running) < AHEAD * places:
            order, attempt = ready.popleft()
            running[cluster.submit(order)] = (order, attempt)
        on_tick(min(len(running), places))
        if not running:
            sleep(TICK_S)
            continue
        for task, outcome in cluster.finished(list(running), TICK_S):
            order, attempt = running.pop(task)
            if outcome.error is not None and attempt <= retries:
                due = clock() + backoff_s(attempt)
                heapq.heappush(delayed, (due, next(serial), order, attempt + 1))
            else:
                yield Finished(order, outcome, attempt)
