"""The table of inference ladders."""

import json

import pytest

from benchmarks import ladder_table
from common.cli import UserError


def test_one_round_shows_no_interval(tmp_path):
    rows = [
        {
            **{"variant": name, "batch_size": 1, "latency_ms": {"p50": 10.0}, "map": 0.5},
            **{"speedup": {"ratio": ratio, "ci95": None}, "verdict": verdict, "status": "ok"},
        }
        for name, ratio, verdict in (("a", 1.0, "baseline"), ("b", 1.5, "too few rounds to tell"))
    ]
    machine = {"device_name": "a processor", "threads": 2, "packages": {"torch": "2.15.0"}}
    report = {"baseline": "a", "results": rows, "environment": machine}
    report |= {"architecture": "demo", "image_size": [64, 48]}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(report))
    assert "| `b` | 1.50 [–] too few rounds to tell |" in ladder_table.ladder_tables([path])


def test_a_rung_that_did_not_fit_beside_the_baseline_shows_its_time():
    row = {"variant": "a", "batch_size": 1, "latency_ms": {"p50": 10.0}, "map": None}
    row |= {"speedup": None, "verdict": None, "status": "ok"}
    assert ladder_table._cell({"results": [row]}, "a") == "10 ms, map –"


@pytest.mark.parametrize("content", [{"schema": "training/1"}, {"baseline": "a", "results": []}])
def test_a_report_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"profile\.json: no inference benchmark"):
        ladder_table.ladder_tables([path])
