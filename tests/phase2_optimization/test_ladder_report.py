"""The tables of an inference benchmark in the terminal."""

import logging

import pytest

from common.comparison import NO_NOISE
from phase2_optimization.ladder_report import log_batch_size, log_finals
from phase2_optimization.variants import BASELINE, VARIANTS

WIDTH = 112  # "about 110"


def row(variant, ratio=1.0, over=None, word="faster", verdict="faster", status="ok"):
    ci95 = [0.97 * ratio, 1.03 * ratio]
    return {
        "variant": variant,
        "batch_size": 4,
        "latency_ms": {"p50": 1234.56, "p90": 2345.67, "p99": 99999.9},
        "throughput_img_s": 123.456,
        "peak_memory_mib": 12345.6,
        "map": 0.8,
        "speedup": {"ratio": ratio, "ci95": ci95},
        "step": over and {"over": over, "ratio": 1.1, "ci95": [1.05, 1.15], "verdict": word},
        "verdict": verdict,
        "status": status,
    }


@pytest.fixture
def printed(caplog):
    """Lines of the table of some rows."""

    def lines(rows, noise=None):
        with caplog.at_level(logging.INFO, logger="detection"):
            log_batch_size(rows, 4, {4: noise} if noise else {})
        text = "\n".join(record.getMessage() for record in caplog.records)
        return text.strip("\n").splitlines()

    return lines


BASE = row(BASELINE, verdict="baseline")


def test_a_row_tells_both_ratios_with_their_intervals_and_a_word_for_the_step(printed):
    _, base, line, legend = printed([BASE, row("channels_last", 1.5, BASELINE, "within noise")])
    assert "baseline" in base
    assert line.endswith(" 1.50 [1.46, 1.54] 1.10 [1.05, 1.15] within noise")
    assert legend.split("; ") == [
        f"~ not told from {BASELINE}",
        "step: over the line above unless another is named",
    ]


def test_the_rung_a_step_is_over_is_named_where_it_is_not_the_line_above(printed):
    rows = [BASE, row("roi_pool", 1.4, BASELINE), row("winograd", 1.6, BASELINE)]
    _, _, first, second, over, _ = printed(rows)
    assert over.strip() == f"over {BASELINE}"
    assert over.index("over") == first.index("1.10 [1.05") == second.index("1.10 [1.05")


def test_a_line_that_was_skipped_is_no_rung_below(printed):
    absent = {**row("folded_norms"), "latency_ms": None, "status": "not run: add --compile"}
    lines = printed([BASE, absent, row("roi_pool", 1.4, BASELINE)])
    assert lines[2].endswith("not run: add --compile")
    assert lines[4].strip() == f"over {BASELINE}"


def test_what_is_not_told_from_the_baseline_is_marked_and_the_noise_is_named(printed):
    rows = [BASE, row("channels_last", 1.02, BASELINE, verdict="within noise")]
    *_, line, legend = printed(rows, {"ratio": 1.0, "ci95": (0.97, 1.04)})
    assert " ~1.02 [0.99, 1.05] " in line
    assert "two equal arms: 1.00 [0.97, 1.04]" in legend


def test_one_round_shows_no_interval(printed):
    one = row("channels_last", 1.2, BASELINE, "too few rounds to tell", "too few rounds to tell")
    one["speedup"]["ci95"] = one["step"]["ci95"] = None
    line = printed([BASE, one])[2]
    assert " ~1.20 [–] " in line
    assert line.endswith(" 1.10 [–]          too few rounds")


def test_a_step_without_a_noise_figure_says_so_and_keeps_the_table_narrow(printed):
    lines = printed([BASE, row("channels_last", 1.2, BASELINE, NO_NOISE, NO_NOISE)])
    assert " ~1.20 [1.16, 1.24] " in lines[2]
    assert lines[2].endswith(f" 1.10 [1.05, 1.15] {NO_NOISE}")
    assert len(lines[2]) <= WIDTH


def test_why_a_row_does_not_count_stands_below_it(printed):
    lines = printed([BASE, row("channels_last", 1.2, BASELINE, status="invalid: map 0.1")])
    assert lines[3] == "  invalid: map 0.1"


def test_the_table_is_narrow_with_the_longest_names_and_numbers(printed):
    rows = [row(name, 3.14, BASELINE, "within noise") for name in VARIANTS]
    lines = printed(rows, {"ratio": 1.0, "ci95": (0.97, 1.04)})
    assert max(len(line) for line in lines) <= WIDTH
    assert any(len(line) > 100 for line in lines)


def test_a_long_name_has_a_line_of_its_own(printed):
    name = "a_name_of_more_than_20_characters"
    lines = printed([BASE, row(name, 1.2, BASELINE)])
    assert lines[2] == name
    assert lines[3].index("1.10 [1.05") == printed([BASE, row("short", 1.2, BASELINE)])[-2].index(
        "1.10 [1.05"
    )


def test_the_final_rounds_by_hand(caplog):
    rows = [
        {
            **{"variant": "winograd", "batch_size": size, "latency_ms": {"p50": 50.0 * size}},
            **{"throughput_img_s": 20.0, "throughput_ci95": interval},
            **{"speedup": {"ratio": 0.98, "ci95": interval and [0.95, 1.0]}, "verdict": verdict},
        }
        for size, verdict, interval in (
            (1, "within noise", [19.0, 21.5]),
            (2, "fastest", [19.5, 20.5]),
            (4, "too few rounds to tell", None),
        )
    ]
    with caplog.at_level(logging.INFO, logger="detection"):
        log_finals([])
        assert not caplog.records
        log_finals(rows, {"ratio": 1.01, "ci95": (0.98, 1.03)})
    texts = [" ".join(record.getMessage().split()) for record in caplog.records]
    assert texts == [
        "side by side batch size p50 ms images/s [95%] against the fastest",
        "winograd 1 50.0 20.00 [19.00, 21.50] 0.98 [0.95, 1.00] within noise",
        "winograd 2 100.0 20.00 [19.50, 20.50] fastest",
        "winograd 4 200.0 20.00 [–] 0.98 [–] too few rounds to tell",
        "two equal arms: 1.01 [0.98, 1.03]",
    ]
