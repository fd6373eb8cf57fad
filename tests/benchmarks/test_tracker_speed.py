"""The synthetic stream of the speed benchmark, and a small run of it on our own trackers."""

import json

import numpy as np
import pytest

from benchmarks.tracker_speed import FRAMES, main, stream
from tests.training_runs import error_of


def test_the_stream_is_the_same_for_the_same_seed():
    first, again, other = (list(stream(30, 5, seed)) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(first, other, strict=True))


def test_the_stream_has_the_shares_it_promises():
    rows = np.concatenate(list(stream(200, 200, 0)))
    assert len(rows) / (200 * 200) == pytest.approx(0.92 + 0.05, abs=0.01)
    assert ((rows[:, 2:4] - rows[:, :2]) > 0).all()
    assert (rows[:, 4] < 0.5).mean() == pytest.approx((0.92 * 0.12 + 0.05 * 0.5) / 0.97, abs=0.01)


def test_a_run_on_our_trackers(tmp_path):
    output = tmp_path / "speed.json"
    options = ["--objects", "5", "--flat-frames", "100", "--only", "ours iou,ours cmcsort"]
    assert main([*options, "--output", str(output), "--quiet"]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert {row["name"] for row in report["rows"]} == {"ours iou", "ours cmcsort"}
    assert all(row["frames"] == FRAMES and row["p50_ms"] > 0 for row in report["rows"])
    assert report["speedup"] == []  # no peers, nothing to compare with


@pytest.mark.parametrize(
    "words", [["--objects", "a"], ["--objects", "0"], ["--budget", "nan"], ["--budget", "0"]]
)
def test_a_bad_number_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {words[0]}: ")


def test_a_peer_that_is_not_there_is_one_line(tmp_path, capsys):
    peer = tmp_path / "bin" / "python"
    assert main(["--peers", str(peer), "--output", str(tmp_path / "speed.json")]) == 2
    assert f"--peers {peer}: no such program" in error_of(capsys)
