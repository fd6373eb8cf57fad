"""Rows made of planted times, by hand."""

import numpy as np
import pytest
import torch

from common.comparison import NO_NOISE
from phase2_optimization.arms import Timed, second_self
from phase2_optimization.ladder_rows import UNTIMED, Check, Rows
from phase2_optimization.variants import BASELINE

ANCHOR = (BASELINE, 1)
AGAIN = second_self(ANCHOR)


def checked(**more):
    return Check(accuracy={"map": 0.5, "map_50": 0.8}, **more)


def constant(times, rounds_id=1):
    """Arms of 8 rounds that each take so many milliseconds, and find nothing."""
    ms = {pair: np.full(8, float(value)) for pair, value in times.items()}
    return Timed({pair: {} for pair in times}, ms, rounds_id)


@pytest.fixture
def rows():
    checks = {name: checked() for name in (BASELINE, "channels_last", "folded_norms")}
    made = Rows(checks, torch.device("cpu"), 0)
    made.anchor = ANCHOR
    return made


def test_a_row_by_hand(rows):
    times = {ANCHOR: 12, AGAIN: 12, ("channels_last", 1): 8, ("folded_norms", 1): 8}
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
    assert {row["rounds_id"] for row in rows.rows} == {1}


def test_a_step_has_to_beat_what_equal_arms_differ_by(rows):
    """Like the verdict against the baseline: 1.2 is nothing where equal arms are 1.25 apart."""
    times = {ANCHOR: 12, AGAIN: 15, ("channels_last", 1): 10}
    for name in (BASELINE, "channels_last"):
        rows.append(name, 1, constant(times))
    row = rows.rows[1]
    assert row["step"]["ratio"] == row["speedup"]["ratio"] == 1.2
    assert row["step"]["verdict"] == row["verdict"] == "within noise"


def test_a_row_timed_alone_is_held_to_the_noise_of_its_own_rounds(rows):
    """Equal arms are 1.25 apart there, and 1.0 in the rounds that the baseline's row is from."""
    together = {ANCHOR: 12, AGAIN: 12, ("folded_norms", 1): 10}
    rows.append(BASELINE, 1, constant(together))
    alone = constant({ANCHOR: 12, AGAIN: 15, ("channels_last", 1): 10}, rounds_id=2)
    rows.append("channels_last", 1, alone)
    assert rows.noise == {1: {"ratio": 1.0, "ci95": (1.0, 1.0)}}
    rows.append("folded_norms", 1, constant(together))
    _, alone_row, joint_row = rows.rows
    assert alone_row["step"]["verdict"] == alone_row["verdict"] == "within noise"
    assert joint_row["step"]["verdict"] == joint_row["verdict"] == "faster"
    assert [row["rounds_id"] for row in rows.rows] == [1, 2, 1]


def test_without_a_second_baseline_nothing_is_told(rows):
    times = {ANCHOR: 12, ("channels_last", 1): 6}
    for name in (BASELINE, "channels_last"):
        rows.append(name, 1, constant(times))
    row = rows.rows[1]
    assert row["speedup"]["ratio"] == row["step"]["ratio"] == 2
    assert row["verdict"] == row["step"]["verdict"] == NO_NOISE
    assert rows.noise == {}


def test_without_a_baseline_there_is_no_verdict_and_no_step_is_told(rows):
    times = {("channels_last", 1): 12, ("folded_norms", 1): 6}
    rows.append("folded_norms", 1, constant(times))
    (row,) = rows.rows
    assert row["verdict"] is row["speedup"] is None
    assert (row["step"]["over"], row["step"]["verdict"]) == ("channels_last", NO_NOISE)


def test_nothing_has_drifted_at_the_anchors_own_batch_size(rows):
    """The median of ratios within the rounds is another figure than the ratio of the medians."""
    ms = {ANCHOR: np.array([10.0, 20, 30]), ("channels_last", 1): np.array([20.0, 10, 12])}
    for name in (BASELINE, "channels_last"):
        rows.append(name, 1, Timed({pair: {} for pair in ms}, ms))
    assert [row["throughput_img_s"] for row in rows.rows] == [50, 1000 / 12]
    assert [row["drift_free_img_s"] for row in rows.rows] == [50, 1000 / 12]


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
