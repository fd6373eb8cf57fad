"""What the live view answers, to whom, and how little a bad viewer can do."""

import json
import re
import socket
import time
from unittest import mock

import numpy as np
import pytest

from phase3_tracking.live import live_server
from phase3_tracking.live.live_server import MAX_CONNECTIONS, MAX_STREAMS
from phase3_tracking.live.live_view import LiveView
from tests.phase3_tracking.live_viewers import (
    TIMEOUT_S,
    Stream,
    ask,
    gray,
    level_of,
    port_of,
    raw,
    wait_until,
)


@pytest.fixture
def view():
    with LiveView("127.0.0.1", 0, title="street.mp4") as one:
        yield one


# --- routes -----------------------------------------------------------------------------------


def test_the_page(view):
    answer, body = ask(view, "/")
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
    page = body.decode("utf-8")
    assert "<h1>street.mp4</h1>" in page
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w", page)  # nothing from elsewhere


@pytest.mark.parametrize("title", ["<script>alert(1)</script>", "a & b", "日本 🚲", "\ud800", ""])
def test_any_title(title):
    with LiveView("127.0.0.1", 0, title=title) as view:
        page = ask(view, "/")[1].decode("utf-8")
    assert page.count("<script>") == 1
    if title.isprintable():
        expected = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert f"<h1>{expected}</h1>" in page


def test_the_newest_frame(view):
    answer, _ = ask(view, "/frame.jpg")
    assert answer.status == 503  # there is none yet
    view.publish(gray(10), {})
    view.publish(gray(60), {})
    answer, body = ask(view, "/frame.jpg?t=1")
    assert (answer.status, answer.getheader("Content-Type")) == (200, "image/jpeg")
    assert level_of(body) == 60


def test_status(view):
    view.publish(gray(0), {"fps": 12.5, "class_counts": {"<script>": np.int64(3)}})
    answer, body = ask(view, "/status.json")
    assert answer.getheader("Content-Type") == "application/json"
    status = json.loads(body)
    assert status["frames_published"] == 1
    assert status["counters"] == {"fps": 12.5, "class_counts": {"<script>": 3}}


def test_health(view):
    answer, body = ask(view, "/health")
    assert (answer.status, body) == (200, b"ok\n")


@pytest.mark.parametrize(
    "path",
    [
        *("/favicon.ico", "/index.html", "/stream/", "//", "/../live_page.html", "/%2e%2e/x"),
        *("/frame.jpg/..", "/STATUS.JSON", "/" + "x" * 5000, "*", "http://localhost/"),
    ],
)
def test_anything_else_is_not_found(view, path):
    answer, body = ask(view, path)
    if path == "//":  # http.server takes several slashes at the beginning for one
        assert answer.status == 200
        return
    assert (answer.status, body) == (404, b"404 Not Found\n")


def test_head_is_get_without_the_body(view):
    view.publish(gray(0), {})
    for path in ("/", "/frame.jpg", "/health", "/stream", "/nowhere"):
        answer, body = ask(view, path, "HEAD")
        assert (answer.status, body) == (404 if path == "/nowhere" else 200, b"")
    assert int(ask(view, "/", "HEAD")[0].getheader("Content-Length")) == len(ask(view, "/")[1])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "FOO"])
def test_only_get_and_head(view, method):
    answer, _ = ask(view, "/", method)
    assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD")


# --- protection -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/status.json", "/nowhere", "/stream"])
def test_security_headers(view, path):
    answer, _ = ask(view, path, "HEAD")
    policy = dict(
        part.split(" ", 1) for part in answer.getheader("Content-Security-Policy").split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert all("unsafe" not in sources and "*" not in sources for sources in policy.values())
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    assert answer.getheader("Cache-Control") == "no-store"
    assert answer.getheader("Access-Control-Allow-Origin") is None
    assert answer.getheader("Server") == "live-view"  # and no version


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:99", "127.0.0.1:8000", "[::1]:8000", "[::1]", "127.0.0.2"]
)
def test_names_of_this_machine(view, host):
    assert ask(view, "/health", Host=host)[0].status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("192.168.1.1", "[2001:db8::1]:80", "", "0.0.0.0", "evil.example:127.0.0.1"),
    ],
)
def test_other_names_see_nothing(view, host):
    view.publish(gray(0), {})
    for path in ("/", "/stream", "/frame.jpg", "/status.json", "/health"):
        answer, body = ask(view, path, Host=host)
        assert (answer.status, body) == (421, b"421 Misdirected Request\n")


