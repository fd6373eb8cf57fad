"""What Ray is asked for, without starting it."""

import socket

import pytest

from common.cli import UserError
from phase3_tracking.fleet import ray_cluster
from phase3_tracking.fleet.dispatch import NoNodeError
from phase3_tracking.fleet.ray_cluster import RayCluster


class MadeUpRay:
    """What `RayCluster` uses of the package."""

    def __init__(self, *nodes: dict):
        self._nodes = nodes

    def nodes(self):
        return [{"Alive": True, "Resources": resources} for resources in self._nodes]


def places(cpus: float, gpus: float, *nodes: dict) -> int:
    cluster = RayCluster("auto", cpus, gpus)
    cluster._ray = MadeUpRay(*nodes)
    return cluster.places()


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [
        (1, 0, 8 + 3),
        (2, 0, 4 + 1),  # no task goes across two nodes
        (0.5, 0, 16 + 6),
        (1, 0.25, 8),  # of the first node's 2 GPUs; the second has none
        (1, 1, 2),
        (0.1, 0.1, 20),  # not 19: a tenth is no binary fraction
        (16, 0, 0),
        (1, 4, 0),
    ],
)
def test_how_many_tasks_fit_on_the_nodes(cpus, gpus, expected):
    assert places(cpus, gpus, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}) == expected


def test_a_node_may_come_or_go_at_any_moment():
    """Whatever is asked of the nodes, it is asked of the same ones."""
    cluster, answers = RayCluster("auto", 1, 0), [[{"CPU": 2.0}], [{"CPU": 2.0}, {"CPU": 4.0}]]

    class Growing(MadeUpRay):
        def nodes(self):
            return MadeUpRay(*answers.pop(0)).nodes()

    cluster._ray = Growing()
    assert [cluster.places(), cluster.places()] == [2, 6]


def test_a_cluster_of_this_machine_that_has_ended_does_not_come_back():
    """Another one may get nodes again, see dispatch.py."""
    cluster = RayCluster(None, 1, 0)
    cluster._ray = MadeUpRay()
    with pytest.raises(NoNodeError, match=r"^Ray: its processes on this machine have ended – see"):
        cluster.places()
    assert places(1, 0) == 0


def test_more_than_any_node_has_is_refused():
    """Ray would wait for ever."""
    cluster = RayCluster("auto", 1, 1)
    cluster._ray = MadeUpRay({"CPU": 2.0}, {"CPU": 4.0})
    with pytest.raises(UserError) as caught:
        cluster._check_room()
    assert str(caught.value) == (
        "--cpus-per-task 1 --gpus-per-task 1: no node has as much: "
        "the largest have 4 CPUs and 0 GPUs – ask for less"
    )


class RayThatFails(MadeUpRay):
    """Starts as `failures` run out."""

    def __init__(self, failures: int):
        super().__init__({"CPU": 1.0})
        self.failures, self.starts = failures, 0

    def init(self, **options):
        self.starts += 1
        if self.starts <= self.failures:
            raise Exception("The current node timed out\nduring startup.")  # Ray's own kind

    def shutdown(self):
        pass


def connected(ray: RayThatFails, address: str | None) -> RayThatFails:
    cluster = RayCluster(address, 1, 0)
    cluster._ray = ray
    cluster._connect()
    return ray


def test_a_busy_machine_gets_three_attempts_to_start_ray(caplog):
    """A start that fails takes a minute and more: each is told."""
    assert connected(RayThatFails(2), None).starts == 3
    assert caplog.messages == ["Ray did not start, as on a busy machine; trying again"] * 2
    with pytest.raises(
        UserError, match=r"^Ray: cannot be used \(The current node timed out during"
    ):
        connected(RayThatFails(3), None)


def test_a_cluster_that_does_not_answer_is_told_at_once():
    with socket.socket() as bound:  # nobody listens on it
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        ray = RayThatFails(0)
        with pytest.raises(UserError, match=rf"^--address {address}: cannot be used \(.*refused"):
            connected(ray, address)
        assert ray.starts == 0
        bound.listen()
        assert connected(ray, address).starts == 1
    assert connected(RayThatFails(0), "auto").starts == 1


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ray_cluster.environment, "is_installed", lambda package: package != "ray")
    with pytest.raises(UserError, match=r"^Ray: is not installed – pip install -r requirements-ex"):
        ray_cluster.check_installed()
