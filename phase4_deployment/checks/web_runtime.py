"""Runs an exported detector over images in onnxruntime-web, in a headless Chromium.

A server on 127.0.0.1 gives the browser the page of `web_page.py`, a second page that runs the
images through the same detector.js, and their pixels; that page posts what it finds.
"""

import contextlib
import json
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.models import Detections
from phase4_deployment import web_page
from phase4_deployment.checks.chromium import Chromium

CHECK = "check.html"
SILENCE_S = 300.0  # after so long without news the browser counts as stuck
POLL_S = 0.5
MAX_BODY_BYTES = 64 * 2**20
Posted = queue.Queue[dict[str, Any]]


class WebError(RuntimeError):
    """The browser did not start, stopped or fell silent, or the page failed."""


class WebRun(NamedTuple):
    """`detections` of each image, `latency_ms` of each batch, and the `version` of what ran."""

    detections: list[Detections]
    latency_ms: list[float]
    version: str


def run_on_page(
    onnx_path: Path, batches: Sequence[Sequence[np.ndarray]], runtime: Path, browser: Path
) -> WebRun:
    """Runs batches of equally large uint8 RGB images (H, W, 3), one batch after the other.

    Args:
        runtime: see `web_page.find_runtime`.
        browser: see `chromium.find_browser`.

    Raises:
        WebError: it did not come to an end; the text says why.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        site = Path(name) / "site"
        web_page.write_page(site, onnx_path, runtime)
        shutil.copyfile(web_page.PAGE / CHECK, site / CHECK)
        _write_batches(site, batches)
        with (
            served(site) as (port, posted),
            Chromium(browser, f"http://127.0.0.1:{port}/{CHECK}", Path(name)) as chromium,
        ):
            version = _next(posted, chromium)["version"]
            answers = [_next(posted, chromium) for _ in batches]
    return WebRun(
        [_detections(rows) for answer in answers for rows in answer["detections"]],
        [answer["milliseconds"] for answer in answers],
        version,
    )


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[int, Posted]]:
    """The port of a server for a folder on 127.0.0.1, and what is posted to its /result."""
    posted: Posted = queue.Queue()
    handler = partial(_Handler, posted, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL_S / 10,), daemon=True)
        thread.start()
        try:
            yield server.server_port, posted
        finally:
            server.shutdown()
            thread.join()


class _Handler(SimpleHTTPRequestHandler):
    """Files of a folder, with the types browsers insist on whatever the system's registry says."""

    extensions_map = {  # noqa: RUF012 (the base has it)
        ".html": "text/html",
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        "": "application/octet-stream",
    }

    def __init__(self, posted: Posted, *arguments, **options):
        self.posted = posted
        super().__init__(*arguments, **options)

    def do_POST(self) -> None:
        try:
            length = int(self.headers["Content-Length"])
            if self.path != "/result" or not 0 < length <= MAX_BODY_BYTES:
                raise ValueError
            message = json.loads(self.rfile.read(length))
        except (TypeError, ValueError):
            self.send_error(400)
            return
        self.posted.put(message)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments) -> None:
        """Nothing: what matters is posted."""


def _write_batches(folder: Path, batches: Sequence[Sequence[np.ndarray]]) -> None:
    """batches.json: [count, height, width] of each batch; batches.bin: their pixels in order."""
    shapes = [(len(batch), *batch[0].shape[:2]) for batch in batches]
    (folder / "batches.json").write_text(json.dumps(shapes), encoding="utf-8")
    with open(folder / "batches.bin", "wb") as file:
        for batch in batches:
            file.write(np.stack(batch).tobytes())


def _next(posted: Posted, chromium: Chromium) -> dict[str, Any]:
    """The page's next message; WebError when there is none or it tells of an error."""
    deadline = time.monotonic() + SILENCE_S
    while True:
        has_ended = chromium.has_ended()  # asked first: its last message may still be on the way
        try:
            message = posted.get(timeout=POLL_S)
        except queue.Empty:
            if has_ended:
                raise WebError(f"the browser ended: {chromium.last_words()}") from None
            if time.monotonic() > deadline:
                raise WebError(f"the browser said nothing for {SILENCE_S:.0f} s") from None
            continue
        if "error" in message:
            raise WebError(message["error"])
        return message


def _detections(rows: Sequence[dict[str, Any]]) -> Detections:
    """From what detector.js returns for one image."""
    return Detections(
        np.asarray([row["box"] for row in rows], np.float32).reshape(-1, 4),
        np.asarray([row["score"] for row in rows], np.float32),
        np.asarray([row["label"] for row in rows], np.int64),
    )
