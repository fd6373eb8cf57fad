"""Traces of real steps on the CPU, and what is left of one above its limit."""

import contextlib
import gzip
import json

import pytest
import torch

from phase2_optimization import profile_trace
from phase2_optimization.profile_steps import Arm

CPU = torch.device("cpu")


def two_products(clock):
    with clock.stage("backbone"):
        first = torch.rand(64, 64) @ torch.rand(64, 64)
    with clock.stage("RPN"):
        first @ first


@pytest.fixture(scope="module")
def trace():
    arm = Arm("two products", torch.float32, two_products, lambda clock: contextlib.nullcontext())
    return profile_trace.record({"training": arm, "inference": arm}, CPU)


def test_a_trace_labels_each_step_and_its_stages_and_knows_the_memory(trace):
    labels = {
        name: [e for e in trace["traceEvents"] if e["name"] == name and "dur" in e]
        for name in ("training", "inference", "backbone", "RPN")
    }
    assert {name: len(events) for name, events in labels.items()} == {
        **dict.fromkeys(("training", "inference"), 1),
        **dict.fromkeys(("backbone", "RPN"), 2),
    }
    (step,) = labels["training"]
    assert step["ts"] <= labels["backbone"][0]["ts"] <= step["ts"] + step["dur"]
    made = [e["args"]["Bytes"] for e in trace["traceEvents"] if e["name"] == "[memory]"]
    assert made.count(64 * 64 * 4) == 8  # two factors and two products of each step


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]


def test_a_trace_below_the_limit_is_kept_whole(trace, tmp_path):
    path = tmp_path / "trace.json.gz"
    written = profile_trace.save(trace, path, max_mib=20)
    assert written["events_dropped"] == 0
    assert written["size_mib"] == path.stat().st_size / 2**20
    assert read(path) == trace["traceEvents"]


def test_a_trace_above_the_limit_keeps_names_and_its_longest_events(trace, tmp_path):
    path = tmp_path / "trace.json.gz"
    full = profile_trace.save(trace, path, max_mib=20)
    limit = full["size_mib"] / 2
    small = profile_trace.save(trace, path, max_mib=limit)
    assert path.stat().st_size <= limit * 2**20
    kept = read(path)
    assert small["events"] == len(kept) == full["events"] - small["events_dropped"] > 0
    assert {"training", "inference", "process_name"} <= {event["name"] for event in kept}
    assert "[memory]" not in {event["name"] for event in kept}
    shortest = min(event["dur"] for event in kept if "dur" in event)
    dropped = [e for e in trace["traceEvents"] if e not in kept]
    assert all(event.get("dur", 0) <= shortest for event in dropped)


def test_one_event_is_left_of_a_trace_however_small_the_limit(trace, tmp_path):
    written = profile_trace.save(trace, tmp_path / "trace.json.gz", max_mib=1e-9)
    assert written["events"] == len(read(tmp_path / "trace.json.gz")) == 1
