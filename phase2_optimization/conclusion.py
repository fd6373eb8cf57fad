"""What a benchmark's rows come to: the fastest variant, the batch size to use, and a sentence."""

from typing import Any

from common.comparison import compare
from phase2_optimization.measuring import Benchmark
from phase2_optimization.variants import BASELINE, VARIANTS


def conclude(benchmark: Benchmark, latency_budget_ms: float | None, seed: int) -> dict[str, Any]:
    """Everything measured so far, with the keys of inference_benchmark.json."""
    best = _best_rows(benchmark, seed)
    winner = _winner(best)
    optimal = winner or best.get(BASELINE)
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
        "optimal_batch_size_by_variant": {name: row["batch_size"] for name, row in best.items()},
        "latency_budget_ms": latency_budget_ms,
        "best_within_latency_budget": _within_budget(benchmark, latency_budget_ms),
        "fastest_variant": winner["variant"] if winner else None,
        "conclusion": _sentence(benchmark, best, winner, seed),
    }


def _valid(benchmark: Benchmark) -> list[dict[str, Any]]:
    return [row for row in benchmark.rows if row["status"] == "ok"]


def _best_rows(benchmark: Benchmark, seed: int) -> dict[str, dict[str, Any]]:
    """variant -> its row with the smallest batch size whose throughput is the highest one, or
    cannot be told from it: a larger batch would then only add latency."""
    best: dict[str, dict[str, Any]] = {}
    for name in benchmark.checks:
        rows = [row for row in _valid(benchmark) if row["variant"] == name]
        if not rows:
            continue
        top = max(rows, key=lambda row: row["throughput_img_s"])
        best[name] = min(
            (row for row in rows if row is top or not _differ(benchmark, row, top, seed)),
            key=lambda row: row["batch_size"],
        )
    return best


def _differ(benchmark: Benchmark, row: dict[str, Any], other: dict[str, Any], seed: int) -> bool:
    """Whether the times per image of two rows differ beyond what the rounds show of noise."""
    first, second = (
        benchmark.times[r["variant"], r["batch_size"]] / r["batch_size"] for r in (row, other)
    )
    rounds = min(len(first), len(second))
    return compare(first[:rounds], second[:rounds], seed=seed).verdict in ("faster", "slower")


def _winner(best: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The row with the highest throughput among variants that are faster beyond the noise."""
    faster = [row for row in best.values() if row["verdict"] == "faster"]
    return max(faster, key=lambda row: row["throughput_img_s"], default=None)


def _within_budget(benchmark: Benchmark, latency_budget_ms: float | None) -> dict[str, Any] | None:
    """The highest throughput among rows whose p90 keeps the budget."""
    if latency_budget_ms is None:
        return None
    rows = [row for row in _valid(benchmark) if row["latency_ms"]["p90"] <= latency_budget_ms]
    row = max(rows, key=lambda row: row["throughput_img_s"], default=None)
    if row is None:
        return None
    keys = ("variant", "batch_size", "throughput_img_s")
    return {**{key: row[key] for key in keys}, "p90_ms": row["latency_ms"]["p90"]}


def _sentence(
    benchmark: Benchmark, best: dict[str, dict[str, Any]], winner: dict[str, Any] | None, seed: int
) -> str:
    if winner is None:
        return f"No winner: no valid variant is faster than {BASELINE} beyond the noise."
    ratio, (low, high) = winner["speedup"]["ratio"], winner["speedup"]["ci95"]
    others = [
        row
        for row in _valid(benchmark)
        if row["batch_size"] == winner["batch_size"] and row is not winner
    ]
    ties = [row["variant"] for row in others if not _differ(benchmark, row, winner, seed)]
    return (
        f"Fastest: {winner['variant']} at batch size {winner['batch_size']}, "
        f"{winner['throughput_img_s']:.1f} images/s, {ratio:.2f}x [{low:.2f}, {high:.2f}] "
        f"{BASELINE} at that batch size"
        + (f"; not told apart from it: {', '.join(ties)}." if ties else ".")
    )