def test_a_request_without_a_host_sees_nothing(view):
    assert raw(view, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 421 ")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET\r\n\r\n",
        b"GET /<script> HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    ],
)
def test_garbage_is_refused_and_repeated_to_nobody(view, request_bytes):
    answer = raw(view, request_bytes)
    assert not answer.startswith(b"HTTP/1.0 2")
    assert b"<" not in answer
    assert ask(view, "/health")[0].status == 200


def test_connections_are_bounded(view):
    held = [socket.create_connection(("127.0.0.1", port_of(view))) for _ in range(MAX_CONNECTIONS)]
    try:
        wait_until(lambda: len(view._server._open) == MAX_CONNECTIONS)
        assert raw(view, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(
            b"HTTP/1.0 503 "
        )
        view.publish(gray(1), {})  # goes on
    finally:
        for one in held:
            one.close()
    wait_until(lambda: not view._server._open)
    assert ask(view, "/health")[0].status == 200


def test_streams_are_fewer_than_connections(view):
    view.publish(gray(1), {})
    streams = [Stream(view) for _ in range(MAX_STREAMS)]
    try:
        assert ask(view, "/stream")[0].status == 503
        assert ask(view, "/status.json")[0].status == 200
    finally:
        for one in streams:
            one.__exit__()
    view.publish(gray(2), {})
    wait_until(lambda: not view._server._open)
    with Stream(view) as again:
        assert again.next_level() == 2


def test_a_request_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(live_server, "REQUEST_S", 0.5)
    with (
        LiveView("127.0.0.1", 0) as view,
        socket.create_connection(("127.0.0.1", port_of(view)), timeout=TIMEOUT_S) as connection,
    ):
        begin = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        try:
            while time.monotonic() - begin < TIMEOUT_S:  # a byte now and then keeps no slot
                connection.sendall(b"x")
                connection.settimeout(0.05)
                try:
                    if not connection.recv(100):
                        break
                except TimeoutError:
                    continue
        except ConnectionError:
            pass
        assert time.monotonic() - begin < TIMEOUT_S


# --- the stream -------------------------------------------------------------------------------


def test_the_stream_shows_every_frame_of_a_slow_pipeline(view):
    view.publish(gray(10), {})
    with Stream(view) as viewer:
        assert b"multipart/x-mixed-replace; boundary=frame" in viewer.head
        assert viewer.next_level() == 10
        for level in (40, 80, 120):
            view.publish(gray(level), {})
            assert viewer.next_level() == level


def test_a_viewer_may_come_before_the_first_frame(view):
    with Stream(view) as viewer:
        view.publish(gray(33), {})
        assert viewer.next_level() == 33


def test_a_viewer_who_leaves_before_the_first_frame_is_forgotten(monkeypatch):
    monkeypatch.setattr(live_server, "REPEAT_S", 0.05)
    with LiveView("127.0.0.1", 0) as view:
        with Stream(view):
            assert len(view._server._open) == 1
        wait_until(lambda: not view._server._open)


def test_a_frame_is_repeated_while_none_follows(monkeypatch):
    monkeypatch.setattr(live_server, "REPEAT_S", 0.05)
    with LiveView("127.0.0.1", 0) as view:
        view.publish(gray(50), {})
        with Stream(view) as viewer:
            assert [viewer.next_level() for _ in range(3)] == [50, 50, 50]
        wait_until(lambda: not view._server._open)  # and so it is noticed that nobody looks


def test_a_slow_viewer_gets_the_newest_frame_and_no_queue(view):
    """It reads nothing while 300 frames of noise pass, each larger than all buffers together."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (900, 1200, 3), np.uint8)
    view.publish(noise, {})
    with Stream(view, receive_buffer=4096) as slow, Stream(view) as quick:
        for _ in range(300):
            view.publish(noise, {})
            time.sleep(0.001)
        view.publish(gray(77), {})
        levels: list[int | None] = []
        while 77 not in levels:
            levels.append(slow.next_level())
        assert len(levels) <= 5
        while quick.next_level() != 77:
            pass


def test_a_viewer_who_takes_nothing_is_cut_off(monkeypatch):
    monkeypatch.setattr(live_server, "SEND_S", 0.3)
    rng = np.random.default_rng(0)
    with LiveView("127.0.0.1", 0) as view:
        with Stream(view, receive_buffer=4096):
            for _ in range(3):
                view.publish(rng.integers(0, 256, (900, 1200, 3), np.uint8), {})
                time.sleep(0.1)
            wait_until(lambda: not view._server._open)
        assert ask(view, "/health")[0].status == 200


def test_an_error_of_ours_ends_one_connection_only(view, caplog):
    view.publish(gray(1), {})
    with mock.patch.object(view._frames, "status", side_effect=RuntimeError("broken")):
        assert raw(view, b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
    assert "broken" in caplog.text
    assert ask(view, "/status.json")[0].status == 200
