"""Counters of the server in Prometheus' text format (version 0.0.4)."""

import bisect
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """How often values were at most each of `bounds`, their sum and their number."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]):
        self._name, self._help, self._bounds = name, help_text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterator[str]:
        yield from _head(self._name, "histogram", self._help)
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self._name}_bucket{{le="{bound}"}} {total}'
        yield f"{self._name}_sum {self._sum!r}"
        yield f"{self._name}_count {total}"


class Metrics:
    """What is counted; any thread may call it.

    Args:
        model: name of the file.
        provider: of ONNX Runtime, that really runs.
    """

    def __init__(self, model: str, provider: str):
        self._lock = threading.Lock()
        self._info = {"model": model, "provider": provider}
        self._requests: Counter[tuple[str, int]] = Counter()
        self._latency = Histogram(
            "detector_latency_seconds", "From a request to its boxes.", SECONDS
        )
        self._batches = Histogram(
            "detector_batch_size", "Images of each inference.", BATCH_SIZES
        )  # fmt: skip
        self._inference = Histogram(
            "detector_inference_seconds", "Time of each inference.", SECONDS
        )  # fmt: skip
        self._image_s = 0.0

    def on_request(self, path: str, status: int) -> None:
        with self._lock:
            self._requests[path, status] += 1

    def on_latency(self, seconds: float) -> None:
        with self._lock:
            self._latency.observe(seconds)

    def on_batch(self, size: int, seconds: float) -> None:
        with self._lock:
            self._batches.observe(size)
            self._inference.observe(seconds)
            newest = seconds / size
            self._image_s = 0.8 * self._image_s + 0.2 * newest if self._image_s else newest

    @property
    def image_s(self) -> float:
        """What an image took lately, in seconds; 0 before the first one."""
        return self._image_s

    def text(self, queue_length: int, in_work: int) -> str:
        """All of it.

        Args:
            queue_length: accepted pictures that wait.
            in_work: those and the ones in an inference.
        """
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines(queue_length, in_work))

    def _lines(self, queue_length: int, in_work: int) -> Iterator[str]:
        yield from _head("detector_info", "gauge", "The model and what runs it.")
        yield f"detector_info{_labels(self._info)} 1"
        yield from _head("detector_requests_total", "counter", "Answers by path and status.")
        for (path, status), count in sorted(self._requests.items()):
            labels = _labels({"path": path, "status": str(status)})
            yield f"detector_requests_total{labels} {count}"
        yield from _head("detector_queue_length", "gauge", "Accepted pictures that wait.")
        yield f"detector_queue_length {queue_length}"
        yield from _head("detector_pictures_in_work", "gauge", "Accepted pictures, not answered.")
        yield f"detector_pictures_in_work {in_work}"
        for histogram in (self._batches, self._latency, self._inference):
            yield from histogram.lines()


def _head(name: str, kind: str, help_text: str) -> tuple[str, str]:
    return f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"


def _labels(labels: dict[str, str]) -> str:
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"
