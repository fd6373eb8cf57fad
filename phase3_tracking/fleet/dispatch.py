"""Hands videos to a cluster, a few more than it has room for, and those that fail once more."""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from common.cli import UserError, log
from phase3_tracking.fleet.task import Order, Outcome

TICK_S = 0.5  # between looks at the cluster
BACKOFF_S, LONGEST_BACKOFF_S = 2.0, 60.0
NO_NODE_S = 600.0  # how long a cluster may be without a node that has room for a task
AHEAD = 2  # tasks for each place: the next one waits on the node, and not for the driver


class NoNodeError(UserError):
    """The cluster has lost its nodes, and none came back."""


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


class _NodeWatch:
    """Tells when the last node goes, and ends the run when none comes back."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._gone_since: float | None = None

    def look(self, places: int) -> None:
        """Raises NoNodeError when there has been no place for NO_NODE_S."""
        if places:
            if self._gone_since is not None:
                log.warning("There is room again: %d tasks at a time", places)
            self._gone_since = None
            return
        minutes = f"{NO_NODE_S / 60:g} minutes"
        if self._gone_since is None:
            self._gone_since = self._clock()
            log.warning("No node of the cluster has room for a task; waiting %s for one", minutes)
        elif self._clock() - self._gone_since >= NO_NODE_S:
            what = f"no node of the cluster had room for a task for {minutes}"
            remedy = "see `ray status`, start nodes, and repeat the command"
            raise NoNodeError("Ray", what, remedy)


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

    Raises:
        NoNodeError: no node had room for a task for NO_NODE_S; what waits or runs is given up.
    """
    ready = deque((order, 1) for order in orders)
    delayed: list[tuple[float, int, Order, int]] = []
    running: dict[Any, tuple[Order, int]] = {}
    watch = _NodeWatch(clock)
    serial = itertools.count()  # of two that are due together the earlier one is first
    while ready or delayed or running:
        while delayed and delayed[0][0] <= clock():
            _, _, order, attempt = heapq.heappop(delayed)
            ready.appendleft((order, attempt))
        places = cluster.places()
        watch.look(places)
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
