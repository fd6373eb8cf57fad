"""A server of pictures in a process of its own, and ab (ApacheBench), which sends it some."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import paths
from common.cli import UserError

SERVE = paths.ROOT / "phase4_deployment" / "package" / "serve.py"
START_S, AB_S = 120, 600
ANSWERED = ("200", "429")  # what a request of a burst may be answered


@dataclass(frozen=True)
class Served:
    """A server that runs, and its address."""

    port: int

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read().decode("utf-8")

    def counters(self) -> dict[str, float]:
        """`name{labels}` -> value of everything that /metrics tells."""
        lines = (line for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        return {key: float(value) for key, value in (line.rsplit(" ", 1) for line in lines)}

    def load(self, image: Path, requests: int, concurrency: int) -> dict[str, Any]:
        """Sends a JPEG so many times, and tells what came of it; see `parse_ab`."""
        url = f"http://127.0.0.1:{self.port}/detect"
        options = ["-q", "-l", "-r", "-s", str(AB_S), "-n", str(requests), "-c", str(concurrency)]
        command = ["ab", *options, "-p", str(image), "-T", "image/jpeg", url]
        before = self.counters()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ab: {done.stderr.strip()[-300:]}")
        after = self.counters()
        counted = {key: after[key] - before.get(key, 0.0) for key in after}
        return {"requests": requests, **parse_ab(done.stdout), **what_happened(counted)}


def parse_ab(text: str) -> dict[str, Any]:
    """`seconds`, `complete` and `failed` requests, and `latency_ms` of the answered ones.

    Raises:
        ValueError: this is no report of ab.
    """

    def number(label: str) -> float:
        found = re.search(rf"^{label}:\s+([\d.]+)", text, re.MULTILINE)
        if not found:
            raise ValueError(f"ab did not tell {label!r}")
        return float(found[1])

    percentiles = dict(re.findall(r"^\s+(\d+)%\s+(\d+)", text, re.MULTILINE))
    return {
        "seconds": number("Time taken for tests"),
        "complete": int(number("Complete requests")),
        "failed": int(number("Failed requests")),
        "latency_ms": {f"p{q}": float(percentiles[q]) for q in ("50", "90", "99")},
    }


def what_happened(counted: dict[str, float]) -> dict[str, Any]:
    """`statuses` of /detect and the mean `batch_size`, from what /metrics counted meanwhile."""
    label = re.compile(r'detector_requests_total\{path="/detect",status="(\d+)"\}')
    statuses = {found[1]: int(n) for key, n in counted.items() if n and (found := label.match(key))}
    batches = counted["detector_batch_size_count"]
    mean = counted["detector_batch_size_sum"] / batches if batches else None
    return {"statuses": statuses, "batch_size": mean}


@contextlib.contextmanager
def served(
    script: Path, model: Path, device: str, batch_size: int, queue_size: int
) -> Iterator[Served]:
    """A server in a process of its own; SIGTERM must end it with status 0.

    Raises:
        UserError: it does not start.
        RuntimeError: it does not end well.
    """
    command = [sys.executable, str(script), "--model", str(model), "--port", "0"]
    command += ["--device", device, "--batch-size", str(batch_size)]
    command += ["--queue-size", str(queue_size), "--timeout-s", str(AB_S)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=_environment(script))
        try:
            yield Served(_port_of(process, output, script))
            process.send_signal(signal.SIGTERM)
            if status := process.wait(START_S):
                raise RuntimeError(f"the server ended with status {status}")
        finally:
            process.kill()
            process.wait()


def _environment(script: Path) -> dict[str, str] | None:
    """The project's own serve.py has its modules elsewhere, a package's beside it."""
    return {**os.environ, "PYTHONPATH": str(paths.ROOT)} if script == SERVE else None


def _port_of(process: subprocess.Popen, output: Any, script: Path) -> int:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        output.seek(0)
        text = output.read()
        if found := re.search(r"^Serving at http://[^/]*:(\d+)/", text, re.MULTILINE):
            return int(found[1])
        if process.poll() is not None:
            raise UserError(script, f"did not start ({text.strip()[-300:]})", "run it by hand")
        time.sleep(0.05)
    raise UserError(script, f"did not start within {START_S} s", "run it by hand")


def is_orderly(burst: dict[str, Any]) -> bool:
    """Whether every request got an answer, and none but those it may get."""
    requests = burst["requests"]
    is_answered = burst["failed"] == 0 and burst["complete"] == requests
    return is_answered and sum(burst["statuses"].get(status, 0) for status in ANSWERED) == requests


def all_answered(load: dict[str, Any]) -> dict[str, Any]:
    """The load, if it can be compared: every request got its boxes."""
    if load["failed"] or set(load["statuses"]) != {"200"}:
        raise RuntimeError(f"not every request got its boxes: {load}")
    return load
