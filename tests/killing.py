"""Processes that are killed at moments drawn from a seed, and what they may not leave."""

import random
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from common import artifacts
from tests.long_runs import count

TIMEOUT_S = 300.0  # of a run that nobody kills, on a busy machine


def duration_of(start: Callable[[], ForkServerProcess]) -> float:
    """Seconds that a process takes that nobody kills; the first one may wait for others."""
    for _ in range(2):
        begin = time.monotonic()
        assert ended_by_itself(start(), TIMEOUT_S), "it hangs"
    return time.monotonic() - begin


def ended_by_itself(process: ForkServerProcess, after_s: float) -> bool:
    """Kills a process after so many seconds, unless it is done by then; fails where it failed."""
    process.join(after_s)
    if process.exitcode is None:
        process.kill()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        count("kills")
        return False
    assert process.exitcode == 0, process.exitcode
    return True


class Moments:
    """When to kill: anywhere in a run, and in every second one near its end, where files are
    written and take their places."""

    def __init__(self, seed: int, duration_s: float):
        self._chance, self._duration_s = random.Random(seed), duration_s

    def draw(self) -> float:
        first = self._chance.choice((0.0, 0.7))
        return self._chance.uniform(first, 1.05) * self._duration_s


def assert_reported_files_verify(folder: Path) -> None:
    """Every JSON file can be read, and every file with a sidecar is the one it tells of."""
    for file in folder.rglob("*.json"):
        if not file.name.startswith(".tmp-"):
            content = artifacts.read_json(file)
            told = file.with_suffix(".pth") if "sha256" in content else None
            if told is not None and told.exists():
                assert artifacts.sha256(told) == content["sha256"], told
    for file in folder.rglob("*.pth"):
        if not file.name.startswith(".tmp-"):
            artifacts.load_checkpoint(file)
