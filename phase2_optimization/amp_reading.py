"""A precision comparison in words: its tables, and a reading that claims no more than it shows."""

from collections.abc import Mapping
from typing import Any

from common.cli import log
from common.comparison import MIN_ROUNDS, interval_text
from phase2_optimization.amp_inference import STOCK

Report = Mapping[str, Any]
Arm = Mapping[str, Any]
NOTHING = "–"
FINAL_LOSS_STEPS = 5  # the final loss is the mean of the last ones: one batch alone is noisy
LEARNT = {"final_loss": "final loss", "map": "map", "map_50": "map_50"}
MEMORY_DOUBT = 0.05  # of a resident set, which holds libraries and what an allocator keeps
MANY_SKIPPED = 0.1  # of the steps; loss scaling skips a few while it finds its scale
EMULATED = "this CPU has no bfloat16 instructions and emulates them"


def read_result(report: Report) -> str:
    """The result in a few sentences that claim no more than the intervals allow.

    Args:
        report: what `amp_report.results` makes.
    """
    arms = {arm["name"]: arm for arm in report["arms"]}
    parts = {
        "Training": _training(report, arms["fp32"], arms[report["usual_amp"]]),
        "TF32": _tf32(arms.get("tf32")),
        "Autocast around the whole model": _stock(arms.get("amp_stock")),
        "Inference, one image at a time": "; ".join(map(_inference, report["inference"]["ways"])),
    }
    return " ".join(f"{label}: {words}." for label, words in parts.items() if words)


def _training(report: Report, fp32: Arm, amp: Arm) -> str:
    if fp32["status"].startswith("invalid"):
        return f"fp32 itself is {fp32['status']}; lower --learning-rate before comparing anything"
    name, status = amp["name"], amp["status"]
    if amp["speedup"]["ratio"] is None:
        why = "no step has a time to be believed" if status == "ok" else status
        return f"{name} was not compared with fp32: {why}"
    parts = [_speed(report, amp)]
    if status.startswith("invalid"):
        return f"{parts[0]}, but that is worth nothing: it is {status}"
    if status == "oom":
        return f"{parts[0]}, until it ran out of memory"
    if amp["skipped_steps"] > MANY_SKIPPED * sum(len(run["loss"]) for run in amp["runs"]):
        parts.append(f"{amp['skipped_steps']} of its steps were skipped: gradients overflowed")
    parts += [_memory(report, fp32, amp), _accuracy(report, amp)]
    return "; ".join(part for part in parts if part)


def _speed(report: Report, amp: Arm) -> str:
    name, speedup = amp["name"], amp["speedup"]
    because = f" ({EMULATED})" if amp["emulated"] else ""
    if speedup["verdict"] == "faster":
        return f"{name} trains {_times(speedup)} as fast as fp32{because}"
    if speedup["verdict"] == "slower":
        slower = f"{name} is slower than fp32 on this machine: {_times(speedup)} its speed"
        return slower + (f", because {EMULATED}" if because else "")
    if speedup["verdict"] == "within noise":
        noise = speedup["noise"]
        equal = f", where two equal fp32 arms give {_times(noise)}" if noise else ""
        return (
            f"no difference in training speed can be told between {name} and fp32: "
            f"{_times(speedup)}{equal}{because}"
        )
    return f"{_few(report['timed_steps'])} cannot tell training speeds apart{because}"


def speed_title(report: Report) -> str:
    """The speed of the usual AMP as the reading has it, short enough for a picture; "" where it
    was not compared."""
    arms = {arm["name"]: arm for arm in report["arms"]}
    fp32, amp = arms["fp32"], arms[report["usual_amp"]]
    for arm in (fp32, amp):
        if arm["status"].startswith("invalid"):
            return f"{arm['name']} is invalid: speeds are worth nothing"
    if amp["speedup"]["ratio"] is None:
        return ""
    return compared_title(amp["name"], "fp32", amp["speedup"], report["timed_steps"])


