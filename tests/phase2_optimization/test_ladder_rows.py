"""Rows made of planted times, by hand."""

import numpy as np
import pytest
import torch

from phase2_optimization.arms import Timed
from phase2_optimization.ladder_rows import BASELINE_AGAIN, UNTIMED, Check, Rows
from phase2_optimization.variants import BASELINE

ANCHOR = (BASELINE, 1)


def checked(**more):
    return Check(accuracy={"map": 0.5, "map_50": 0.8}, **more)


def constant(times):
    """Arms of 8 rounds that each take so many milliseconds, and find nothing."""
    ms = {pair: np.full(8, float(value)) for pair, value in times.items()}
    return Timed({pair: {} for pair in times}, ms)


@pytest.fixture
def rows():
    checks = {name: checked() for name in (BASELINE, "channels_last", "folded_norms")}
    made = Rows(checks, torch.device("cpu"), 0)
    made.anchor = ANCHOR
    return made


def test_a_row_by_hand(rows):
    times = {ANCHOR: 12, (BASELINE_AGAIN, 1): 12, ("channels_last", 1): 8, ("folded_norms", 1): 8}
    for name in (BASELINE, "channels_last", "folded_norms"):
        rows.append(name, 1, constant(times))
    base, first, second = rows.rows
    assert (base["verdict"], base["step"]) == ("baseline", None)
    assert first["speedup"] == second["speedup"] == {"ratio": 1.5, "ci95": [1.5, 1.5]}
    assert first["verdict"] == second["verdict"] == "faster"
    assert first["step"] == {
        "over": BASELINE,
        "ratio": 1.5,
        "ci95": [1.5, 1.5],
        "verdict": "faster",
    }
    assert second["step"]["over"] == "channels_last"
    assert (second["step"]["ratio"], second["step"]["verdict"]) == (1.0, "within noise")
    assert first["throughput_img_s"] == first["drift_free_img_s"] == 125
    assert rows.noise == {1: {"ratio": 1.0, "ci95": (1.0, 1.0)}}


def test_a_step_has_to_beat_what_equal_arms_differ_by(rows):
    """Like the verdict against the baseline: 1.2 is nothing where equal arms are 1.25 apart."""
    times = {ANCHOR: 12, (BASELINE_AGAIN, 1): 15, ("channels_last", 1): 10}
    for name in (BASELINE, "channels_last"):
        rows.append(name, 1, constant(times))
    row = rows.rows[1]
    assert row["step"]["ratio"] == row["speedup"]["ratio"] == 1.2
    assert row["step"]["verdict"] == row["verdict"] == "within noise"


def test_the_anchor_takes_out_what_has_changed_since(rows):
    rows.append(BASELINE, 1, constant({ANCHOR: 10}))
    rows.append(BASELINE, 4, constant({(BASELINE, 4): 80, ANCHOR: 20}))  # all twice as slow
    rows.append(BASELINE, 8, constant({(BASELINE, 8): 80}))  # beside nothing
    assert [row["throughput_img_s"] for row in rows.rows] == [100, 50, 100]
    assert [row["drift_free_img_s"] for row in rows.rows] == [100, 100, 100]


def test_what_has_no_time_has_no_figures(rows):
    rows.append("channels_last", 1, Timed())
    rows.append("channels_last", 2, Timed({}, {("channels_last", 2): np.empty(0)}))
    assert [row["status"] for row in rows.rows] == ["oom", UNTIMED]
    keys = ("latency_ms", "throughput_img_s", "drift_free_img_s", "speedup", "step", "verdict")
    assert all(row[key] is None for row in rows.rows for key in keys)
    assert rows.times == {}
