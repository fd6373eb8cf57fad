"""Where the server can be bound, and clients that connect and say little."""

import errno
import resource
import socket
import time

import pytest

from common.cli import UserError
from phase4_deployment.package.serving import server as module
from phase4_deployment.package.serving.server import allow_many_connections, listener
from tests.phase4_deployment.serving.running import TIMEOUT_S, Gate, Running, picture, wait_until


@pytest.mark.fault("P4-52")
def test_only_this_machine_can_reach_a_loopback_address():
    with listener("127.0.0.1", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
        port = bound.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):  # nobody is let in before there is an answer
            socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


@pytest.mark.fault("P4-52")
def test_a_port_in_use():
    with listener("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: is in use – end the program"):
            listener("127.0.0.1", port)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "--port 80: is not allowed – choose one from 1024 on"),
        (errno.EADDRNOTAVAIL, "--host here: is no address of this machine"),
        (errno.ENOBUFS, "--host here: cannot be served"),
    ],
)
@pytest.mark.fault("P4-52")
def test_addresses_that_the_system_refuses(monkeypatch, number, message):
    class Refusing(socket.socket):
        def bind(self, address):
            raise OSError(number, "no")

    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 80))]
    )
    monkeypatch.setattr(module.socket, "socket", Refusing)
    with pytest.raises(UserError, match=message):
        listener("here", 80)


@pytest.mark.parametrize("host", ["a" * 70 + ".b", "..", "203.0.113.9"])
def test_hosts_that_there_are_not(host):
    with pytest.raises(UserError, match=r"--host .*: is no (known host|address of this machine)"):
        listener(host, 0)


def test_as_many_connections_as_the_system_lets_everybody_have():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_many_connections()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(module.OPEN_FILES, hard if hard >= 0 else module.OPEN_FILES) > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- clients that say little ------------------------------------------------------------------


def test_who_does_not_send_a_request_does_not_stay(monkeypatch):
    monkeypatch.setattr(module, "REQUEST_S", 0.3)
    with Running() as server:
        for sent, expected in ((b"", b""), (b"GET / HT", b"HTTP/1.1 408 Request Timeout\r\n")):
            with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
                connection.sendall(sent)
                received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            assert received.startswith(expected)
            assert bool(received) == bool(expected)
        assert server.detect().status == 200


def test_who_says_nothing_after_an_answer_does_not_stay(monkeypatch):
    monkeypatch.setattr(module, "REQUEST_S", 0.3)
    with Running() as server:
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")  # and no more
            received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert b"408 Request Timeout" in received


def test_an_answer_may_take_longer_than_a_request_may(monkeypatch):
    monkeypatch.setattr(module, "REQUEST_S", 0.1)
    gate = Gate()
    with Running(gate) as server:
        (one,) = server.later(picture())
        wait_until(lambda: server.pipeline.in_work == 1)
        time.sleep(0.4)
        gate.open()
        assert one.get().status == 200