def compared_title(name: str, baseline: str, speedup: Mapping[str, Any], steps: int) -> str:
    """A comparison of `common.comparison` in a line or two, no ratio where none can be told."""
    if speedup["verdict"] in ("faster", "slower"):
        return f"{name} is {speedup['verdict']}: {_times(speedup)} the speed of {baseline}"
    if speedup["verdict"] == "within noise":
        noise = speedup["noise"] and f", two equal arms: {_times(speedup['noise'])}"
        return (
            f"no difference between {name} and {baseline} can be told\n"
            f"({_times(speedup)}{noise or ''})"
        )
    return f"{_few(steps)} cannot tell {name} and {baseline} apart"


def _few(steps: int) -> str:
    return f"{steps} timed steps" if steps > 1 else "one timed step"


def _memory(report: Report, fp32: Arm, amp: Arm) -> str:
    if not (fp32["peak_memory_mib"] and amp["peak_memory_mib"]):
        return ""
    change, kind = amp["peak_memory_mib"] / fp32["peak_memory_mib"] - 1, report["memory_kind"]
    text = f"{_signed(100 * change, 0)}%"
    if "resident" in kind and abs(change) < MEMORY_DOUBT:
        return f"no difference in peak memory can be told ({text}, {kind})"
    return f"its peak memory is {text} ({kind})"


def _accuracy(report: Report, arm: Arm) -> str:
    """How far loss and mAP are from FP32's, and whether another seed would have moved FP32 so."""
    found = {
        metric: difference
        for metric in LEARNT
        if (difference := (arm["against_fp32"] or {}).get(metric))
    }
    if not found:
        return ""
    seeds = _seeds(next(iter(found.values()))["seeds"])
    changes = ", ".join(
        f"its {LEARNT[metric]} {_change(difference, metric)}{_beside_spread(difference, metric)}"
        for metric, difference in found.items()
    )
    text = (
        f"after {report['steps']} equal steps ({report['warmup_steps']} to warm up), with {seeds}, "
        f"against fp32 (loss: mean of the last {report['final_loss_is_the_mean_of_steps']} steps; "
        f"map: on {report['evaluated_images']} images): {changes}"
    )
    if any(difference["fp32_spread"] is None for difference in found.values()):
        return f"{text}; one seed cannot tell whether that is much"
    return f"{text}; fp32's spread is how far its own seeds are apart"


def _beside_spread(difference: Mapping[str, Any], metric: str) -> str:
    if difference["fp32_spread"] is None:
        return ""
    spread = f"fp32's spread of {_size(difference['fp32_spread'], metric)}"
    if difference["inside_fp32_spread"]:
        return f" (inside {spread})"
    if _is_told(difference):
        return f" (outside {spread})"
    return f" (outside {spread}, which can be chance: {_seeds(difference['seeds'])} cannot tell)"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _is_told(difference: Mapping[str, Any]) -> bool:
    """Whether the seeds' interval excludes that there is no difference."""
    low, high = difference["ci95"] or (0.0, 0.0)
    return low > 0 or high < 0


def _tf32(tf32: Arm | None) -> str:
    if not tf32 or tf32["speedup"]["verdict"] not in ("faster", "slower", "within noise"):
        return ""
    told = ", within the noise" if tf32["speedup"]["verdict"] == "within noise" else ""
    return f"without AMP it trains {_times(tf32['speedup'])} as fast as fp32{told}"


def _stock(stock: Arm | None) -> str:
    """Said of autocast around the whole model only where it does harm."""
    if not stock:
        return ""
    if stock["status"].startswith("invalid"):
        return f"amp_stock is {stock['status']}"
    outside = [
        f"{words} {_change(difference, metric)}"
        for metric, words in LEARNT.items()
        if (difference := (stock["against_fp32"] or {}).get(metric))
        and difference["inside_fp32_spread"] is False
        and _is_told(difference)
    ]
    if not outside:
        return ""
    return f"amp_stock is further from fp32 than fp32's own seeds differ: {' and '.join(outside)}"


