"""A server with a detector that does what a test wants, in a thread, and clients of it."""

import contextlib
import http.client
import io
import json
import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from PIL import Image

from phase4_deployment.package.serving.app import build_app
from phase4_deployment.package.serving.metrics import Metrics
from phase4_deployment.package.serving.pipeline import Limits, Pipeline
from phase4_deployment.package.serving.server import Ending, Server, listener

TIMEOUT_S = 20.0
CLASS_NAMES = {3: "car", 1: "<b>Fuß</b>"}
FOUND = [[1.5, 2.25, 20.0, 30.1239, 0.87654321, 3.0], [0.0, 0.0, 5.0, 6.0, 0.5, 1.0]]
JPEG = {"Content-Type": "image/jpeg"}


def picture(width: int = 32, height: int = 24, level: int = 90, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (level, 40, 200)).save(out, kind)
    return out.getvalue()


def same_boxes(images):
    return [np.array(FOUND) for _ in images]


class Gate:
    """A detector that works only while it is open, and notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.entered, self._open = threading.Event(), threading.Event()

    def open(self) -> None:
        self._open.set()

    def __call__(self, images):
        self.batches.append([image.shape for image in images])
        self.entered.set()
        assert self._open.wait(TIMEOUT_S)
        return same_boxes(images)


class Running:
    """Context manager: a server on a free port, which has ended when the block has.

    Args:
        detect: see Pipeline.
        changes: of the limits.
    """

    def __init__(self, detect: Callable = same_boxes, *, batch_size=4, wait_s=0.005, **changes):
        limits = {"queue_size": 64, "max_bytes": 100_000, "max_pixels": 1_000_000}
        limits |= {"body_s": TIMEOUT_S, "answer_s": TIMEOUT_S, **changes}
        self.metrics = Metrics("model.onnx", "FakeProvider")
        self.pipeline = Pipeline(
            detect, CLASS_NAMES, batch_size, wait_s, Limits(**limits), self.metrics
        )
        self.is_draining = False
        self._ending = Ending()

    def __enter__(self) -> "Running":
        self._socket = listener("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        app = build_app(
            self.pipeline,
            {"model": "model.onnx", "provider": "FakeProvider", "confidence": 0.5},
            is_draining=lambda: self.is_draining,
            answers_host=lambda name: name == "127.0.0.1",
        )
        self.server = Server(app, self._ending, "here", 2 * TIMEOUT_S)
        self._thread = threading.Thread(target=self.server.run, args=([self._socket],))
        self.pipeline.__enter__()
        self._thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()
        self.pipeline.__exit__()

    def stop(self) -> None:
        """What a signal does; those come to the main thread only."""
        self._ending.is_asked_for = True

    def ask(self, method: str, path: str, body=None, **headers: str) -> SimpleNamespace:
        """`status`, `headers` and `body`; `json` where it is."""
        return ask(
            self.port, method, path, body, {k.replace("_", "-"): v for k, v in headers.items()}
        )

    def detect(self, body: bytes | None = None) -> SimpleNamespace:
        return ask(self.port, "POST", "/detect", picture() if body is None else body, JPEG)

    def later(self, *bodies: bytes) -> list["Answer"]:
        """One request for each, all at once."""
        return [Answer(lambda body=body: self.detect(body)) for body in bodies]


class Answer:
    """What a function returns, called in a thread of its own."""

    def __init__(self, call: Callable[[], SimpleNamespace]):
        self._call, self._answer = call, None
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        self._answer = self._call()

    def get(self) -> SimpleNamespace:
        self._thread.join(TIMEOUT_S)
        assert self._answer is not None
        return self._answer


def ask(port: int, method: str, path: str, body, headers: dict[str, str]) -> SimpleNamespace:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        with connection.getresponse() as answer:
            data = answer.read()
    kind = answer.headers.get("Content-Type", "")
    parsed = json.loads(data) if kind == "application/json" and data else None
    return SimpleNamespace(status=answer.status, headers=answer.headers, body=data, json=parsed)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def samples(text: str) -> dict[str, float]:
    """What a page in Prometheus' format says: `name{labels}` -> value; every line is checked."""
    kinds, found = {}, {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            assert re.fullmatch(r"# HELP [a-z_]+ .+", line)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
        else:
            label = r'[a-z]+="(?:[^"\\\n]|\\["\\n])*"'
            whole = rf"([a-z_]+)(\{{{label}(?:,{label})*\}})? (\d+(?:\.\d+)?(?:e-?\d+)?)"
            match = re.fullmatch(whole, line)
            assert match, line
            family = re.sub(r"_(bucket|sum|count)$", "", match[1])
            kind = kinds.get(match[1]) or kinds[family]
            assert match[1] == family or kind == "histogram" or match[1] in kinds
            key = match[1] + (match[2] or "")
            assert key not in found
            found[key] = float(match[3])
    for name in (name for name, kind in kinds.items() if kind == "histogram"):
        buckets = [value for key, value in found.items() if key.startswith(f"{name}_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == found[f'{name}_bucket{{le="+Inf"}}'] == found[f"{name}_count"]
    return found
