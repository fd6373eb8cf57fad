"""Which rows may win, and which of them does: rounds timed apart choose the finalists, rounds that
hold all of these decide."""

from typing import Any

import numpy as np

from common import timing
from common.comparison import MIN_EFFECT, compare, median_interval
from phase2_optimization.arms import Pair
from phase2_optimization.ladder_rows import Noise, Row
from phase2_optimization.measuring import Benchmark
from phase2_optimization.variants import BASELINE

DIFFERENT = ("faster", "slower")
# Rows that are timed once more, side by side: above this share of the highest throughput, and the
# best few in any case, as a neighbour may have come while one batch size was timed
CLOSE, AT_LEAST = 0.9, 3


def finalists(benchmark: Benchmark, latency_budget_ms: float | None) -> list[Pair]:
    """(variant, batch size) of the rows that may be the fastest, or the fastest within the budget.

    Batch sizes are timed one after the other, and the machine changes in between: between such
    rows only rounds that hold both can decide.
    """
    contests = [eligible_rows(benchmark)]
    if latency_budget_ms is not None:
        contests.append(rows_keeping(benchmark, latency_budget_ms))
    close = [close_rows(rows) for rows in contests]
    pairs = [pair_of(row) for rows in close if len(rows) > 1 for row in rows]
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
        median_ms, interval_ms = median_interval(ms, seed)
        against = compare(per_image[fastest], ms, seed=seed, noise=benchmark.final_noise)
        rows.append(
            {
                "variant": pair[0],
                "batch_size": pair[1],
                "latency_ms": timing.summarise(benchmark.final[pair]),
                "throughput_img_s": 1e3 / median_ms,
                "throughput_ci95": interval_ms and [1e3 / ms for ms in interval_ms[::-1]],
                "speedup": against.as_json(),
                "verdict": "fastest" if pair == fastest else against.beyond_noise,
            }
        )
    return sorted(rows, key=lambda row: row["batch_size"])


def valid_rows(benchmark: Benchmark) -> list[Row]:
    return [row for row in benchmark.rows if row["status"] == "ok"]


def pair_of(row: Row) -> Pair:
    return row["variant"], row["batch_size"]


def eligible_rows(benchmark: Benchmark) -> list[Row]:
    """Rows that may win: those faster than the baseline beyond the noise, else the baseline's."""
    rows = valid_rows(benchmark)
    faster = [row for row in rows if row["verdict"] == "faster"]
    return faster or [row for row in rows if row["variant"] == BASELINE]


def rows_keeping(benchmark: Benchmark, latency_budget_ms: float) -> list[Row]:
    """Rows whose p90 keeps the budget."""
    return [row for row in valid_rows(benchmark) if row["latency_ms"]["p90"] <= latency_budget_ms]


def close_rows(rows: list[Row]) -> list[Row]:
    """The fastest row of each batch size: those near the highest throughput, at least AT_LEAST."""
    leaders: dict[int, Row] = {}
    for row in rows:
        batch_size = row["batch_size"]
        if batch_size not in leaders or _speed(row) > _speed(leaders[batch_size]):
            leaders[batch_size] = row
    ranked = sorted((row["drift_free_img_s"] for row in leaders.values()), reverse=True)
    enough = min(CLOSE * ranked[0], ranked[:AT_LEAST][-1]) if ranked else 0.0
    return [row for row in leaders.values() if row["drift_free_img_s"] >= enough]


def _leading(rows: list[Row]) -> Row | None:
    """The fastest as far as rounds timed apart can say."""
    return max(close_rows(rows), key=lambda row: row["drift_free_img_s"], default=None)


def _speed(row: Row) -> tuple[float, float]:
    """Orders rows of one batch size, by the ratio within the rounds where there is one."""
    return row["speedup"]["ratio"] if row["speedup"] else 0.0, row["drift_free_img_s"]


def best_row(benchmark: Benchmark, rows: list[Row], seed: int) -> Row | None:
    """The fastest of the rows. Of those that cannot be told from it, the one with the smallest
    batch size, as a larger one would only add latency."""
    fastest, finals = fastest_row(benchmark, rows), _finals(benchmark, rows)
    if fastest is None or not finals:
        return fastest
    leading_ms, noise = final_ms_per_image(benchmark, fastest), benchmark.final_noise
    ties = [
        row
        for row in finals
        if told(leading_ms, final_ms_per_image(benchmark, row), noise, seed) not in DIFFERENT
    ]
    return min(ties, key=lambda row: row["batch_size"])


def fastest_row(benchmark: Benchmark, rows: list[Row]) -> Row | None:
    """The one with the highest throughput, in the final rounds where they decide."""
    finals = _finals(benchmark, rows)
    if finals:
        return min(finals, key=lambda row: float(np.median(final_ms_per_image(benchmark, row))))
    return _leading(rows)


def _finals(benchmark: Benchmark, rows: list[Row]) -> list[Row]:
    """Those that were timed once more, if that decides: not where the one that leads without it
    is missing (alone, out of memory, or the run was stopped before)."""
    leading = _leading(rows)
    if leading is None or pair_of(leading) not in benchmark.final:
        return []
    return [row for row in close_rows(rows) if pair_of(row) in benchmark.final]


def final_ms_per_image(benchmark: Benchmark, row: Row) -> np.ndarray:
    return benchmark.final[pair_of(row)] / row["batch_size"]


def images_per_second(benchmark: Benchmark, row: Row) -> float:
    """Images per second, in the final rounds if it was in them."""
    if pair_of(row) not in benchmark.final:
        return row["drift_free_img_s"]
    return 1e3 / float(np.median(final_ms_per_image(benchmark, row)))


def told(first_ms: np.ndarray, second_ms: np.ndarray, noise: Noise | None, seed: int) -> str:
    """What the second arm is against the first, with the noise of the rounds both are from."""
    return compare(first_ms, second_ms, seed=seed, noise=noise).beyond_noise


def best_batch_sizes(benchmark: Benchmark, optimal: Row | None) -> dict[str, int]:
    """variant -> the batch size of its highest throughput; smaller where that is hardly more. For
    the variant of the optimal row it is that row's, which more rounds may have decided."""
    sizes: dict[str, int] = {}
    for name in benchmark.checks:
        rows = [row for row in valid_rows(benchmark) if row["variant"] == name]
        highest = max((row["drift_free_img_s"] for row in rows), default=0.0)
        enough = [
            row["batch_size"]
            for row in rows
            if row["drift_free_img_s"] >= highest / (1 + MIN_EFFECT)
        ]
        if enough:
            sizes[name] = min(enough)
    return sizes if optimal is None else {**sizes, optimal["variant"]: optimal["batch_size"]}