def _inference(row: Mapping[str, Any]) -> str:
    """One way of inference in half precision against the same in FP32."""
    is_stock = row["name"] == STOCK
    way, half = (
        row["description"],
        f"{'under autocast to' if is_stock else 'in'} {row['precision']}",
    )
    if row["status"] != "ok":
        return f"{way} {half} is {row['status']}"
    speedup = row["speedup"]
    because = ""
    if row["emulated"]:
        because = f" ({EMULATED}{'' if is_stock else '; videos are detected in FP32 here'})"
    if speedup["verdict"] == "faster":
        return f"{way} is {_times(speedup)} as fast {half} as in FP32{because}"
    if speedup["verdict"] == "slower":
        return f"{way} is slower {half} than in FP32: {_times(speedup)} its speed{because}"
    if speedup["verdict"] == "within noise":
        return (
            f"no difference can be told between {way} {half} and in FP32: {_times(speedup)}, "
            f"where two equal FP32 arms give {_times(speedup['noise'])}{because}"
        )
    return f"{way} {half} was timed too few times to compare it with FP32{because}"


def _times(ratio: Mapping[str, Any]) -> str:
    """1.66x [1.62, 1.68]."""
    return interval_text(ratio["ratio"], ratio["ci95"], "x")


def _change(difference: Mapping[str, Any], metric: str) -> str:
    """-0.3 points [-0.9, +0.3] of map_50, +0.002 [-0.010, +0.014] of a loss."""
    scale, digits, unit = (1, 3, "") if metric == "final_loss" else (100, 1, " points")
    text = f"{_signed(scale * difference['mean'], digits)}{unit}"
    if difference["ci95"] is None:
        return text
    low, high = (_signed(scale * bound, digits) for bound in difference["ci95"])
    return f"{text} [{low}, {high}]"


def _signed(value: float, digits: int) -> str:
    """+0.3, -1.0, and +0.0 for what rounds to nothing from either side."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _size(value: float, metric: str) -> str:
    return f"{value:.3f}" if metric == "final_loss" else f"{100 * value:.1f} points"


# --- tables -----------------------------------------------------------------------------------


def log_tables(report: Report) -> None:
    """What each arm takes, then what it has learnt: mean and range over the seeds."""
    arms = report["arms"]
    log.info(
        "\n%-11s%9s%9s%9s%10s  %-20s%-20s%s",
        *("step", "p50 ms", "p90 ms", "p99 ms", "peak MiB", "speed-up [95%]", "noise [95%]", ""),
    )
    for arm in arms:
        if not arm["step_ms"]:
            log.info("%-11s%s", arm["name"], arm["status"])
            continue
        speedup = arm["speedup"]
        log.info(
            "%-11s%9.1f%9.1f%9.1f%10s  %-20s%-20s%s",
            arm["name"],
            *(arm["step_ms"][key] for key in ("p50", "p90", "p99")),
            NOTHING if arm["peak_memory_mib"] is None else f"{arm['peak_memory_mib']:.0f}",
            *(_cell(ratio, report["timed_steps"]) for ratio in (speedup, speedup["noise"])),
            speedup["verdict"] if arm["status"] == "ok" else arm["status"],
        )
    log.info(
        "\nLearnt in %d steps, %d to warm up and %d timed; the loss is the mean of the last %d",
        *(report["steps"], report["warmup_steps"], report["steps"] - report["warmup_steps"]),
        report["final_loss_is_the_mean_of_steps"],
    )
    log.info(
        "%-11s%7s%25s%25s%25s%9s",
        *("", "seeds", *(f"{words} [range]" for words in LEARNT.values()), "skipped"),
    )
    for arm in (arm for arm in arms if arm["runs"]):
        log.info(
            "%-11s%7d%25s%25s%25s%9d",
            *(arm["name"], len(arm["runs"])),
            *(_range(arm["over_seeds"][metric]) for metric in LEARNT),
            arm["skipped_steps"],
        )


def _cell(ratio: Mapping[str, Any] | None, rounds: int) -> str:
    """A ratio of so many rounds, of which few carry no interval."""
    if ratio is None or ratio["ratio"] is None:
        return NOTHING
    return _times(ratio) if rounds >= MIN_ROUNDS else f"{ratio['ratio']:.2f}x"


def _range(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return NOTHING
    return f"{values['mean']:.4f} [{values['min']:.4f}, {values['max']:.4f}]"
