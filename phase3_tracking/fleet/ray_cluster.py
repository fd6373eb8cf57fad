"""Tasks on Ray: an existing cluster by its address, or one of this machine for this run alone."""

import logging
import math
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from common import environment, paths
from common.cli import UserError, log
from phase3_tracking.fleet.dispatch import NoNodeError
from phase3_tracking.fleet.task import Order, Outcome, track, try_detector

EXTRAS = "pip install -r requirements-extras.txt"
OBJECT_STORE_BYTES = (
    128 << 20
)  # orders and outcomes are small; Ray would take a third of the memory
REACH_S = 10.0  # to wait for an address to answer
START_ATTEMPTS = 3  # Ray gives itself 30 seconds, which a busy machine may exceed
# Of a cluster on this machine. The third name is Ray's own for "listen on loopback only", which it
# does by default on Windows and macOS, where firewalls ask.
LOCAL_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def check_installed() -> None:
    """Raises UserError where Ray is not installed."""
    if not environment.is_installed("ray"):
        raise UserError("Ray", "is not installed", EXTRAS)


class RayCluster:
    """Context manager over the connection to a cluster; a dispatch.Cluster.

    A cluster that was started here ends with the block, and also when this process is killed.

    Args:
        address: of an existing cluster; None starts one on this machine, which nobody else can
            reach: it listens on loopback and wants a token that only its own processes have.
        cpus, gpus: of each task; below 1 several share one.

    Raises:
        UserError: no cluster answers, or no node has as much as a task needs.
    """

    def __init__(self, address: str | None, cpus: float, gpus: float):
        self._address, self._cpus, self._gpus = address, cpus, gpus

    def __enter__(self) -> "RayCluster":
        if self._address is None:
            os.environ.update(LOCAL_SETTINGS | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray = ray
        self._connect()
        self._remote = {work: self._as_task(work) for work in (track, try_detector)}
        try:
            self._check_room()
        except UserError:
            ray.shutdown()
            raise
        return self

    def _connect(self) -> None:
        for attempts_left in reversed(range(1 if self._address else START_ATTEMPTS)):
            try:
                if self._address:
                    _reach(self._address)
                # what Ray raises is told here, so nothing that it logs of it besides
                quietly = logging.CRITICAL
                self._ray.init(**self._where(), log_to_driver=False, logging_level=quietly)
            except Exception as error:  # Ray raises plain ones, too
                self._ray.shutdown()
                if not attempts_left:
                    raise self._unusable(error) from error
                log.warning("Ray did not start, as on a busy machine; trying again")
            else:
                return

    def _unusable(self, error: Exception) -> UserError:
        what = f"cannot be used ({' '.join(str(error).split()):.300})"
        if self._address is None:
            return UserError(
                "Ray", what, "end other programs, let it have more cores, or give --address"
            )
        remedy = "check `ray status` there, and that versions of Ray and Python are the same"
        return UserError(f"--address {self._address}", what, remedy)

    def _where(self) -> dict[str, Any]:
        environment_of_workers = {"env_vars": {"PYTHONPATH": str(paths.ROOT)}}
        if self._address is not None:
            return {"address": self._address, "runtime_env": environment_of_workers}
        return {
            "address": "local",
            "runtime_env": environment_of_workers,
            "include_dashboard": False,
            "num_cpus": environment.usable_cores(),
            "object_store_memory": OBJECT_STORE_BYTES,
        }

    def _as_task(self, work: Callable[[Order], Outcome]) -> Any:
        # dispatch.py repeats what fails, and waits in between
        return self._ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)(work)

    def _check_room(self) -> None:
        if self.places() > 0:
            return
        cpus, gpus = map(max, zip((0.0, 0.0), *self._nodes(), strict=True))
        what = f"no node has as much: the largest have {cpus:g} CPUs and {gpus:g} GPUs"
        options = f"--cpus-per-task {self._cpus:g} --gpus-per-task {self._gpus:g}"
        raise UserError(options, what, "ask for less")

    def _nodes(self) -> list[tuple[float, float]]:
        """(CPUs, GPUs) of each living node."""
        found = (node["Resources"] for node in self._ray.nodes() if node["Alive"])
        return [(has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in found]

    def places(self) -> int:
        """How many tasks run at a time, where nobody else runs any.

        Raises:
            NoNodeError: the cluster that was started here has ended; nobody will bring it back.
        """
        nodes = self._nodes()
        if not nodes and self._address is None:
            remedy = "see whether memory ran out, and repeat the command"
            raise NoNodeError("Ray", "its processes on this machine have ended", remedy)
        return sum(_room(cpus, self._cpus, gpus, self._gpus) for cpus, gpus in nodes)

    def try_detector(self, order: Order) -> dict[str, Any]:
        """Loads the detector on a worker, so that a mistake in the options is told once.

        Returns:
            `device` and `node`.

        Raises:
            UserError: it cannot be loaded, or the worker died of it.
        """
        outcome = self._outcome(self._remote[try_detector].remote(order))
        if outcome.row is None:
            raise UserError("detector", f"cannot be loaded: {outcome.error}", "mend that first")
        return outcome.row

    def submit(self, order: Order) -> Any:
        return self._remote[track].remote(order)

    def finished(self, tasks: Sequence[Any], timeout_s: float) -> list[tuple[Any, Outcome]]:
        self._ray.wait(list(tasks), num_returns=1, timeout=timeout_s)
        done, _ = self._ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
        return [(task, self._outcome(task)) for task in done]

    def _outcome(self, task: Any) -> Outcome:
        """Of a task that ended, or whose process did."""
        from ray.exceptions import RayError

        try:
            return self._ray.get(task)
        except RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            kind = type(error).__name__
            reason = lines[-1].strip() if "Task" in kind and lines else ""
            return Outcome(error=f"its worker ended ({kind}{reason and ': '}{reason[:200]})")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdecimal():  # other forms Ray looks up, or refuses at once
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()


def _room(cpus: float, cpus_each: float, gpus: float, gpus_each: float) -> int:
    """How many tasks a node has room for."""
    fits = [math.floor(there / each + 1e-9) for there, each in
            ((cpus, cpus_each), (gpus, gpus_each)) if each]  # fmt: skip
    return min(fits)
