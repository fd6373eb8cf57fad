"""What ab and /metrics tell is read as it is meant, and a small run of the benchmark."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks import http_load
from benchmarks.http_load import all_answered, is_orderly, parse_ab, what_happened
from benchmarks.serving_load import (
    AGAIN,
    BARE,
    DECODED,
    SERVER,
    jpeg,
    main,
    measure,
    report,
    what_to_serve,
)
from common.cli import UserError
from tests.constant_detector import write_constant_detector
from tests.random_detectors import random_scene

AB = """
Concurrency Level:      8
Time taken for tests:   1.722 seconds
Complete requests:      40
Failed requests:        3
   (Connect: 0, Receive: 1, Length: 2, Exceptions: 0)
Non-2xx responses:      12
Requests per second:    23.23 [#/sec] (mean)

Percentage of the requests served within a certain time (ms)
  50%    324
  66%    336
  90%    365
  99%    381
 100%    390 (longest request)
"""


def test_the_report_of_ab():
    assert parse_ab(AB) == {
        "seconds": 1.722,
        "complete": 40,
        "failed": 3,
        "latency_ms": {"p50": 324.0, "p90": 365.0, "p99": 381.0},
    }
    with pytest.raises(ValueError, match="Time taken"):
        parse_ab("ab: invalid URL")


def test_what_the_server_counted():
    counted = {
        'detector_requests_total{path="/detect",status="200"}': 6.0,
        'detector_requests_total{path="/detect",status="429"}': 2.0,
        'detector_requests_total{path="/detect",status="500"}': 0.0,  # of an earlier load
        'detector_requests_total{path="/metrics",status="200"}': 1.0,
        "detector_batch_size_count": 2.0,
        "detector_batch_size_sum": 6.0,
    }
    assert what_happened(counted) == {"statuses": {"200": 6, "429": 2}, "batch_size": 3.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"statuses": {"200": 10}}, True),
        ({"statuses": {"200": 3, "429": 6}}, False),  # one was lost
        ({"statuses": {"200": 3, "429": 6, "500": 1}}, False),
        ({"failed": 1}, False),
        ({"complete": 9}, False),
    ],
)
def test_a_burst_in_which_nothing_but_429_went_wrong(changes, expected):
    burst = {"requests": 10, "complete": 10, "failed": 0, "statuses": {"200": 3, "429": 7}}
    assert is_orderly({**burst, **changes}) is expected


def test_a_load_that_was_not_answered_is_not_compared():
    whole = {"failed": 0, "statuses": {"200": 4}}
    assert all_answered(whole) == whole
    for bad in ({"failed": 1, "statuses": {"200": 4}}, {"failed": 0, "statuses": {"429": 4}}):
        with pytest.raises(RuntimeError, match="not every request"):
            all_answered(bad)


def test_shares_are_of_throughput():
    seconds = {BARE: [2.0] * 9, AGAIN: [2.0] * 9, DECODED: [3.0] * 9, SERVER: [2.5] * 9}
    result = report({name: np.array(times) for name, times in seconds.items()}, images=10)
    assert result["images_per_s"] == {
        BARE: 5.0,
        AGAIN: 5.0,
        DECODED: pytest.approx(10 / 3),
        SERVER: 4.0,
    }
    assert result["server_over_bare"]["ratio"] == pytest.approx(0.8)
    assert result["server_over_bare"]["verdict"] == "slower"
    assert result["server_over_decode_and_bare"]["ratio"] == pytest.approx(1.2)


def test_arms_take_turns_after_a_warm_up():
    calls = []
    arms = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    seconds = measure(arms, rounds=3, seed=0)
    assert [set(calls[start : start + 2]) for start in range(0, 8, 2)] == [{"a", "b"}] * 4
    assert sorted([*seconds["a"], *seconds["b"]]) == [3, 4, 5, 6, 7, 8]


def test_what_can_be_served(tmp_path):
    with pytest.raises(UserError, match="neither a package with serve"):
        what_to_serve(tmp_path)
    for name in ("serve.py", "other.onnx"):
        (tmp_path / name).touch()
    assert what_to_serve(tmp_path) == (tmp_path / "serve.py", tmp_path / "model.onnx")
    assert what_to_serve(tmp_path / "other.onnx") == (http_load.SERVE, tmp_path / "other.onnx")
    assert http_load.SERVE.is_file()


def test_another_picture_is_sent_as_a_jpeg(tmp_path):
    Image.new("RGBA", (8, 6)).save(tmp_path / "a.png")
    assert jpeg(tmp_path / "a.png").startswith(b"\xff\xd8\xff")
    (tmp_path / "b.JPG").write_bytes(b"as it is")
    assert jpeg(tmp_path / "b.JPG") == b"as it is"


@pytest.mark.skipif(shutil.which("ab") is None, reason="ab (apache2-utils) is not installed")
def test_a_run(tmp_path):
    write_constant_detector(model := tmp_path / "model.onnx")
    Image.fromarray(random_scene(np.random.default_rng(0), 90, 120)).save(tmp_path / "a.jpg")
    options = ["--serve", model, "--image", tmp_path / "a.jpg", "--output", tmp_path / "load.json"]
    options += ["--images", 7, "--batch-size", 2, "--rounds", 2, "--burst", 100, "--device", "cpu"]
    assert main([*map(str, options), "--quiet"]) == 0
    result = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    assert (result["images_per_round"], result["rounds"], result["concurrency"]) == (8, 2, 4)
    assert set(result["images_per_s"]) == {BARE, AGAIN, DECODED, SERVER}
    assert all(rate > 0 for rate in result["images_per_s"].values())
    assert result["server_over_bare"]["ratio"] > 0
    assert result["load"]["statuses"] == {"200": 8}
    assert 1 <= result["load"]["batch_size"] <= 2
    assert sum(result["burst"]["statuses"].values()) == 100
    assert result["provider"] == "CPUExecutionProvider"
    assert {"ab", "fastapi", "uvicorn"} <= set(result["versions"])
    assert "device_name" in result["environment"]
