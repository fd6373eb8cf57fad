"""An inference benchmark in the terminal: the tables of its rows and of its final rounds."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.cli import log
from common.comparison import TOO_FEW, interval_text
from phase2_optimization.variants import BASELINE

NOTHING = "–"
NAME, SPEED_UP, STEP = 20, 18, 17  # characters of columns
BEFORE_STEP = NAME + 4 * 7 + 2 * 6 + 2 + SPEED_UP + 1  # where the column begins
SHORT = {TOO_FEW: "too few rounds"}

Row = Mapping[str, Any]


def log_batch_size(
    rows: Sequence[Row], batch_size: int, noise: Mapping[int, Mapping[str, Any]]
) -> None:
    """The rows of one batch size, each with its ratio to the baseline and to the rung below.

    Args:
        noise: batch size -> ratio and interval of the baseline against its second self.
    """
    log.info(
        "\n%-*s%7s%7s%7s%7s%6s%6s  %-*s %s",
        *(NAME, f"batch size {batch_size}", "p50 ms", "p90 ms", "p99 ms", "img/s", "MiB", "map"),
        *(SPEED_UP, " speed-up [95%]", "step [95%]"),
    )
    above = None
    for row in (row for row in rows if row["batch_size"] == batch_size):
        log_row(row, above)
        above = row["variant"]
    log.info("%s", _legend(noise.get(batch_size)))


def log_row(row: Row, above: str | None) -> None:
    """One row, and below it what needs room: the rung the step is over, unless it is the one
    `above`, and why the row does not count."""
    if row["latency_ms"] is None:
        log.info("%-*s  %s", NAME, row["variant"], row["status"])
        return
    name = row["variant"]
    if len(name) > NAME:
        log.info("%s", name)
        name = ""
    log.info(
        "%-*s%7s%7s%7s%7s%6s%6s  %-*s %s",
        *(NAME, name),
        *(_short(row["latency_ms"][key]) for key in ("p50", "p90", "p99")),
        _short(row["throughput_img_s"]),
        NOTHING if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}",
        NOTHING if row["map"] is None else f"{row['map']:.3f}",
        *(SPEED_UP, _speed_up(row), _step(row["step"])),
    )
    if row["step"] and row["step"]["over"] != above:
        log.info("%*s over %s", BEFORE_STEP - 1, "", row["step"]["over"])
    if row["status"] != "ok":
        log.info("  %s", row["status"])


def _short(value: float) -> str:
    """At most six characters up to a million."""
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _speed_up(row: Row) -> str:
    """With a mark where it is not told from the baseline."""
    if row["speedup"] is None:
        return f" {NOTHING}"
    if row["variant"] == BASELINE:
        return " baseline"
    mark = " " if row["verdict"] in ("faster", "slower") else "~"
    return mark + interval_text(row["speedup"]["ratio"], row["speedup"]["ci95"])


def _step(step: Row | None) -> str:
    if step is None:
        return NOTHING
    word = SHORT.get(step["verdict"], step["verdict"])
    return f"{interval_text(step['ratio'], step['ci95']):<{STEP}} {word}"


def _legend(noise: Row | None) -> str:
    equal = f"; two equal arms: {interval_text(noise['ratio'], noise['ci95'])}" if noise else ""
    return f"~ not told from {BASELINE}{equal}; step: over the line above unless another is named"


def log_finals(rows: Sequence[Row], noise: Row | None = None) -> None:
    """Batch sizes near the highest throughput, in the rounds they shared.

    Args:
        noise: ratio and interval of two equal arms in these rounds.
    """
    if not rows:
        return
    log.info(
        "\n%-*s%11s%9s  %-26s%s",
        *(NAME, "side by side", "batch size", "p50 ms", "images/s [95%]", "against the fastest"),
    )
    for row in rows:
        ratio = interval_text(row["speedup"]["ratio"], row["speedup"]["ci95"])
        is_fastest = row["verdict"] == "fastest"
        log.info(
            "%-*s%11d%9s  %-26s%s",
            *(NAME, row["variant"], row["batch_size"], _short(row["latency_ms"]["p50"])),
            interval_text(row["throughput_img_s"], row["throughput_ci95"]),
            row["verdict"] if is_fastest else f"{ratio} {row['verdict']}",
        )
    if noise:
        log.info("two equal arms: %s", interval_text(noise["ratio"], noise["ci95"]))


def log_budget(report: Mapping[str, Any]) -> None:
    budget, best = report["latency_budget_ms"], report["best_within_latency_budget"]
    if budget is None:
        return
    if best is None:
        log.info("Nothing that was measured keeps p90 within %g ms.", budget)
        return
    log.info(
        "Best within %g ms: %s at batch size %d, %.1f images/s, p90 %.1f ms",
        *(budget, best["variant"], best["batch_size"], best["throughput_img_s"], best["p90_ms"]),
    )
