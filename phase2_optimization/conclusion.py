"""What a benchmark's rows come to: the fastest variant, the batch size to use, and a sentence."""

from typing import Any

import numpy as np

from common import timing
from common.comparison import MIN_EFFECT, compare, interval_text, median_interval
from phase2_optimization.arms import Pair
from phase2_optimization.ladder_rows import Row, as_json
from phase2_optimization.measuring import Benchmark
from phase2_optimization.variants import BASELINE, VARIANTS

CLOSE = 0.9  # of the highest throughput: rows above this are timed once more, side by side


def conclude(benchmark: Benchmark, latency_budget_ms: float | None, seed: int) -> dict[str, Any]:
    """Everything measured so far, with the keys of inference_benchmark.json."""
    eligible = _eligible(benchmark)
    optimal = _best(benchmark, eligible, seed)
    winner = optimal if optimal and optimal["variant"] != BASELINE else None
    return {
        "memory_kind": benchmark.memory_kind,
        "throughput_img_s_is": "batch size / p50 latency",
        "drift_free_img_s_is": "throughput_img_s, had the machine stayed as it was at the smallest "
        "batch size: by the ratio to the baseline's smallest batch in rounds that hold both",
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
        "processor_share": benchmark.processor_shares,
        "results": benchmark.rows,
        "optimal_batch_size": optimal["batch_size"] if optimal else None,
        "optimal_batch_size_by_variant": _best_batch_sizes(benchmark),
        "timed_side_by_side": side_by_side(benchmark, seed),
        "latency_budget_ms": latency_budget_ms,
        "best_within_latency_budget": _within_budget(benchmark, latency_budget_ms, seed),
        "fastest_variant": winner["variant"] if winner else None,
        "conclusion": _sentence(benchmark, winner, _fastest(benchmark, eligible), seed),
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


def side_by_side(benchmark: Benchmark, seed: int) -> list[dict[str, Any]]:
    """The final rounds: each finalist's throughput with its 95% interval, and how many times as
    fast as the fastest of them it makes an image, with the verdict on that."""
    per_image = {pair: ms / pair[1] for pair, ms in benchmark.final.items()}
    if not per_image:
        return []
    fastest = min(per_image, key=lambda pair: float(np.median(per_image[pair])))
    rows = []
    for pair, ms in per_image.items():
        median_ms, (low_ms, high_ms) = median_interval(ms, seed)
        against = compare(per_image[fastest], ms, seed=seed)
        rows.append(
            {
                "variant": pair[0],
                "batch_size": pair[1],
                "latency_ms": timing.summarise(benchmark.final[pair]),
                "throughput_img_s": 1e3 / median_ms,
                "throughput_ci95": [1e3 / high_ms, 1e3 / low_ms] if len(ms) > 1 else None,
                "speedup": as_json(against),
                "verdict": "fastest" if pair == fastest else against.verdict,
            }
        )
    return sorted(rows, key=lambda row: row["batch_size"])


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
    highest = max((row["drift_free_img_s"] for row in leaders.values()), default=0.0)
    return [row for row in leaders.values() if row["drift_free_img_s"] >= CLOSE * highest]


def _speed(row: Row) -> tuple[float, float]:
    """Orders rows of one batch size, by the ratio within the rounds where there is one."""
    return row["speedup"]["ratio"] if row["speedup"] else 0.0, row["drift_free_img_s"]


def _best(benchmark: Benchmark, rows: list[Row], seed: int) -> Row | None:
    """The fastest of the rows. Of those that cannot be told from it, the one with the smallest
    batch size, as a larger one would only add latency."""
    fastest, finals = _fastest(benchmark, rows), _finals(benchmark, rows)
    if fastest is None or not finals:
        return fastest
    leading_ms = _final_ms_per_image(benchmark, fastest)
    ties = [
        row for row in finals if not _differ(_final_ms_per_image(benchmark, row), leading_ms, seed)
    ]
    return min(ties, key=lambda row: row["batch_size"])


def _fastest(benchmark: Benchmark, rows: list[Row]) -> Row | None:
    """The one with the highest throughput, in the final rounds where they decide."""
    finals = _finals(benchmark, rows)
    if finals:
        return min(finals, key=lambda row: float(np.median(_final_ms_per_image(benchmark, row))))
    return max(_close(rows), key=lambda row: row["drift_free_img_s"], default=None)


def _finals(benchmark: Benchmark, rows: list[Row]) -> list[Row]:
    """Those that were timed once more; none where one is alone, or the run was stopped before."""
    return [row for row in _close(rows) if _pair(row) in benchmark.final]


def _final_ms_per_image(benchmark: Benchmark, row: Row) -> np.ndarray:
    return benchmark.final[_pair(row)] / row["batch_size"]


def _differ(first_ms: np.ndarray, second_ms: np.ndarray, seed: int) -> bool:
    """Whether arms timed in the same rounds differ beyond the noise."""
    return compare(first_ms, second_ms, seed=seed).verdict in ("faster", "slower")


def _best_batch_sizes(benchmark: Benchmark) -> dict[str, int]:
    """variant -> the batch size of its highest throughput; smaller where that is hardly more."""
    sizes: dict[str, int] = {}
    for name in benchmark.checks:
        rows = [row for row in _valid(benchmark) if row["variant"] == name]
        highest = max((row["drift_free_img_s"] for row in rows), default=0.0)
        enough = [
            row["batch_size"]
            for row in rows
            if row["drift_free_img_s"] >= highest / (1 + MIN_EFFECT)
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


def _sentence(benchmark: Benchmark, winner: Row | None, fastest: Row | None, seed: int) -> str:
    if winner is None or fastest is None:
        return f"No winner: no valid variant is faster than {BASELINE} beyond the noise."
    is_smaller = winner["batch_size"] < fastest["batch_size"]
    ratio = interval_text(winner["speedup"]["ratio"], winner["speedup"]["ci95"], "x")
    return (
        f"{'Chosen' if is_smaller else 'Fastest'}: {winner['variant']} at batch size "
        f"{winner['batch_size']}, {winner['throughput_img_s']:.1f} images/s, {ratio} {BASELINE} at "
        "that batch size"
        + _ties(benchmark, winner, seed)
        + (f"; {_instead_of(fastest)}" if is_smaller else "")
        + _unproven(benchmark, winner, seed)
        + "."
    )


def _instead_of(fastest: Row) -> str:
    return (
        f"the smallest batch size that cannot be told from the fastest, {fastest['variant']} at "
        f"batch size {fastest['batch_size']}"
    )


def _unproven(benchmark: Benchmark, winner: Row, seed: int) -> str:
    """Names finalists that were faster than the winner, but may not win."""
    if _pair(winner) not in benchmark.final:
        return ""
    own_ms = _final_ms_per_image(benchmark, winner)
    faster = [
        f"{name} at batch size {size}"
        for (name, size), ms in benchmark.final.items()
        if compare(own_ms, ms / size, seed=seed).verdict == "faster"
    ]
    if not faster:
        return ""
    return (
        f"; faster side by side, but not told from {BASELINE} at that batch size: "
        f"{', '.join(faster)}"
    )


def _ties(benchmark: Benchmark, winner: Row, seed: int) -> str:
    """Names the variants of the same batch size that are as fast."""
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
    return f"; not told apart from it: {', '.join(ties)}" if ties else ""
