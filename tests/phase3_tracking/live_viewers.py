"""Clients of a live view, over real connections."""

import http.client
import re
import socket
import time
from collections.abc import Callable

import cv2
import numpy as np

from phase3_tracking.live.live_view import LiveView

TIMEOUT_S = 20.0


def gray(level: int) -> np.ndarray:
    return np.full((24, 32, 3), level, np.uint8)


def level_of(data: bytes) -> int:
    return round(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).mean())


def port_of(view: LiveView) -> int:
    return int(view.url.rstrip("/").rpartition(":")[2])


def ask(view: LiveView, path: str, method: str = "GET", **headers: str):
    """(answer, its body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(view), timeout=TIMEOUT_S)
    connection.request(method, path, headers=headers)
    with connection.getresponse() as answer:
        body = answer.read()
    connection.close()
    return answer, body


def raw(view: LiveView, request: bytes) -> bytes:
    """Everything that comes back, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port_of(view)), timeout=TIMEOUT_S) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


class Stream:
    """A viewer that reads /stream part by part."""

    def __init__(self, view: LiveView, receive_buffer: int | None = None):
        self.connection = socket.socket()
        if receive_buffer:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.connection.settimeout(TIMEOUT_S)
        self.connection.connect(("127.0.0.1", port_of(view)))
        self.connection.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.file = self.connection.makefile("rb")
        self.head = self._until_blank_line()

    def _until_blank_line(self) -> bytes:
        return b"".join(iter(self.file.readline, b"\r\n"))

    def next_level(self) -> int | None:
        """The gray level of the next frame; None when the stream has ended as it should."""
        boundary = self.file.readline()
        if boundary == b"--frame--\r\n":
            assert self.file.read() == b""
            return None
        assert boundary == b"--frame\r\n"
        head = self._until_blank_line()
        found = re.fullmatch(rb"Content-Type: image/jpeg\r\nContent-Length: (\d+)\r\n", head)
        assert found
        data = self.file.read(int(found[1]))
        assert self.file.read(2) == b"\r\n"
        return level_of(data)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.connection.close()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
