"""How far a fleet is: one line on a terminal, a plain one now and then elsewhere."""

import logging
import os
import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from common.cli import PROGRESS_INTERVAL_S, log


@dataclass
class Tally:
    """What became of the videos of one run.

    Attributes:
        total: videos there are to do.
        frames: of those that are done.
        began_s: of the monotonic clock.
    """

    total: int
    done: int = 0
    failed: int = 0
    running: int = 0
    frames: int = 0
    began_s: float = field(default_factory=time.monotonic)

    def frames_per_s(self) -> float:
        """Of all videos that are done, since the run began."""
        return self.frames / max(1e-9, time.monotonic() - self.began_s)

    def __str__(self) -> str:
        counts = f"{self.done} done, {self.failed} failed, {self.running} running"
        return f"{counts} of {self.total} videos, {self.frames_per_s():.1f} frames/s"


class ProgressLine:
    """Context manager; `show` may be called as often as one likes."""

    def __init__(self, tally: Tally):
        self._tally = tally
        self._bar: Any = None
        self._next = time.monotonic() + PROGRESS_INTERVAL_S

    def __enter__(self) -> "ProgressLine":
        if log.isEnabledFor(logging.INFO) and sys.stderr.isatty():
            from tqdm import tqdm

            is_plain = "NO_COLOR" in os.environ
            self._bar = tqdm(total=self._tally.total, desc="videos", leave=False, ascii=is_plain)
        return self

    def show(self) -> None:
        tally = self._tally
        if self._bar is not None:
            self._bar.n = tally.done + tally.failed
            self._bar.set_postfix_str(str(tally))
        elif time.monotonic() >= self._next:
            log.info("%s", tally)
            self._next = time.monotonic() + PROGRESS_INTERVAL_S

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
