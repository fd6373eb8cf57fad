"""Which video runs when; on a cluster whose time the test turns."""

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase3_tracking.fleet.dispatch import (
    AHEAD,
    NO_NODE_S,
    TICK_S,
    NoNodeError,
    backoff_s,
    run_orders,
)
from phase3_tracking.fleet.plan import Video
from phase3_tracking.fleet.task import Order, Outcome


def orders(count: int) -> list[Order]:
    videos = (Video(f"{i}.mp4", f"{i}_tracked.mp4", Path(f"{i}.mp4")) for i in range(count))
    return [Order(video, argparse.Namespace(), (), Path()) for video in videos]


@dataclass
class MadeUpCluster:
    """Each task takes a second; a video fails as often as `failures` says."""

    size: int
    failures: dict[str, int] = field(default_factory=dict)
    now: float = 0.0
    begun: list[tuple[float, str]] = field(default_factory=list)
    tasks: dict[int, str] = field(default_factory=dict)
    most: int = 0

    def places(self) -> int:
        return self.size

    def submit(self, order: Order) -> int:
        self.begun.append((self.now, order.video.text))
        self.tasks[len(self.begun)] = order.video.text
        self.most = max(self.most, len(self.tasks))
        return len(self.begun)

    def finished(self, tasks, timeout_s):
        assert set(tasks) == set(self.tasks)
        self.now += 1.0
        done = sorted(tasks)[: self.size]
        return [(task, self._outcome(self.tasks.pop(task))) for task in done]

    def _outcome(self, text: str) -> Outcome:
        attempts = sum(name == text for _, name in self.begun)
        if attempts <= self.failures.get(text, 0):
            return Outcome(error=f"attempt {attempts}")
        return Outcome(row={"attempts": attempts})

    def sleep(self, seconds: float) -> None:
        assert not self.tasks
        self.now += seconds

    def run(self, count: int, retries: int, on_tick=lambda running: None):
        clock = {"clock": lambda: self.now, "sleep": self.sleep}
        return list(run_orders(self, orders(count), retries, on_tick, **clock))


def test_all_run_in_order_and_no_more_than_there_is_room_for():
    cluster, told = MadeUpCluster(size=2), []
    done = cluster.run(7, 0, told.append)
    assert [one.order.video.text for one in done] == [f"{i}.mp4" for i in range(7)]
    assert all(one.attempts == 1 and one.outcome.error is None for one in done)
    assert cluster.most == 2 * AHEAD
    assert told == [2, 2, 2, 1]  # running at a time; what waits on a node does not count


def test_one_that_fails_waits_and_comes_again_while_the_others_run():
    cluster = MadeUpCluster(size=1, failures={"0.mp4": 2})
    done = cluster.run(9, 3)
    assert [time for time, text in cluster.begun if text == "0.mp4"] == [0.0, 3.0, 9.0]
    assert [one.attempts for one in done if one.order.video.text == "0.mp4"] == [3]
    assert len(done) == 9


def test_one_that_goes_on_failing_is_given_up():
    cluster = MadeUpCluster(size=1, failures={"0.mp4": 99})
    (one,) = cluster.run(1, 2)
    assert (one.attempts, one.outcome.error) == (3, "attempt 3")
    times = [time for time, _ in cluster.begun]
    for earlier, later, attempt in zip(times, times[1:], (1, 2), strict=False):
        assert 1 + backoff_s(attempt) <= later - earlier < 1 + backoff_s(attempt) + TICK_S


def test_the_pause_doubles_up_to_a_minute():
    assert [backoff_s(attempt) for attempt in range(1, 8)] == [2, 4, 8, 16, 32, 60, 60]


def test_what_a_tick_raises_ends_the_loop():
    def stop(running: int) -> None:
        if len(cluster.begun) > 3:
            raise KeyboardInterrupt

    cluster = MadeUpCluster(size=1)
    with pytest.raises(KeyboardInterrupt):
        cluster.run(9, 0, stop)
    assert len(cluster.begun) == 4


@dataclass
class VanishingCluster(MadeUpCluster):
    """Without nodes in some span of time: what is in work then stays there, without an end."""

    gone: tuple[float, float] = (0.0, 0.0)

    def places(self) -> int:
        return 0 if self.gone[0] <= self.now < self.gone[1] else self.size

    def finished(self, tasks, timeout_s):
        if self.places():
            return super().finished(tasks, timeout_s)
        self.now += timeout_s
        return []


@pytest.mark.parametrize("begin", [0.0, 1.0])
def test_a_cluster_whose_nodes_are_gone_for_good_is_given_up(begin, caplog):
    """Before the first task, and with tasks that never end: 10 minutes after the last node."""
    cluster = VanishingCluster(size=1, gone=(begin, 1e9))
    with pytest.raises(NoNodeError, match=r"^Ray: no node .* for 10 minutes – see `ray status`"):
        cluster.run(5, 0)
    assert cluster.now == begin + NO_NODE_S
    assert [record.message for record in caplog.records] == [
        "No node of the cluster has room for a task; waiting 10 minutes for one"
    ]


def test_nodes_that_come_back_in_time_go_on(caplog):
    cluster = VanishingCluster(size=2, gone=(1.0, NO_NODE_S))
    assert len(cluster.run(6, 0)) == 6
    assert "There is room again: 2 tasks at a time" in caplog.messages


@given(
    size=st.integers(1, 5),
    failures=st.lists(st.integers(0, 4), max_size=12),
    retries=st.integers(0, 3),
)
def test_every_video_ends_once_and_is_tried_as_often_as_allowed(size, failures, retries):
    wanted = {f"{i}.mp4": count for i, count in enumerate(failures)}
    cluster = MadeUpCluster(size, wanted)
    done = cluster.run(len(failures), retries)
    assert Counter(one.order.video.text for one in done) == Counter(wanted.keys())
    tries = Counter(text for _, text in cluster.begun)
    for one in done:
        count = wanted[one.order.video.text]
        assert one.attempts == tries[one.order.video.text] == min(count, retries) + 1
        assert (one.outcome.error is None) == (count <= retries)
