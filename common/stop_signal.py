"""Stopping between two steps (of a training) or frames (of a video) instead of inside of one."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from common.cli import Terminated


class StopSignal:
    """Context manager that notes SIGINT or SIGTERM so that a loop can end in an orderly way.

        with StopSignal() as stop:
            for item in items:
                if stop.received:
                    break
                ...
        ...  # save what there is
        stop.raise_received()

    An exception raised inside an encoder loses a packet and spoils the file, one inside an
    optimizer's step leaves half of the weights new; a flag does neither. The second signal is not
    waited for: it raises at once. Outside the main thread, where Python delivers no signals,
    nothing is ever received.

    Args:
        announcement: told on stderr when the first signal arrives, if what is under way takes long.

    Attributes:
        received: the number of the signal, or None.
    """

    def __init__(self, announcement: str = "") -> None:
        self.announcement = announcement
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.raise_received()
        self.received = number
        if self.announcement:  # not through Python's streams: one may be in the middle of a line
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), f"{self.announcement}\n".encode())

    def raise_received(self) -> None:
        """KeyboardInterrupt after SIGINT, Terminated after SIGTERM, nothing without a signal."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received == signal.SIGTERM:
            raise Terminated
