"""What a precision comparison came to: a row per arm and its differences to FP32 over the seeds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from common import timing
from common.comparison import compare
from common.gpu_state import warnings_from
from phase2_optimization.amp_reading import FINAL_LOSS_STEPS, read_result

if TYPE_CHECKING:
    from phase2_optimization.amp_comparison import AmpComparison, ArmRecord

METRICS = ("final_loss", "map", "map_50")
LIMITS = (
    "{steps} steps show whether a precision breaks training at once, not whether it trains as "
    "well for epochs: for that run train.py twice, with --amp off and on, and compare the curves. "
    "What inference in half precision costs in mAP is not measured here, but by "
    "benchmark_inference.py."
)
NOT_COMPARED = {"ratio": None, "ci95": [None, None], "noise": None, "verdict": None}
Run = Mapping[str, Any]


def results(comparison: "AmpComparison") -> dict[str, Any]:
    """Everything measured so far, with the keys of amp_comparison.json."""
    settings, records = comparison.settings, comparison.records
    rows = [_row(name, record, comparison) for name, record in records.items()]
    steps = settings.steps + comparison.warmup_steps
    before, after = comparison.gpu_before, comparison.gpu_after
    report = {
        "steps": steps,
        "warmup_steps": comparison.warmup_steps,
        "timed_steps": len(records["fp32"].step_ms),
        "final_loss_is_the_mean_of_steps": min(FINAL_LOSS_STEPS, steps),
        "batch_size": settings.batch_size,
        "seeds": list(settings.seeds),
        "timed_seed": settings.seeds[0],
        "learning_rate": settings.learning_rate,
        "tf32": False,
        "memory_kind": comparison.memory_kind,
        "evaluated_images": min(settings.max_images, len(comparison.val.records)),
        "baseline": "fp32",
        "usual_amp": comparison.usual_amp,
        "arms": rows,
        "speedup": next(r["speedup"] for r in rows if r["name"] == comparison.usual_amp),
        "inference": {
            "batch_size": 1,
            "ways": [_inference_row(row, comparison) for row in comparison.inference],
        },
        "gpu_state": {"before": before, "after": after},
        "warnings": warnings_from(before, after),
        "limits": LIMITS.format(steps=steps),
    }
    return {**report, "reading": read_result(report)}


def _row(name: str, record: "ArmRecord", comparison: "AmpComparison") -> dict[str, Any]:
    baseline = comparison.records["fp32"]
    over_seeds = {metric: _over_seeds(record.runs, metric) for metric in METRICS}
    return {
        "name": name,
        "description": record.precision.description,
        "emulated": record.precision.emulated,
        "status": _status(record),
        "step_ms": timing.summarise(record.step_ms) if record.step_ms else None,
        "speedup": _compare(baseline.step_ms, comparison.again_ms, record.step_ms, comparison),
        "peak_memory_mib": record.peak_mib,
        **{metric: (over_seeds[metric] or {}).get("mean") for metric in METRICS},
        "over_seeds": over_seeds,
        "against_fp32": None
        if name == "fp32"
        else {metric: difference(baseline.runs, record.runs, metric) for metric in METRICS},
        "skipped_steps": sum(run["skipped_steps"] for run in record.runs),
        "step_times_ms": record.step_ms,
        "runs": record.runs,
    }


def _status(record: "ArmRecord") -> str:
    """ "ok", or why not: "unavailable: …", "skipped: …", "oom", "invalid: …" or "stopped: …"."""
    if record.failure:
        return record.failure
    for run in record.runs:
        if None in run["loss"]:
            step, count = run["loss"].index(None) + 1, run["loss"].count(None)
            return (
                f"invalid: the loss was no finite number at {count} of {len(run['loss'])} steps "
                f"of seed {run['seed']}, first at step {step}"
            )
    return "ok" if record.runs else "stopped: the run ended before its result was known"


def _over_seeds(runs: Sequence[Run], metric: str) -> dict[str, Any] | None:
    """Mean and range over the seeds; None where there is no value, or a run without one."""
    values = [run[metric] for run in runs]
    if not values or None in values:
        return None
    return {
        "mean": float(np.mean(values)),
        "min": min(values),
        "max": max(values),
        "values": values,
    }


def difference(fp32_runs: Sequence[Run], runs: Sequence[Run], metric: str) -> dict[str, Any] | None:
    """How far an arm is from FP32 with the same seeds, and whether a seed matters as much.

    Returns:
        `mean` of the differences arm - FP32, its `ci95` (Student's t, None for one seed),
        `fp32_spread`, the range of FP32's own results over all its seeds (None for one seed),
        `inside_fp32_spread`, whether the mean difference is at most that, and the number of
        `seeds` compared. None where there is no value to compare.
    """
    fp32 = {run["seed"]: run[metric] for run in fp32_runs}
    other = {run["seed"]: run[metric] for run in runs if run["seed"] in fp32}
    if not other or None in (*fp32.values(), *other.values()):
        return None
    differences = np.array([value - fp32[seed] for seed, value in other.items()])
    mean, count = float(differences.mean()), len(differences)
    ci95 = None
    if count > 1:
        half = float(stdtrit(count - 1, 0.975) * differences.std(ddof=1) / np.sqrt(count))
        ci95 = [mean - half, mean + half]
    spread = max(fp32.values()) - min(fp32.values()) if len(fp32) > 1 else None
    return {
        "mean": mean,
        "ci95": ci95,
        "fp32_spread": spread,
        "inside_fp32_spread": None if spread is None else abs(mean) <= spread,
        "seeds": count,
    }


def _inference_row(row: Mapping[str, Any], comparison: "AmpComparison") -> dict[str, Any]:
    row = dict(row)
    ms = row.pop("ms", None)
    if ms is None:
        return row
    if not len(ms["fp32"]):
        return {**row, "status": "stopped: the clock went back in every round"}
    return {
        **row,
        "iterations": len(ms["fp32"]),
        "latency_ms": {name: timing.summarise(ms[name]) for name in ("fp32", "half")},
        "speedup": _compare(ms["fp32"], ms["again"], ms["half"], comparison),
    }


def _compare(
    baseline_ms: Sequence[float],
    again_ms: Sequence[float],
    candidate_ms: Sequence[float],
    comparison: "AmpComparison",
) -> dict[str, Any]:
    """The speed-up with its interval, the noise of equal arms beside it, and the verdict."""
    if not len(baseline_ms) or not len(candidate_ms):
        return dict(NOT_COMPARED)
    seed = comparison.settings.seeds[0] % 2**32
    again = np.asarray(again_ms) if len(again_ms) else None
    compared = compare(np.asarray(baseline_ms), np.asarray(candidate_ms), again, seed).as_dict()
    return {**compared, "verdict": "baseline"} if candidate_ms is baseline_ms else compared
