"""uvicorn, with what a public server needs beside: bounded waiting, and an orderly end."""

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.cli import UserError, log

REQUEST_S = 10.0  # from a connection, or the last answer, to the head of a request
KEEP_ALIVE_S = 5
WAITING_CONNECTIONS = 2048  # that the system holds until they are accepted
OPEN_FILES = 65536
ENDING = "ending: accepted requests are answered; a second signal ends at once"


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 in which a client that connects and says little does not stay."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def _expect_request(self) -> None:
        self.loop.call_later(REQUEST_S, self._close_unless_newer, self.cycle)

    def _close_unless_newer(self, cycle: Any) -> None:
        is_answered = cycle is None or cycle.response_complete
        if self.cycle is not cycle or not is_answered or self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
        self.transport.close()


class Ending:
    """Whether the server is to end: SIGINT or SIGTERM came, or somebody set it.

    The second signal ends the process at once, as nothing is half-written. A flag, since asyncio
    swallows most exceptions that a signal raises.
    """

    def __init__(self) -> None:
        self.is_asked_for = False

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Notes signals while the block runs, in the main thread; others receive none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.is_asked_for:
            os._exit(128 + number)
        self.is_asked_for = True
        with contextlib.suppress(OSError):  # a stream of Python's may be in the middle of a line
            os.write(sys.stderr.fileno(), f"{ENDING}\n".encode())


class Server(uvicorn.Server):
    """Ends when it is told to and every accepted request has its answer.

    Args:
        app: an ASGI application.
        ending: tells it.
        url: told when it can be used.
        longest_s: that an accepted request may take.
    """

    def __init__(self, app: Any, ending: Ending, url: str, longest_s: float):
        self._ending, self._url = ending, url
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=WAITING_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(longest_s) + 1,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with self._ending.signals():
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("Serving at %s", self._url)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._ending.is_asked_for


def listener(host: str, port: int) -> socket.socket:
    """A socket that is bound, but not yet open to connections.

    Raises:
        UserError: naming --host or --port, the address cannot be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        bound = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _address_error(host, port, error) from None
    try:
        if os.name == "posix":  # on Windows it would share a port that is in use
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _address_error(host, port, error) from None
    return bound


def _address_error(host: str, port: int, error: Exception) -> UserError:
    kind = getattr(error, "errno", None)
    if isinstance(error, socket.gaierror | UnicodeError):
        return UserError(f"--host {host}", "is no known host", "leave it out for 127.0.0.1")
    if kind == errno.EADDRINUSE:
        remedy = "end the program that uses it, or choose another; --port 0 takes any free one"
        return UserError(f"--port {port}", "is in use", remedy)
    if kind in (errno.EACCES, errno.EPERM):
        return UserError(f"--port {port}", "is not allowed", "choose one from 1024 on")
    if kind == errno.EADDRNOTAVAIL:
        what = "is no address of this machine"
        return UserError(f"--host {host}", what, "leave it out for 127.0.0.1")
    return UserError(f"--host {host}", f"cannot be served ({error})", "choose another")


def allow_many_connections() -> None:
    """Lifts the limit of open files, often 1024, as far as the system lets everybody do."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
