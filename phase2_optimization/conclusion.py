"""What a benchmark's rows come to: the fastest variant, the batch size to use, and a sentence."""

from typing import Any

from common.comparison import NO_NOISE, interval_text
from phase2_optimization.contest import (
    DIFFERENT,
    best_batch_sizes,
    best_row,
    close_rows,
    eligible_rows,
    fastest_row,
    final_ms_per_image,
    images_per_second,
    pair_of,
    rows_keeping,
    side_by_side,
    told,
    valid_rows,
)
from phase2_optimization.ladder_rows import Row
from phase2_optimization.measuring import Benchmark
from phase2_optimization.variants import BASELINE, VARIANTS


def conclude(benchmark: Benchmark, latency_budget_ms: float | None, seed: int) -> dict[str, Any]:
    """Everything measured so far, with the keys of inference_benchmark.json."""
    eligible = eligible_rows(benchmark)
    optimal = best_row(benchmark, eligible, seed)
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
        "optimal_batch_size_by_variant": best_batch_sizes(benchmark, optimal),
        "timed_side_by_side": side_by_side(benchmark, seed),
        "side_by_side_noise": benchmark.final_noise,
        "latency_budget_ms": latency_budget_ms,
        "best_within_latency_budget": _within_budget(benchmark, latency_budget_ms, seed),
        "fastest_variant": winner["variant"] if winner else None,
        "conclusion": _sentence(benchmark, winner, fastest_row(benchmark, eligible), seed),
    }


def _within_budget(
    benchmark: Benchmark, latency_budget_ms: float | None, seed: int
) -> dict[str, Any] | None:
    """The highest throughput among rows whose p90 keeps the budget."""
    if latency_budget_ms is None:
        return None
    row = best_row(benchmark, rows_keeping(benchmark, latency_budget_ms), seed)
    if row is None:
        return None
    return {
        "variant": row["variant"],
        "batch_size": row["batch_size"],
        "throughput_img_s": images_per_second(benchmark, row),
        "p90_ms": row["latency_ms"]["p90"],  # what the budget was kept by
    }


def _sentence(benchmark: Benchmark, winner: Row | None, fastest: Row | None, seed: int) -> str:
    if winner is None or fastest is None:
        return f"{'; '.join(_why_no_winner(benchmark))}."
    is_smaller = winner["batch_size"] < fastest["batch_size"]
    is_untold = pair_of(winner) in benchmark.final and benchmark.final_noise is None
    ratio = interval_text(winner["speedup"]["ratio"], winner["speedup"]["ci95"], "x")
    parts = [
        f"{'Chosen' if is_smaller else 'Fastest'}: {winner['variant']} at batch size "
        f"{winner['batch_size']}, {images_per_second(benchmark, winner):.1f} images/s, {ratio} "
        f"{BASELINE} at that batch size",
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
    verdicts = {row["verdict"] for row in valid_rows(benchmark) if row["variant"] != BASELINE}
    if verdicts == {NO_NOISE}:
        return [f"No winner: {without}, so no variant can be told from {BASELINE}"]
    reason = f"No winner: no valid variant is faster than {BASELINE} beyond the noise"
    return [reason, without] if without else [reason]


def _without_noise(benchmark: Benchmark) -> str:
    """Names the batch sizes at which nothing is told, as no second baseline was in the rounds."""
    sizes = {row["batch_size"] for row in valid_rows(benchmark) if row["verdict"] == NO_NOISE}
    names = ", ".join(str(size) for size in sorted(sizes))
    return f"the noise could not be measured at batch size {names}" if names else ""


def _timed_apart(benchmark: Benchmark) -> str:
    """Names rows close to the highest throughput that the final rounds lack."""
    close = close_rows(eligible_rows(benchmark))
    missing = [row for row in close if pair_of(row) not in benchmark.final]
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
    if pair_of(winner) not in benchmark.final:
        return ""
    own_ms, noise = final_ms_per_image(benchmark, winner), benchmark.final_noise
    may_win = {pair_of(row) for row in eligible_rows(benchmark)}
    faster = [
        f"{pair[0]} at batch size {pair[1]}"
        for pair, ms in benchmark.final.items()
        if pair not in may_win and told(own_ms, ms / pair[1], noise, seed) == "faster"
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
        for row in valid_rows(benchmark)
        if row["rounds_id"] == winner["rounds_id"]
        and row is not winner
        and told(times[pair_of(winner)], times[pair_of(row)], noise, seed) not in DIFFERENT
    ]
    return f"not told apart from it: {', '.join(ties)}" if ties else ""
