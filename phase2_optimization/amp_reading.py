"""A precision comparison in words: its tables, and a reading that claims no more than it shows."""

from collections.abc import Mapping
from typing import Any

from common.cli import log
from phase2_optimization.amp_inference import STOCK

Report = Mapping[str, Any]
Arm = Mapping[str, Any]
NOTHING = "–"
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
    if fp32["peak_memory_mib"] and amp["peak_memory_mib"]:
        change = amp["peak_memory_mib"] / fp32["peak_memory_mib"] - 1
        parts.append(f"its peak memory is {change:+.0%} ({report['memory_kind']})")
    parts.append(_accuracy(report, amp))
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
        return (
            f"no difference in training speed can be told between {name} and fp32: "
            f"{_times(speedup)}, where two equal fp32 arms give {_times(speedup['noise'])}{because}"
        )
    few = f"{report['timed_steps']} timed steps" if report["timed_steps"] > 1 else "one timed step"
    return f"{few} cannot tell training speeds apart{because}"


def _accuracy(report: Report, arm: Arm) -> str:
    """How far loss and mAP are from FP32's, and whether another seed would have moved FP32 so."""
    found = [
        (difference, words)
        for metric, words in (("final_loss", "final loss"), ("map_50", "map_50"))
        if (difference := (arm["against_fp32"] or {}).get(metric))
    ]
    if not found:
        return ""
    seeds = found[0][0]["seeds"]
    of_seeds = f"{seeds} seed{'s' if seeds > 1 else ''}"
    changes = " and ".join(f"its {words} {_change(d, words)}" for d, words in found)
    text = (
        f"after {report['steps']} equal steps, with {of_seeds}, "
        f"{changes} against fp32 (on {report['evaluated_images']} images)"
    )
    if found[0][0]["fp32_spread"] is None:
        return f"{text}; one seed cannot tell whether that is much"
    spreads = " and ".join(_size(d["fp32_spread"], words) for d, words in found)
    outside = [(d, words) for d, words in found if not d["inside_fp32_spread"]]
    if not outside:
        return f"{text}; that is no more than fp32's own seeds differ by ({spreads})"
    names = " and ".join(words for _, words in outside)
    text = f"{text}; in {names} that is more than fp32's own seeds differ by ({spreads})"
    if any(_is_told(d) for d, _ in outside):
        return text
    return f"{text}, which can be chance: {of_seeds} cannot tell"


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
        f"{words} {_change(difference, words)}"
        for metric, words in (("final_loss", "final loss"), ("map_50", "map_50"))
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
    low, high = ratio["ci95"]
    return f"{ratio['ratio']:.2f}x [{low:.2f}, {high:.2f}]"


def _change(difference: Mapping[str, Any], metric: str) -> str:
    """-0.3 points [-0.9, +0.3] of map_50, +0.002 [-0.010, +0.014] of a loss."""
    scale, digits, unit = (100, 1, " points") if metric == "map_50" else (1, 3, "")
    text = f"{scale * difference['mean']:+.{digits}f}{unit}"
    if difference["ci95"] is None:
        return text
    low, high = (f"{scale * bound:+.{digits}f}" for bound in difference["ci95"])
    return f"{text} [{low}, {high}]"


def _size(value: float, metric: str) -> str:
    return f"{100 * value:.1f} points" if metric == "map_50" else f"{value:.3f}"


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
            NOTHING if speedup["ratio"] is None else _times(speedup),
            NOTHING if speedup["noise"] is None else _times(speedup["noise"]),
            speedup["verdict"] if arm["status"] == "ok" else arm["status"],
        )
    log.info(
        "\n%-11s%7s%25s%25s%9s",
        *(f"{report['steps']} steps", "seeds", "final loss [range]", "map_50 [range]", "skipped"),
    )
    for arm in (arm for arm in arms if arm["runs"]):
        log.info(
            "%-11s%7d%25s%25s%9d",
            arm["name"],
            len(arm["runs"]),
            *(_range(arm["over_seeds"][metric]) for metric in ("final_loss", "map_50")),
            arm["skipped_steps"],
        )


def _range(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return NOTHING
    return f"{values['mean']:.4f} [{values['min']:.4f}, {values['max']:.4f}]"
