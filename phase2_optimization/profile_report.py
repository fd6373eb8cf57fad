"""A profile in words, and its files: the report, the trace and the picture of the memory."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common import artifacts, environment
from common.cli import log
from common.comparison import MIN_ROUNDS, TOO_FEW, interval_text
from phase2_optimization import advice, flops, memory_timeline, profile_trace, roofline
from phase2_optimization.profiling import Profile

BAR = 24  # characters of a whole step
BOUNDS = {
    "arithmetic": "arithmetic bounds them",
    "memory": "memory bounds them",
    "both": "the two together bound them",
    "neither": "most of the time goes into neither",
    "unknown": "what bounds them cannot be told",
}


def save(
    report: dict[str, Any],
    profile: Profile,
    device: torch.device,
    output: Path,
    max_trace_mib: float,
) -> list[Path]:
    """Writes trace, picture and the report that tells of them, all or none; logs the advice.

    Args:
        report: its first keys: where it comes from and the settings.
        max_trace_mib: a larger trace keeps its longest events only.

    Returns:
        What was written, the report first.
    """
    timelines = memory_timeline.read_timelines(
        profile.trace["traceEvents"], ("training", "inference"), device.type
    )
    advised = _logged_advice(profile)
    traced: dict[str, Any] = {}

    def write_trace(path: Path) -> None:
        traced.update(profile_trace.save(profile.trace, path, max_trace_mib))

    def draw(path: Path) -> None:
        title = (
            f"Memory in the course of a step: {report['architecture']}, batch of "
            f"{report['batch_size']}, training in {profile.training['precision']}, inference in "
            f"{profile.inference['precision']}, {environment.device_name(str(device))}"
        )
        memory_timeline.draw(timelines, device.type, title, path)

    def write_report(path: Path) -> None:
        content = {
            **report,
            "gpu_state": profile.gpu_state,
            "warnings": profile.warnings,
            **profile.training,
            "host_syncs_are_measured_on": device.type,
            "inference": profile.inference,
            "peak_measured_here": profile.peak,
            "flops_counted": flops.COUNTED,
            "roofline_counted": roofline.COUNTED,
            "memory": {name: timeline.summary() for name, timeline in timelines.items()},
            "trace": traced,
            "setting": asdict(profile.setting),
            "advice": advised,
        }
        artifacts.put_json(path, content)

    writers = {output / "profile_trace.json.gz": write_trace}
    if timelines:
        writers[output / "profile_memory.png"] = draw
    writers[output / "profile.json"] = write_report
    artifacts.write_together(writers)
    return list(reversed(writers))


def _logged_advice(profile: Profile) -> list[str]:
    advised = advice.advise(profile.training, profile.inference, profile.setting)
    for sentence in advised or ["none that the measurements support"]:
        log.info("Advice – %s", sentence)
    for sentence in profile.warnings:
        log.warning("%s", sentence)
    return advised


def log_profile(profile: Profile, device: torch.device) -> None:
    """Tables of the stages, and what a step holds."""
    for name, part in (("training", profile.training), ("inference", profile.inference)):
        _log_stages(name, part, device)
        _log_inside(part, profile.peak)
        log.info("  %s", roofline_in_words(part["roofline"]))


def _log_stages(name: str, part: dict[str, Any], device: torch.device) -> None:
    stock = part["stock"]
    log.info(
        "\n%s, %s: %.1f ms a step (median), %.1f images/s",
        *(name, part["description"], part["free_step_ms"]["p50"], part["images_per_s"]),
    )
    log.info("  %s", speed_in_words(stock))
    log.info("  %-16s%11s%9s  %-*s%15s", "stage", "ms", "share", BAR, "", "torchvision ms")
    stock_ms = {stage["name"]: stage["ms"] for stage in stock["stages"]}
    for stage in part["stages"]:
        beside = stock_ms.get(stage["name"])
        log.info(
            "  %-16s%11.2f%8.1f%%  %-*s%15s",
            *(stage["name"], stage["ms"], stage["share"] * 100),
            *(BAR, "#" * round(stage["share"] * BAR), "–" if beside is None else f"{beside:.2f}"),
        )
    would_be = "" if device.type == "cuda" else " (would-be: there is no GPU to wait for)"
    log.info(
        "  %d operations, %d host syncs%s, peak memory %s MiB%s",
        *(part["operations_per_step"], part["host_syncs_per_step"], would_be),
        "unknown" if part["peak_memory_mib"] is None else round(part["peak_memory_mib"]),
        "" if device.type == "cuda" else " (the whole process)",
    )


def speed_in_words(stock: dict[str, Any]) -> str:
    """How many times as fast as torchvision's own step, and whether that can be told."""
    speedup, description = stock["speedup"], stock["description"]
    if speedup["verdict"] == TOO_FEW:
        why = f"that cannot be told from chance: {TOO_FEW}"
        if speedup["ci95"] is None:
            why = f"fewer than {MIN_ROUNDS} steps have no interval and cannot tell speeds apart"
        return f"{speedup['ratio']:.2f}x the speed of {description}; {why}"
    told, noise = (
        interval_text(each["ratio"], each["ci95"], "x") for each in (speedup, speedup["noise"])
    )
    return (
        f"{told} the speed of {description}, where two equal ones are {noise}: {speedup['verdict']}"
    )


def _log_inside(part: dict[str, Any], peak: dict[str, dict[str, float]]) -> None:
    arithmetic, activity = part["flops"], part["device_activity"]
    if activity:
        log.info(
            "  %d kernel launches, the GPU works %.0f%% of the time after the data has come",
            *(activity["kernel_launches"], part["gpu_busy_share"] * 100),
        )
    log.info(
        "  %.1f GFLOP a step; the networks run at %.0f GFLOP/s, %.0f%% of the %.0f measured (%s)",
        *(arithmetic["gflop_per_step"], arithmetic["computing_gflop_s"]),
        arithmetic["computing_share_of_peak"] * 100,
        *(peak[arithmetic["dtype"]]["gflop_s"], arithmetic["dtype"]),
    )


def roofline_in_words(found: dict[str, Any]) -> str:
    """The intensity of the operators, the balance of the machine, and what bounds the step."""
    intensity = found["intensity_flop_per_byte"] or 0.0
    return (
        f"roofline: {intensity:.0f} FLOP per byte moved, where {found['peak_gflop_s']:.0f} GFLOP/s "
        f"and {found['copy_gb_s']:.1f} GB/s balance at {found['balance_flop_per_byte']:.0f}; of "
        f"{found['measured_ms']:.0f} ms arithmetic needs {found['arithmetic_ms']:.0f} and moving "
        f"data up to {found['memory_ms']:.0f}: {BOUNDS[found['bound']]}"
    )
