"""Our trackers and public ones behind one function, for the benchmarks of speed and quality.

Peers come from their public releases, in throw-away environments; each tracker runs in a process of
its own, started with the first interpreter that can import it:

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install trackers==2.6.1
    /tmp/peers/bin/pip install norfair==2.3.0
    /tmp/peers/bin/pip install numpy==2.4.6 scipy==1.17.1      # the same for everyone
    python -m venv /tmp/peers_sv
    /tmp/peers_sv/bin/pip install supervision==0.27.0.post2 numpy==2.4.6 scipy==1.17.1

Everyone runs with its defaults and is given every detection.
"""

import json
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OURS = ("cmcsort", "ocsort", "bytetrack", "sort", "iou")
DEFAULT = OURS[0]
PACKAGES = ("numpy", "scipy", "trackers", "supervision", "norfair")
# (N, 6) detections and, in seconds, when -> processor seconds, (M, 5) boxes xyxy and ids
Update = Callable[[np.ndarray, float], tuple[float, np.ndarray]]
Make = Callable[[float], Update]  # of the frame rate


def ours(name: str) -> Make:
    def make(frame_rate: float) -> Update:
        from phase3_tracking.trackers.tracker_options import build_tracker

        tracker = build_tracker(tracker=name, confidence=0.5, frame_rate=frame_rate)

        def update(rows: np.ndarray, when: float) -> tuple[float, np.ndarray]:
            begin = time.process_time()
            tracks = tracker.update(rows, when)
            return time.process_time() - begin, tracks[:, :5]

        return update

    return make


def roboflow(name: str) -> Make:
    """The package `trackers`. It scales its buffer with the frame rate only if it is told."""

    def make(frame_rate: float) -> Update:
        import supervision
        import trackers

        tracker = getattr(trackers, name)()
        return _supervision_update(supervision, tracker.update)

    return make


def supervision_bytetrack(frame_rate: float) -> Update:
    """Left the package after 0.27."""
    import supervision

    return _supervision_update(supervision, supervision.ByteTrack().update_with_detections)


def _supervision_update(supervision: Any, track: Callable[[Any], Any]) -> Update:
    def update(rows: np.ndarray, when: float) -> tuple[float, np.ndarray]:
        detections = supervision.Detections(
            xyxy=rows[:, :4].astype(np.float32),
            confidence=rows[:, 4].astype(np.float32),
            class_id=rows[:, 5].astype(int),
        )
        begin = time.process_time()
        tracks = track(detections)
        seconds = time.process_time() - begin
        if tracks.tracker_id is None or not len(tracks):
            return seconds, np.empty((0, 5))
        named = tracks.tracker_id >= 0
        return seconds, np.column_stack([tracks.xyxy, tracks.tracker_id])[named]

    return update


def norfair(frame_rate: float) -> Update:
    """With IoU distance, whose threshold has no default."""
    import norfair

    tracker = norfair.Tracker(distance_function="iou", distance_threshold=0.7)

    def update(rows: np.ndarray, when: float) -> tuple[float, np.ndarray]:
        detections = [
            norfair.Detection(row[:4].reshape(2, 2), scores=row[[4, 4]], label=int(row[5]))
            for row in rows
        ]
        begin = time.process_time()
        tracks = tracker.update(detections)
        seconds = time.process_time() - begin
        return seconds, np.array([[*one.estimate.ravel(), one.id] for one in tracks]).reshape(-1, 5)

    return update


ARMS: dict[str, tuple[str, Make]] = {  # name -> (package it comes from, how it is made)
    **{f"ours {name}": ("ours", ours(name)) for name in OURS},
    "roboflow SORT": ("trackers", roboflow("SORTTracker")),
    "roboflow ByteTrack": ("trackers", roboflow("ByteTrackTracker")),
    "roboflow OC-SORT": ("trackers", roboflow("OCSORTTracker")),
    "roboflow C-BIoU": ("trackers", roboflow("CBIoUTracker")),
    "supervision ByteTrack": ("supervision", supervision_bytetrack),
    "norfair": ("norfair", norfair),
}


def serve(name: str, answer: Callable[[Make, dict[str, Any]], dict[str, Any]]) -> None:
    """The other end of `Arm`: first which versions there are, then an answer to every request."""
    warnings.simplefilter("ignore")
    package, make = ARMS[name]
    try:
        make(30.0)
    except (ImportError, AttributeError) as error:
        _say({"missing": str(error)})
        return
    used = [one for one in PACKAGES if one in ("numpy", "scipy", package)]
    _say({"versions": {one: metadata.version(one) for one in used}})
    for line in sys.stdin:
        _say(answer(make, json.loads(line)))


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Arm:
    """A tracker in a process of its own; `versions` is None where no interpreter has it.

    Args:
        script: a file that calls `serve` when it is given --worker NAME.
    """

    def __init__(self, script: str, name: str, interpreters: Sequence[str]):
        self.versions: dict[str, str] | None = None
        for interpreter in interpreters:
            self._process = subprocess.Popen(
                [interpreter, str(Path(script).resolve()), "--worker", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.versions = self._read().get("versions")
            if self.versions:
                return
            self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args}: ended without an answer")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def __enter__(self) -> "Arm":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()


def available(script: str, peers: Sequence[str], only: str = "") -> dict[str, Arm]:
    """The arms whose names hold one of the comma separated parts of `only`, and that can run.

    Raises:
        UserError: one of the peers' interpreters does not exist.
    """
    from common.cli import UserError, log

    for peer in peers:
        if not shutil.which(peer):
            raise UserError(f"--peers {peer}", "no such program", "give a Python with the peers")
    arms = {}
    for name in ARMS:
        if only and not any(part in name for part in only.split(",")):
            continue
        interpreters = [sys.executable] if name.startswith("ours") else [*peers]
        arm = Arm(script, name, interpreters)
        if arm.versions:
            arms[name] = arm
        elif interpreters:
            log.info("%s: not in these environments, left out", name)
    return arms
