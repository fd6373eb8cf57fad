"""What a worker of the cluster does: one video, as video_detector.py does it.

Nothing is loaded before a task runs; the functions can be called without Ray, too.
"""

import argparse
import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import artifacts, recorded_files
from common.cli import UserError
from common.errors import shortage
from phase3_tracking.fleet.plan import Video


@dataclass(frozen=True)
class Order:
    """One video to track.

    Attributes:
        args: the options of video_detector.py.
        command: the words of the command line, for the report.
        folder: that relative paths start from.
    """

    video: Video
    args: argparse.Namespace
    command: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        row: what is to be known of a video that is done.
        error: in one line; None when it is done.
        trace: of an error that is ours.
    """

    row: dict[str, Any] | None = None
    error: str | None = None
    trace: str = ""


def track(order: Order) -> Outcome:
    """Tracks a video and verifies what was written."""
    return _told(order, lambda: _track(order))


def try_detector(order: Order) -> Outcome:
    """Loads the detector that the options ask for, and lets it go again."""

    def load() -> dict[str, Any]:
        from phase3_tracking.video_detector import load_detector

        return {"device": load_detector(order.args).device, "node": platform.node()}

    return _told(order, load)


def _told(order: Order, work: Callable[[], dict[str, Any]]) -> Outcome:
    try:
        with _in_place_of_the_driver(order):
            return Outcome(row=work())
    except UserError as error:
        return Outcome(error=str(error))
    except Exception as error:  # noqa: BLE001 - one video that fails is no end of the others
        lacking = shortage(error)
        if lacking is not None:
            return Outcome(error=str(lacking))
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        what = f"{order.video.text}: internal error ({text})"
        return Outcome(error=what, trace=traceback.format_exc())


@contextlib.contextmanager
def _in_place_of_the_driver(order: Order) -> Iterator[None]:
    """In the driver's folder, under the driver's command: paths mean the same, and reports tell the
    command that a person typed."""
    before, words = os.getcwd(), sys.argv
    try:
        os.chdir(order.folder)
    except OSError as error:
        what = f"is not there on {platform.node()} ({error.strerror})"
        raise UserError(order.folder, what, "start from a folder that all nodes share") from None
    sys.argv = list(order.command)
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = words


def _track(order: Order) -> dict[str, Any]:
    video, started = order.video, time.perf_counter()
    facts = video.input_facts()
    _run(order)
    report = artifacts.read_json(video.report_path)
    damaged = recorded_files.others(report, video.report_path.parent)
    if damaged or report.get("complete") is not True:
        what = f"is not as it was written ({', '.join(damaged) or 'incomplete'})"
        raise UserError(video.report_path, what, "check the disk")
    return {
        "input_facts": facts,
        "report_sha256": artifacts.sha256(video.report_path),
        "frames": report["frames_read"],
        "tracks": report["tracks"],
        "class_counts": report["class_counts"],
        "truncated": report["truncated"],
        "fps_end_to_end": report["fps_end_to_end"],
        "seconds": time.perf_counter() - started,
        "node": platform.node(),
    }


def _run(order: Order) -> None:
    """As the script does; with what an attempt that was killed has detected, where it fits."""
    from phase3_tracking import video_detector
    from phase3_tracking.detection_log import log_file

    output = order.video.output_path
    options = {**vars(order.args), "input": [order.video.text], "output": output}
    log = log_file(output)
    try:
        resume = log.exists()
        video_detector.run(argparse.Namespace(**options | {"overwrite": True, "resume": resume}))
    except UserError as error:
        if error.where != log:
            raise
        video_detector.run(argparse.Namespace(**options | {"overwrite": True, "resume": False}))
