"""Watching a run in a browser: a page with the annotated frames and the counters.

    with LiveView("127.0.0.1", 8000, title="street.mp4") as view:
        for frame, tracks in ...:
            view.publish(frame, {"fps": 24.8, "frame": 17, "objects": 3, "tracks": 5})

The page works on a phone and on a desktop, loads nothing from elsewhere, and without JavaScript
still shows the stream. See live_server.py for its addresses.
"""

import errno
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from common.cli import UserError, log
from phase3_tracking.live.live_address import Address
from phase3_tracking.live.live_frames import NewestFrame
from phase3_tracking.live.live_server import LiveServer

POLL_S = 0.1  # how soon the server notices that it is to end


class LiveView:
    """Context manager that serves the newest frame to any number of browsers.

    When the block ends, streams end after the newest frame, every thread has ended, and the port
    is free again.

    Args:
        host: name or IP address to bind. Anybody who can reach an address other than that of this
            machine alone can watch; a warning says so.
        port: TCP port; 0 takes any that is free, see `url`.
        title: of the page, for instance the name of the video.

    Attributes:
        url: what to open in a browser, once the block has begun.

    Raises:
        UserError: naming --live, at the start of the block: the address cannot be used.
    """

    def __init__(self, host: str, port: int, title: str = "Live view"):
        self.url = ""
        self._address, self._title = Address(host, port), title
        self._frames = NewestFrame()

    def publish(self, frame_bgr: np.ndarray, counters: Mapping[str, Any]) -> None:
        """Shows a frame from now on. Swaps a reference, and never waits for a viewer.

        Args:
            frame_bgr: uint8 (H, W, 3). It is kept, not copied, and must not be changed any more;
                give a copy of a frame that is going to be.
            counters: name -> number, text, or mapping of these; copied. The page has a heading of
                its own for `fps`, `frame`, `frames_total`, `objects`, `tracks`, `dropped_frames`,
                `class_counts`, `line_counts` and `zone_counts`, and shows others by their name.

        Raises:
            ValueError: the frame is of another shape or type.
        """
        self._frames.publish(frame_bgr, counters)

    def __enter__(self) -> "LiveView":
        try:
            self._server = LiveServer(self._address, self._frames, self._title)
        except OSError as error:
            raise _address_error(self._address, error) from None
        bound = Address(self._address.host, self._server.server_address[1])
        self.url = f"http://{bound}/"
        if not self._server.is_loopback:
            log.warning("Live view: everyone who can reach this machine at %s can watch", bound)
        log.info("Live view: open %s", self.url)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="live view", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._frames.close()
        self._server.end_connections()


def _address_error(address: Address, error: OSError) -> UserError:
    where = f"--live {address}"
    if isinstance(error, socket.gaierror):
        return UserError(where, f"{address.host} is no known host", "give --live PORT alone")
    if error.errno == errno.EADDRINUSE:
        remedy = "end the program that uses it, or choose another; --live 0 takes any free one"
        return UserError(where, f"port {address.port} is in use", remedy)
    if error.errno == errno.EACCES:
        return UserError(where, f"port {address.port} is not allowed", "choose one from 1024 on")
    if error.errno == errno.EADDRNOTAVAIL:
        what = f"{address.host} is no address of this machine"
        return UserError(where, what, "give --live PORT alone")
    return UserError(where, f"cannot be served ({error.strerror})", "choose another address")
