"""The trace of one step of each kind, as torch.profiler sees it."""

import gzip
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from common import timing
from phase2_optimization.profile_steps import Arm
from phase2_optimization.stages import StageClock

Trace = dict[str, Any]
"""The document of a chrome trace; its "traceEvents" have times in microseconds."""


def record(arms: Mapping[str, Arm], device: torch.device) -> Trace:
    """Makes one step of each arm, labelled with its name and its stages, memory included."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        for name, arm in arms.items():
            clock = StageClock(device, wait_at_stages=False)
            timing.synchronize(device)  # outside of the label: it is no wait of the step
            with arm.watch(clock), torch.profiler.record_function(name):
                arm.step(clock)
        timing.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))


def save(trace: Trace, path: Path, max_mib: float) -> dict[str, Any]:
    """Writes a trace as gzipped JSON; above `max_mib` with its longest events only.

    Args:
        path: written to more than once until it is small enough, so a temporary one.

    Returns:
        {"events": written, "events_dropped": n, "size_mib": of the file}
    """
    kept = trace["traceEvents"]
    while (size_mib := _write(path, {**trace, "traceEvents": kept})) > max_mib and len(kept) > 1:
        by_length = sorted(kept, key=_length, reverse=True)
        kept = by_length[: max(1, int(len(by_length) * 0.9 * max_mib / size_mib))]
    dropped = len(trace["traceEvents"]) - len(kept)
    return {"events": len(kept), "events_dropped": dropped, "size_mib": size_mib}


def _length(event: Mapping[str, Any]) -> float:
    """Names of processes and threads come first: without them nothing can be read."""
    return float("inf") if event.get("ph") == "M" else event.get("dur", 0.0)


def _write(path: Path, trace: Trace) -> float:
    with gzip.open(path, "wt", compresslevel=6, encoding="utf-8") as file:
        file.write(json.dumps(trace))  # at once: json.dump would walk through it in Python
    return path.stat().st_size / timing.MIB
