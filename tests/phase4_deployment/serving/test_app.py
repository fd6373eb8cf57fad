"""What the server answers to good, bad, slow and too many requests, over real connections."""

import json
import re
import socket
import time

import pytest

from tests.phase4_deployment.serving.running import (
    FOUND,
    JPEG,
    TIMEOUT_S,
    Gate,
    Running,
    ask,
    picture,
    samples,
    wait_until,
)
from tests.phase4_deployment.serving.test_pictures import form, png_that_claims

HEAD = b"POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"


@pytest.fixture(scope="module")
def server():
    with Running() as one:
        yield one


@pytest.fixture(autouse=True)
def alive_afterwards(request):
    yield
    if "server" in request.fixturenames:
        assert request.getfixturevalue("server").detect().status == 200


def raw(port: int, *parts: bytes, wait_s: float = 0.0) -> bytes:
    """Everything that comes back, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(wait_s)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def check_error(answer, status: int, what: str) -> None:
    assert answer.status == status
    assert list(answer.json) == ["error"]
    assert what in answer.json["error"]
    assert b"\n" not in answer.body


# --- what is asked for ------------------------------------------------------------------------


def test_boxes_of_a_picture(server):
    answer = server.detect(picture(32, 24))
    assert answer.status == 200
    assert answer.json == {
        "width": 32,
        "height": 24,
        "detections": [
            {
                "box_xyxy": [1.5, 2.25, 20.0, 30.124],
                "score": 0.876543,
                "category_id": 3,
                "name": "car",
            },
            {
                "box_xyxy": [0.0, 0.0, 5.0, 6.0],
                "score": 0.5,
                "category_id": 1,
                "name": "<b>Fuß</b>",
            },
        ],
    }
    assert len(FOUND) == 2


def test_a_form_is_answered_like_a_body(server):
    body = form(('name="file"; filename="a.png"', picture(40, 30, kind="PNG")))
    answer = server.ask("POST", "/detect", body, Content_Type="multipart/form-data; boundary=X")
    assert (answer.status, answer.json["width"], len(answer.json["detections"])) == (200, 40, 2)


def test_the_page_loads_nothing_from_elsewhere_and_runs_its_own_code_only(server):
    answer = server.ask("GET", "/")
    page = answer.body.decode()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    links = re.findall(r"(?:https?:)?//[\w.-]+\.\w[^\s\"']*", page)
    assert links == ["http://www.w3.org/2000/svg"]  # a name, which nobody fetches
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert server.ask("HEAD", "/").body == b""


def test_health_names_the_provider(server):
    answer = server.ask("GET", "/health")
    assert (answer.status, answer.json["status"]) == (200, "ok")
    assert answer.json["provider"] == "FakeProvider"
    assert answer.json["pictures_in_work"] == 0


def test_the_interface_is_described(server):
    described = server.ask("GET", "/openapi.json").json
    assert set(described["paths"]) == {"/detect", "/health", "/metrics"}
    taken = described["paths"]["/detect"]["post"]["requestBody"]["content"]
    assert set(taken) == {"image/jpeg", "image/png", "multipart/form-data"}


def test_every_answer_is_counted():
    with Running() as server:
        assert [server.detect(body).status for body in (None, b"no picture")] == [200, 400]
        assert server.ask("GET", "/nowhere").status == 404
        answer = server.ask("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.body.decode())
    counted = {key: found[key] for key in found if key.startswith("detector_requests_total")}
    assert counted == {
        'detector_requests_total{path="/detect",status="200"}': 1,
        'detector_requests_total{path="/detect",status="400"}': 1,
        'detector_requests_total{path="other",status="404"}': 1,
    }
    assert found["detector_latency_seconds_count"] == found["detector_batch_size_count"] == 1
    assert found["detector_queue_length"] == found["detector_pictures_in_work"] == 0
    assert 'detector_info{model="model.onnx",provider="FakeProvider"}' in found


def test_pictures_that_arrive_together_share_an_inference():
    gate = Gate()
    with Running(gate) as server:
        first = server.later(picture(9, 9))
        assert gate.entered.wait(TIMEOUT_S)
        others = server.later(picture(8, 6), picture(9, 9), picture(8, 6), picture(8, 6))
        wait_until(lambda: server.pipeline.in_work == 5)
        wait_until(lambda: len(server.pipeline._batcher._jobs) == 4)
        text = server.ask("GET", "/metrics").body.decode()
        gate.open()
        assert [one.get().status for one in first + others] == [200] * 5
        widths = [one.get().json["width"] for one in others]
    assert widths == [8, 9, 8, 8]
    assert sorted(map(len, gate.batches)) == [1, 1, 3]
    assert samples(text)["detector_queue_length"] == 4
    assert samples(text)["detector_pictures_in_work"] == 5


# --- bad requests -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "status", "what"),
    [
        (b"", "image/jpeg", 400, "there is nothing in it"),
        (b"text", "image/png", 400, "neither a JPEG nor a PNG"),
        (b'{"image": ', "application/json", 415, "the Content-Type is none of these"),
        (picture(), "text/plain", 415, "give one: image/jpeg"),
        (picture(), "", 415, "give one: image/jpeg"),
        (png_that_claims(20000, 20000), "image/png", 413, "more than 1 megapixels"),
        (b"\0" * 100_001, "image/png", 413, "larger than 0.0953674 MiB"),
        (b"\0" * 30_000_000, "image/png", 413, "larger than"),
        (b"\0" * 30_000_000, "text/plain", 415, "give one"),
        (form(), "multipart/form-data; boundary=X", 400, "0 files"),
    ],
    ids=[
        "empty",
        "text",
        "json",
        "text/plain",
        "no type",
        "bomb",
        "a byte more",
        "30 MB",
        "30 MB of text",
        "form",
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.fault("P4-50")
def test_bodies_that_are_refused(server, body, content_type, status, what):
    check_error(server.ask("POST", "/detect", body, Content_Type=content_type), status, what)


@pytest.mark.parametrize("size", [100_001, 5_000_000])
@pytest.mark.fault("P4-50")
def test_a_body_of_unknown_length_is_not_read_to_its_end(server, size):
    chunks = iter([b"\0" * size])
    answer = ask(server.port, "POST", "/detect", chunks, JPEG)  # sent in chunks
    check_error(answer, 413, "larger than")


def test_a_client_that_asks_before_it_sends_need_not_send(server):
    head = HEAD + b"Content-Length: 200000\r\nExpect: 100-continue\r\n\r\n"
    answer = raw(server.port, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, 404) for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd")),
        *(
            ("GET", path, 404)
            for path in ("/..\\..\\windows", "/detect/", "/docs", "/" + "x" * 5000)
        ),
        ("GET", "/detect", 405),
        ("POST", "/", 405),
        ("DELETE", "/detect", 405),
    ],
)
@pytest.mark.fault("P4-50")
def test_paths_and_methods_that_there_are_not(server, method, path, status):
    answer = server.ask(method, path)
    check_error(answer, status, "there" if status == 404 else "another method")
    assert (answer.headers.get("Allow") is not None) == (status == 405)


@pytest.mark.parametrize(
    ("host", "status"),
    [(b"127.0.0.1", 200), (b"127.0.0.1:80", 200), (b"evil.example", 421), (b"[::1]:80", 421)],
)
def test_other_names_than_its_own_are_not_answered(server, host, status):
    head = b"GET / HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n"
    assert raw(server.port, head).startswith(f"HTTP/1.1 {status} ".encode())


def test_what_is_no_http_is_answered_400(server):
    assert raw(server.port, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_every_answer_may_be_kept_and_shown_by_nobody_else(server):
    for path in ("/", "/health", "/nowhere"):
        headers = server.ask("GET", path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "server" not in headers


# --- slow, many, and failing ------------------------------------------------------------------


@pytest.mark.fault("P4-50")
def test_a_body_that_is_too_slow():
    with Running(body_s=0.2) as server:
        start = time.monotonic()
        answer = raw(server.port, HEAD + b"Content-Length: 1000\r\n\r\nslow")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'{"error":"the body has not arrived within 0.2 s' in answer
        assert time.monotonic() - start < 5
        assert server.detect().status == 200


def test_a_client_that_leaves_is_counted_and_costs_nothing():
    with Running() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nsome")
        wait_until(lambda: ("/detect", 499) in server.metrics._requests)
        assert server.detect().status == 200


def test_a_full_queue():
    gate = Gate()
    with Running(gate, queue_size=3) as server:
        taken = server.later(*[picture()] * 3)
        wait_until(lambda: server.pipeline.in_work == 3)
        answer = server.detect()
        check_error(answer, 429, "too many pictures wait")
        assert answer.headers["Retry-After"] == "1"
        server.metrics.on_batch(1, 7.5)  # an image takes so long
        assert server.detect().headers["Retry-After"] == "23"  # 3 * 7.5, rounded up
        assert server.ask("GET", "/health").status == 200
        gate.open()
        assert [one.get().status for one in taken] == [200] * 3
        assert server.detect().status == 200


@pytest.mark.fault("P4-50")
def test_bodies_that_fill_the_memory():
    """16 of the largest size may be held, two of them copies that two decoders take out of forms;
    the next byte is one too many."""
    with Running(max_bytes=1000) as server:
        half = HEAD + b"Content-Length: 1000\r\n\r\n" + b"\0" * 999
        waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(14)]
        for connection in waiting[:13]:
            connection.sendall(half)
        time.sleep(0.3)
        check_error(server.detect(b"\0" * 999), 400, "neither a JPEG nor a PNG")
        waiting[13].sendall(half)
        time.sleep(0.3)
        answer = server.detect(b"\0" * 999)
        check_error(answer, 429, "too many pictures arrive")
        assert answer.headers["Retry-After"] == "1"
        for connection in waiting:
            connection.close()
        wait_until(lambda: server.detect(picture(4, 4)).status == 200)


def test_an_answer_that_takes_too_long():
    gate = Gate()
    with Running(gate, answer_s=0.2) as server:
        check_error(server.detect(), 504, "no answer within 0.2 s")
        check_error(server.detect(), 504, "no answer")  # it waits for the first
        assert len(server.pipeline._batcher._jobs) == 0  # and is not kept
        assert server.pipeline.in_work == 0
        gate.open()
        wait_until(lambda: server.detect().status == 200)
    assert len(gate.batches) == 2


def test_a_detector_that_fails(caplog):
    def detect(images):
        if images[0].shape[0] == 5:
            raise RuntimeError("CUDA error: secret")
        return Gate.__call__(gate, images)

    gate = Gate()
    gate.open()
    with Running(detect) as server:
        check_error(server.detect(picture(5, 5)), 500, "internal error")
        assert server.detect().status == 200
        assert server.ask("GET", "/health").json["status"] == "ok"
    assert "CUDA error: secret" in caplog.text


def test_no_number_that_json_does_not_have_is_sent(caplog):
    import numpy as np

    with Running(lambda images: [np.array([[0, 0, 1, 1, np.nan, 3.0]])]) as server:
        check_error(server.detect(), 500, "internal error")


# --- the end ----------------------------------------------------------------------------------


def test_what_was_accepted_is_answered_and_nothing_new_taken_on():
    gate = Gate()
    with Running(gate) as server:
        taken = server.later(*[picture()] * 6)
        wait_until(lambda: server.pipeline.in_work == 6)
        server.is_draining = True
        check_error(server.detect(), 503, "the server ends")
        health = server.ask("GET", "/health")
        assert (health.status, health.json["status"]) == (503, "draining")
        server.stop()
        wait_until(lambda: not server.server.servers[0].is_serving())
        with pytest.raises(ConnectionRefusedError):
            server.detect()
        gate.open()
        assert [one.get().status for one in taken] == [200] * 6
        assert all(len(json.loads(one.get().body)["detections"]) == 2 for one in taken)
