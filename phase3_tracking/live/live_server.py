"""The HTTP server of a live view.

    /             the page
    /stream       the frames, multipart/x-mixed-replace of JPEGs, until the run ends
    /frame.jpg    the newest frame
    /status.json  the counters
    /health       whether it answers

A viewer that is too slow misses frames, and is never sent an old one. Connections are bounded in
number and in time, so that nobody keeps others out by connecting and saying nothing. A server that
only this machine can reach answers only requests for its own names: a page from elsewhere that has
its host name point here (DNS rebinding) sees nothing.
"""

import contextlib
import html
import io
import json
import os
import re
import socket
import socketserver
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from common.cli import log
from common.content_policy import content_policy
from phase3_tracking.live.live_address import Address, is_loopback
from phase3_tracking.live.live_frames import Jpeg, NewestFrame

PAGE = Path(__file__).with_name("live_page.html")
MAX_CONNECTIONS, MAX_STREAMS = 32, 16  # some are left for pages and counters
REQUEST_S = 10.0  # for a whole request to arrive
SEND_S = 10.0  # for one frame, or one answer, to be taken
REPEAT_S = 1.0  # a frame is sent again if none follows: who has left is noticed, and browsers that
# show a frame only when the next one begins show it
GRACE_S = 0.5  # for the last frame to be taken
SEND_BUFFER_BYTES = 128 * 1024  # frames that wait in a larger one would be old
BOUNDARY = "frame"
METHODS = ("GET", "HEAD")


class LiveServer(HTTPServer):
    """Serves what is published in `frames`, each connection in a thread of its own.

    Attributes:
        is_loopback: whether only this machine can reach it.

    Raises:
        OSError: the address cannot be bound; socket.gaierror for an unknown host.
    """

    allow_reuse_address = os.name == "posix"  # on Windows it would share a port that is in use
    allow_reuse_port = False
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, address: Address, frames: NewestFrame, title: str):
        self.address_family, resolved = _resolved(address)
        self.frames = frames
        self.is_loopback = is_loopback(resolved[0])
        self.host = address.host.lower()
        self.page, self.content_security_policy = _page(title)
        self.streams = threading.BoundedSemaphore(MAX_STREAMS)
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._open: dict[threading.Thread, socket.socket] = {}
        super().__init__(resolved, _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks a name server
        self.server_name, self.server_port = self.host, int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            _refuse(request)
            self.shutdown_request(request)
            return
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="live viewer", daemon=True
        )
        self._open[thread] = request
        thread.start()

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError as error:  # the viewer has left, or was too slow
            log.debug("live view: %s", error)
        except Exception:  # noqa: BLE001 - the last place before a thread of nobody's
            log.exception("live view: a request failed")
        finally:
            self.shutdown_request(request)
            del self._open[threading.current_thread()]
            self._slots.release()

    def end_connections(self) -> None:
        """Waits until every connection has ended, after `frames.close()`; cuts off slow viewers."""
        for _, connection in list(self._open.items()):
            _shut(connection, socket.SHUT_RD)  # nobody need finish a request now
        end_s = time.monotonic() + GRACE_S
        for thread, connection in list(self._open.items()):
            thread.join(max(0.0, end_s - time.monotonic()))
            if thread.is_alive():
                _shut(connection, socket.SHUT_RDWR)
                thread.join()


def _resolved(address: Address) -> tuple[socket.AddressFamily, Any]:
    """The family and the socket address of a host; IPv4 where it has both."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, resolved = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, resolved


def _refuse(connection: socket.socket) -> None:
    answer = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 5\r\n\r\n"
    with contextlib.suppress(OSError):
        connection.settimeout(0.05)  # nobody else is let in meanwhile
        connection.sendall(answer)
        connection.recv(1 << 16)  # with a request unread, closing would throw the answer away


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # it has ended by itself
        connection.shutdown(how)


def _page(title: str) -> tuple[bytes, str]:
    """The page, and a policy that lets its own style and script run and nothing else."""
    template = PAGE.read_text(encoding="utf-8")
    policy = content_policy(template, "'self' data:")
    return template.replace("{{ title }}", html.escape(title)).encode("utf-8", "replace"), policy


class _RequestReader(io.RawIOBase):
    """Reads from a connection, and gives up when the whole request takes too long."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._end_s = time.monotonic() + REQUEST_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        rest_s = self._end_s - time.monotonic()
        if rest_s <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(rest_s)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    """One connection, which is one request."""

    server: LiveServer

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.rfile.close()
        self.rfile = io.BufferedReader(_RequestReader(self.connection))

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        self.connection.settimeout(SEND_S)
        if not self._is_for_us():
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return False
        if self.command not in METHODS:
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
            return False
        return True

    def _is_for_us(self) -> bool:
        name = re.sub(r":\d*$", "", self.headers.get("Host", "")).lower()
        name = name[1:-1] if name.startswith("[") else name
        return not self.server.is_loopback or name == self.server.host or is_loopback(name)

    def do_GET(self) -> None:
        answers = {
            "/": self._page,
            "/stream": self._stream,
            "/frame.jpg": self._frame,
            "/status.json": self._status,
            "/health": self._health,
        }
        answer = answers.get(self.path.partition("?")[0])
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            answer()

    def do_HEAD(self) -> None:
        self.do_GET()

    # --- answers --------------------------------------------------------------------------------

    def _page(self) -> None:
        self._send("text/html; charset=utf-8", self.server.page)

    def _frame(self) -> None:
        jpeg = self.server.frames.jpeg()
        if jpeg is None:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._send("image/jpeg", jpeg.data)

    def _status(self) -> None:
        status = json.dumps(self.server.frames.status(), allow_nan=False)
        self._send("application/json", status.encode("ascii"))

    def _health(self) -> None:
        self._send("text/plain; charset=utf-8", b"ok\n")

    def _stream(self) -> None:
        if not self.server.streams.acquire(blocking=False):
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        try:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.end_headers()
            if self.command == "GET":
                self._send_frames()
        finally:
            self.server.streams.release()

    def _send_frames(self) -> None:
        number = 0
        while True:
            jpeg = self.server.frames.jpeg(after=number, wait_s=REPEAT_S)
            if jpeg is not None:
                self.wfile.write(_part(jpeg))
                number = jpeg.number
            elif self.server.frames.is_closed:
                self.wfile.write(f"--{BOUNDARY}--\r\n".encode())
                return
            elif self._has_left():
                return

    def _has_left(self) -> bool:
        """Whether the viewer has closed the connection; asked while there is nothing to send."""
        self.connection.setblocking(False)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            self.connection.settimeout(SEND_S)

    # --- how they are sent ----------------------------------------------------------------------

    def _send(self, content_type: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", ", ".join(METHODS))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A line of text that repeats nothing of the request."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._send("text/plain; charset=utf-8", f"{code} {status.phrase}\n".encode(), status)

    def end_headers(self) -> None:
        if self.request_version == "HTTP/0.9":
            return
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.send_header("Content-Security-Policy", self.server.content_security_policy)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        super().end_headers()

    def version_string(self) -> str:
        return "live-view"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        log.debug("live view: %r", format % args)


def _part(jpeg: Jpeg) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg.data)}\r\n\r\n"
    return head.encode() + jpeg.data + b"\r\n"
