"""What a benchmark's rows come to: the fastest variant, the batch size to use, and a sentence."""

from typing import Any

import numpy as np

from common import timing
from common.comparison import MIN_EFFECT, NO_NOISE, compare, interval_text, median_interval
from phase2_optimization.arms import Pair
from phase2_optimization.ladder_rows import Noise, Row, as_json
from phase2_optimization.measuring import Benchmark
from phase2_optimization.variants import BASELINE, VARIANTS

DIFFERENT = ("faster", "slower")
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
        "batch size: times the p50 of the baseline's smallest batch in the same rounds / its p50 "
        "in its own; assumes that a neighbour slows all arms alike",
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
        "optimal_batch_size_by_variant": _best_batch_sizes(benchmark, optimal),
        "timed_side_by_side": side_by_side(benchmark, seed),
        "side_by_side_noise": benchmark.final_noise,
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
        against = compare(per_image[fastest], ms, seed=seed, noise=benchmark.final_noise)
        rows.append(
            {
                "variant": pair[0],
                "batch_size": pair[1],
                "latency_ms": timing.summarise(benchmark.final[pair]),
                "throughput_img_s": 1e3 / median_ms,
                "throughput_ci95": [1e3 / high_ms, 1e3 / low_ms] if len(ms) > 1 else None,
                "speedup": as_json(against),
                "verdict": "fastest" if pair == fastest else against.beyond_noise,
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


def _leading(rows: list[Row]) -> Row | None:
    """The fastest as far as rounds timed apart can say."""
    return max(_close(rows), key=lambda row: row["drift_free_img_s"], default=None)


def _speed(row: Row) -> tuple[float, float]:
    """Orders rows of one batch size, by the ratio within the rounds where there is one."""
    return row["speedup"]["ratio"] if row["speedup"] else 0.0, row["drift_free_img_s"]


def _best(benchmark: Benchmark, rows: list[Row], seed: int) -> Row | None:
    """The fastest of the rows. Of those that cannot be told from it, the one with the smallest
    batch size, as a larger one would only add latency."""
    fastest, finals = _fastest(benchmark, rows), _finals(benchmark, rows)
    if fastest is None or not finals:
        return fastest
    leading_ms, noise = _final_ms_per_image(benchmark, fastest), benchmark.final_noise
    ties = [
        row
        for row in finals
        if _told(leading_ms, _final_ms_per_image(benchmark, row), noise, seed) not in DIFFERENT
    ]
    return min(ties, key=lambda row: row["batch_size"])


def _fastest(benchmark: Benchmark, rows: list[Row]) -> Row | None:
    """The one with the highest throughput, in the final rounds where they decide."""
    finals = _finals(benchmark, rows)
    if finals:
        return min(finals, key=lambda row: float(np.median(_final_ms_per_image(benchmark, row))))
    return _leading(rows)


def _finals(benchmark: Benchmark, rows: list[Row]) -> list[Row]:
    """Those that were timed once more, if that decides: not where the one that leads without it
    is missing (alone, out of memory, or the run was stopped before)."""
    leading = _leading(rows)
    if leading is None or _pair(leading) not in benchmark.final:
        return []
    return [row for row in _close(rows) if _pair(row) in benchmark.final]


def _final_ms_per_image(benchmark: Benchmark, row: Row) -> np.ndarray:
    return benchmark.final[_pair(row)] / row["batch_size"]


def _img_s(benchmark: Benchmark, row: Row) -> float:
    """Images per second, in the final rounds if it was in them."""
    if _pair(row) not in benchmark.final:
        return row["throughput_img_s"]
    return 1e3 / float(np.median(_final_ms_per_image(benchmark, row)))


def _told(first_ms: np.ndarray, second_ms: np.ndarray, noise: Noise | None, seed: int) -> str:
    """What the second arm is against the first, with the noise of the rounds both are from."""
    return compare(first_ms, second_ms, seed=seed, noise=noise).beyond_noise


def _best_batch_sizes(benchmark: Benchmark, optimal: Row | None) -> dict[str, int]:
    """variant -> the batch size of its highest throughput; smaller where that is hardly more. For
    the variant of the optimal row it is that row's, which more rounds may have decided."""
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
    return sizes if optimal is None else {**sizes, optimal["variant"]: optimal["batch_size"]}


def _within_budget(
    benchmark: Benchmark, latency_budget_ms: float | None, seed: int
) -> dict[str, Any] | None:
    """The highest throughput among rows whose p90 keeps the budget."""
    if latency_budget_ms is None:
        return None
    row = _best(benchmark, _keeping(benchmark, latency_budget_ms), seed)
    if row is None:
        return None
    return {
        "variant": row["variant"],
        "batch_size": row["batch_size"],
        "throughput_img_s": _img_s(benchmark, row),
        "p90_ms": row["latency_ms"]["p90"],  # what the budget was kept by
    }


def _sentence(benchmark: Benchmark, winner: Row | None, fastest: Row | None, seed: int) -> str:
    if winner is None or fastest is None:
        return f"{'; '.join(_why_no_winner(benchmark))}."
    is_smaller = winner["batch_size"] < fastest["batch_size"]
    is_untold = _pair(winner) in benchmark.final and benchmark.final_noise is None
    ratio = interval_text(winner["speedup"]["ratio"], winner["speedup"]["ci95"], "x")
    parts = [
        f"{'Chosen' if is_smaller else 'Fastest'}: {winner['variant']} at batch size "
        f"{winner['batch_size']}, {_img_s(benchmark, winner):.1f} images/s, {ratio} {BASELINE} at "
        "that batch size",
        _ties(benchmark, winner, seed),
        _instead_of(fastest) if is_smaller else "",
        _unproven(benchmark, winner, seed),
        _timed_apart(benchmark),
        "the noise could not be measured side by side" if is_untold else "",
        _without_noise(benchmark),
    ]
    return "; ".join(part for part in parts if part) + "."


def _why_no_winner(benchmark: Benchmark) -> list[str]:
    without = _without_noise(benchmark)
    verdicts = {row["verdict"] for row in _valid(benchmark) if row["variant"] != BASELINE}
    if verdicts == {NO_NOISE}:
        return [f"No winner: {without}, so no variant can be told from {BASELINE}"]
    reason = f"No winner: no valid variant is faster than {BASELINE} beyond the noise"
    return [reason, without] if without else [reason]


def _without_noise(benchmark: Benchmark) -> str:
    """Names the batch sizes at which nothing is told, as no second baseline was in the rounds."""
    sizes = {row["batch_size"] for row in _valid(benchmark) if row["verdict"] == NO_NOISE}
    names = ", ".join(str(size) for size in sorted(sizes))
    return f"the noise could not be measured at batch size {names}" if names else ""


def _timed_apart(benchmark: Benchmark) -> str:
    """Names rows close to the highest throughput that the final rounds lack."""
    close = _close(_eligible(benchmark))
    missing = [row for row in close if _pair(row) not in benchmark.final]
    if len(close) < 2 or not missing:
        return ""
    names = ", ".join(f"{row['variant']} at batch size {row['batch_size']}" for row in missing)
    return f"not timed side by side, so judged by rounds timed apart: {names}"


def _instead_of(fastest: Row) -> str:
    return (
        f"the smallest batch size that cannot be told from the fastest, {fastest['variant']} at "
        f"batch size {fastest['batch_size']}"
    )


def _unproven(benchmark: Benchmark, winner: Row, seed: int) -> str:
    """Names finalists that were faster than the winner, but may not win."""
    if _pair(winner) not in benchmark.final:
        return ""
    own_ms, noise = _final_ms_per_image(benchmark, winner), benchmark.final_noise
    may_win = {_pair(row) for row in _eligible(benchmark)}
    faster = [
        f"{pair[0]} at batch size {pair[1]}"
        for pair, ms in benchmark.final.items()
        if pair not in may_win and _told(own_ms, ms / pair[1], noise, seed) == "faster"
    ]
    if not faster:
        return ""
    names = ", ".join(faster)
    return f"faster side by side, but not told from {BASELINE} at that batch size: {names}"


def _ties(benchmark: Benchmark, winner: Row, seed: int) -> str:
    """Names the variants of the same rounds that are as fast."""
    times, noise = benchmark.times, benchmark.noise.get(winner["batch_size"])
    ties = [
        row["variant"]
        for row in _valid(benchmark)
        if row["rounds_id"] == winner["rounds_id"]
        and row is not winner
        and _told(times[_pair(winner)], times[_pair(row)], noise, seed) not in DIFFERENT
    ]
    return f"not told apart from it: {', '.join(ties)}" if ties else ""
