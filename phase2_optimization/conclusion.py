"""What a benchmark's rows come to: the fastest variant, the batch size to use, and a sentence."""

from typing import Any

import numpy as np

from common import timing
from common.comparison import MIN_EFFECT, compare
from phase2_optimization.arms import Pair
from phase2_optimization.measuring import Benchmark
from phase2_optimization.variants import BASELINE, VARIANTS

CLOSE = 0.9  # of the highest throughput: rows above this are timed once more, side by side

Row = dict[str, Any]


def conclude(benchmark: Benchmark, latency_budget_ms: float | None, seed: int) -> dict[str, Any]:
    """Everything measured so far, with the keys of inference_benchmark.json."""
    optimal = _best(benchmark, _eligible(benchmark), seed)
    winner = optimal if optimal and optimal["variant"] != BASELINE else None
    return {
        "memory_kind": benchmark.memory_kind,
        "throughput_img_s_is": "batch size / p50 latency",
        "baseline": BASELINE,
        "variants": {
            name: {
                "description": VARIANTS[name].description,
                "adds_to": VARIANTS[name].adds_to,
                "build_s": check.build_s,
                "accuracy": check.accuracy or None,
                "status": check.failure or "ok",
            }
            for name, check in benchmark.checks.items()
        },
        "noise": {str(batch_size): noise for batch_size, noise in benchmark.noise.items()},
        "results": benchmark.rows,
        "optimal_batch_size": optimal["batch_size"] if optimal else None,
        "optimal_batch_size_by_variant": _best_batch_sizes(benchmark),
        "timed_side_by_side": [
            {"variant": name, "batch_size": batch_size, "latency_ms": timing.summarise(ms)}
            for (name, batch_size), ms in benchmark.final.items()
        ],
        "latency_budget_ms": latency_budget_ms,
        "best_within_latency_budget": _within_budget(benchmark, latency_budget_ms, seed),
        "fastest_variant": winner["variant"] if winner else None,
        "conclusion": _sentence(benchmark, winner, seed),
    }


def finalists(benchmark: Benchmark, latency_budget_ms: float | None) -> list[Pair]:
    """(variant, batch size) of the rows that may be the fastest, or the fastest within the budget.

    Batch sizes are timed one after the other, and the machine changes in between: between such
    rows only rounds that hold both can decide.
    """
    contests = [_eligible(benchmark)]
    if latency_budget_ms is not None:
        contests.append(_keeping(benchmark, latency_budget_ms))
    close = [_close(rows) for rows in contests]
    pairs = [_pair(row) for rows in close if len(rows) > 1 for row in rows]
    return list(dict.fromkeys(pairs))


def _valid(benchmark: Benchmark) -> list[Row]:
    return [row for row in benchmark.rows if row["status"] == "ok"]


def _pair(row: Row) -> Pair:
    return row["variant"], row["batch_size"]


def _eligible(benchmark: Benchmark) -> list[Row]:
    """Rows that may win: those faster than the baseline beyond the noise, else the baseline's."""
    rows = _valid(benchmark)
    faster = [row for row in rows if row["verdict"] == "faster"]
    return faster or [row for row in rows if row["variant"] == BASELINE]


def _keeping(benchmark: Benchmark, latency_budget_ms: float) -> list[Row]:
    """Rows whose p90 keeps the budget."""
    return [row for row in _valid(benchmark) if row["latency_ms"]["p90"] <= latency_budget_ms]


def _close(rows: list[Row]) -> list[Row]:
    """The fastest row of each batch size, as far as its throughput is near the highest."""
    leaders: dict[int, Row] = {}
    for row in rows:
        batch_size = row["batch_size"]
        if batch_size not in leaders or _speed(row) > _speed(leaders[batch_size]):
            leaders[batch_size] = row
    highest = max((row["throughput_img_s"] for row in leaders.values()), default=0.0)
    return [row for row in leaders.values() if row["throughput_img_s"] >= CLOSE * highest]


def _speed(row: Row) -> tuple[float, float]:
    """Orders rows of one batch size, by the ratio within the rounds where there is one."""
    return row["speedup"]["ratio"] if row["speedup"] else 0.0, row["throughput_img_s"]


def _best(benchmark: Benchmark, rows: list[Row], seed: int) -> Row | None:
    """The fastest of the rows. Of those that cannot be told from it, the one with the smallest
    batch size, as a larger one would only add latency."""
    close = _close(rows)
    finals = [row for row in close if _pair(row) in benchmark.final]
    if not finals:  # a single one, or a run that was stopped before
        return max(close, key=lambda row: row["throughput_img_s"], default=None)
    per_image = {
        row["batch_size"]: benchmark.final[_pair(row)] / row["batch_size"] for row in finals
    }
    fastest = min(per_image.values(), key=lambda ms: float(np.median(ms)))
    ties = [row for row in finals if not _differ(per_image[row["batch_size"]], fastest, seed)]
    return min(ties, key=lambda row: row["batch_size"])


def _differ(first_ms: np.ndarray, second_ms: np.ndarray, seed: int) -> bool:
    """Whether arms timed in the same rounds differ beyond the noise."""
    return compare(first_ms, second_ms, seed=seed).verdict in ("faster", "slower")


def _best_batch_sizes(benchmark: Benchmark) -> dict[str, int]:
    """variant -> the batch size of its highest throughput; smaller where that is hardly more."""
    sizes: dict[str, int] = {}
    for name in benchmark.checks:
        rows = [row for row in _valid(benchmark) if row["variant"] == name]
        highest = max((row["throughput_img_s"] for row in rows), default=0.0)
        enough = [
            row["batch_size"]
            for row in rows
            if row["throughput_img_s"] >= highest / (1 + MIN_EFFECT)
        ]
        if enough:
            sizes[name] = min(enough)
    return sizes


def _within_budget(
    benchmark: Benchmark, latency_budget_ms: float | None, seed: int
) -> dict[str, Any] | None:
    """The highest throughput among rows whose p90 keeps the budget."""
    if latency_budget_ms is None:
        return None
    row = _best(benchmark, _keeping(benchmark, latency_budget_ms), seed)
    if row is None:
        return None
    keys = ("variant", "batch_size", "throughput_img_s")
    return {**{key: row[key] for key in keys}, "p90_ms": row["latency_ms"]["p90"]}


def _sentence(benchmark: Benchmark, winner: Row | None, seed: int) -> str:
    if winner is None:
        return f"No winner: no valid variant is faster than {BASELINE} beyond the noise."
    ratio, (low, high) = winner["speedup"]["ratio"], winner["speedup"]["ci95"]
    others = [
        row
        for row in _valid(benchmark)
        if row["batch_size"] == winner["batch_size"] and row is not winner
    ]
    times = benchmark.times  # of one batch size: from the same rounds
    ties = [
        row["variant"]
        for row in others
        if len(times[_pair(row)]) == len(times[_pair(winner)])
        and not _differ(times[_pair(row)], times[_pair(winner)], seed)
    ]
    return (
        f"Fastest: {winner['variant']} at batch size {winner['batch_size']}, "
        f"{winner['throughput_img_s']:.1f} images/s, {ratio:.2f}x [{low:.2f}, {high:.2f}] "
        f"{BASELINE} at that batch size"
        + (f"; not told apart from it: {', '.join(ties)}." if ties else ".")
    )
