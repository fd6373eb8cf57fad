"""The live view as a run uses it: where it is served, and that it ends."""

import logging
import socket
import threading
import time
from unittest import mock

import numpy as np
import pytest

from common.cli import UserError
from phase3_tracking.live.live_view import LiveView
from tests.phase3_tracking.live_viewers import TIMEOUT_S, Stream, ask, gray, port_of, wait_until


def test_other_addresses_only_because_somebody_asked(caplog):
    with caplog.at_level(logging.INFO, "detection"), LiveView("127.0.0.1", 0):
        assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    caplog.clear()
    with caplog.at_level(logging.INFO, "detection"), LiveView("0.0.0.0", 0) as view:
        (warning,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
        assert f"0.0.0.0:{port_of(view)}" in warning.getMessage()
        assert ask(view, "/health", Host="camera.example:80")[0].status == 200


# --- the end ----------------------------------------------------------------------------------


def test_streams_end_after_the_newest_frame():
    with LiveView("127.0.0.1", 0) as view:
        view.publish(gray(10), {})
        viewer = Stream(view)
        assert viewer.next_level() == 10
        view.publish(gray(90), {})
    with viewer:
        levels = [viewer.next_level(), viewer.next_level()]
    assert levels == [90, None]


@pytest.mark.parametrize("before", [True, False], ids=["with_a_frame", "without_a_frame"])
def test_the_port_is_free_and_all_threads_have_ended(before):
    threads = set(threading.enumerate())
    with LiveView("127.0.0.1", 0) as view:
        port = port_of(view)
        if before:
            view.publish(np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8), {})
        stuck = Stream(view, receive_buffer=4096)  # takes nothing
        silent = socket.create_connection(("127.0.0.1", port))  # asks nothing
        wait_until(lambda: len(view._server._open) == 2)
        begin = time.monotonic()
    assert time.monotonic() - begin < 5
    assert set(threading.enumerate()) <= threads
    with LiveView("127.0.0.1", port) as again:
        assert ask(again, "/health")[0].status == 200
    stuck.__exit__()
    silent.close()


def test_it_ends_when_the_run_fails():
    threads = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="the run"), LiveView("127.0.0.1", 0):
        raise RuntimeError("the run")
    assert set(threading.enumerate()) <= threads


# --- addresses that cannot be used ------------------------------------------------------------


def test_a_port_in_use_is_one_line():
    with LiveView("127.0.0.1", 0) as view:
        port = port_of(view)
        said = rf"^--live 127\.0\.0\.1:{port}: port {port} is in use – .*--live 0"
        with pytest.raises(UserError, match=said):
            LiveView("127.0.0.1", port).__enter__()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied"), "port 80 is not allowed"),
        (OSError(99, "Cannot assign requested address"), "no address of this machine"),
        (OSError(24, "Too many open files"), "cannot be served .Too many open files."),
        (socket.gaierror(-2, "Name or service not known"), "no.where is no known host"),
    ],
)
def test_an_address_that_cannot_be_bound_is_one_line(error, said):
    with (
        mock.patch("phase3_tracking.live.live_view.LiveServer", side_effect=error),
        pytest.raises(UserError, match=f"^--live no.where:80: .*{said}"),
    ):
        LiveView("no.where", 80).__enter__()


def test_ipv6():
    try:
        with LiveView("::1", 0) as view:
            assert view.url == f"http://[::1]:{port_of(view)}/"
            with socket.create_connection(("::1", port_of(view)), timeout=TIMEOUT_S) as one:
                one.sendall(b"GET /health HTTP/1.1\r\nHost: [::1]\r\n\r\n")
                assert one.recv(100).startswith(b"HTTP/1.0 200 ")
    except UserError as error:
        pytest.skip(f"no IPv6 here: {error}")
