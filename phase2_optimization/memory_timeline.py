"""Memory in the course of a step, with its stages: read from a trace, and drawn."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.timing import MIB
from phase2_optimization.stages import OTHER, STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEVICE_TYPES = {"cpu": 0, "cuda": 1}  # as torch numbers them in a trace
KINDS = {
    "cpu": "MiB of tensors made since the step began",
    "cuda": "MiB of PyTorch's CUDA allocator",
}
# Okabe & Ito (2008): told apart with every kind of colour vision. Stages that never meet in one
# step share a colour; the wide bands carry their names.
COLOURS = {
    "data wait": "#BBBBBB",
    "copy to device": "#777777",
    "transform": "#56B4E9",
    "backbone": "#0072B2",
    "FPN": "#009E73",
    "RPN": "#E69F00",
    "RoI heads": "#D55E00",
    "backward": "#CC79A7",
    "post-processing": "#CC79A7",
    "optimizer": "#F0E442",
    "logging": "#000000",
    "results to host": "#F0E442",
    OTHER: "#FFFFFF",
}
NAMED_SHARE = 0.06  # of the step: a narrower band has no room for its name


@dataclass(frozen=True)
class Timeline:
    """Memory in the course of one step.

    Attributes:
        ms: since the step began, ascending; shape (n,).
        allocated_mib: in use from each of these moments on; shape (n,).
        reserved_mib: held by the allocator; shape (n,), None where it does not tell.
        stages: (name, start ms, end ms) one after the other; what is between them is "other".
    """

    ms: np.ndarray
    allocated_mib: np.ndarray
    reserved_mib: np.ndarray | None
    stages: Sequence[tuple[str, float, float]]

    def peak(self) -> tuple[float, float, str]:
        """The highest allocated MiB, when it was reached (ms), and in which stage."""
        index = int(self.allocated_mib.argmax())
        moment = float(self.ms[index])
        inside = (name for name, start, end in self.stages if start <= moment <= end)
        return float(self.allocated_mib[index]), moment, next(inside, OTHER)

    def summary(self) -> dict[str, Any]:
        peak_mib, _, stage = self.peak()
        return {"peak_mib": peak_mib, "peak_stage": stage}


def read_timelines(
    events: Iterable[Mapping[str, Any]], steps: Iterable[str], device_type: str
) -> dict[str, Timeline]:
    """`read_timeline` of several steps; those without memory events are left out."""
    found = {step: read_timeline(events, step, device_type) for step in steps}
    return {step: timeline for step, timeline in found.items() if timeline is not None}


def read_timeline(
    events: Iterable[Mapping[str, Any]], step: str, device_type: str
) -> Timeline | None:
    """The memory of one labelled step of a chrome trace; None if the trace has none of the device.

    Args:
        events: as torch.profiler writes them with `profile_memory`, times in microseconds.
        step: the label (`record_function`) of the step, around the labels of its stages.
        device_type: "cpu" or "cuda"; nothing is recorded of others.
    """
    events = list(events)
    labels = [event for event in events if event.get("cat") == "user_annotation"]
    (label,) = (event for event in labels if event["name"] == step)
    start, end = label["ts"], label["ts"] + label["dur"]
    states = sorted(
        (event["ts"], event["args"]["Total Allocated"], event["args"]["Total Reserved"])
        for event in events
        if event["name"] == "[memory]"
        and event["args"]["Device Type"] == DEVICE_TYPES.get(device_type)
        and start <= event["ts"] <= end
    )
    if not states:
        return None
    moments, allocated, reserved = np.array(states, dtype=np.float64).T
    if device_type == "cpu":  # what was made before the profiler began is not counted in
        allocated = allocated - _before(events, start)
    return Timeline(
        (moments - start) / 1e3,
        allocated / MIB,
        reserved / MIB if reserved.any() else None,
        _innermost(labels, start, end),
    )


def _before(events: Iterable[Mapping[str, Any]], start: float) -> float:
    """Bytes on the CPU that earlier steps of the same trace have left."""
    earlier = [
        (event["ts"], event["args"]["Total Allocated"])
        for event in events
        if event["name"] == "[memory]" and event["ts"] < start and event["args"]["Device Type"] == 0
    ]
    return max(earlier)[1] if earlier else 0.0


def _innermost(
    labels: Iterable[Mapping[str, Any]], start: float, end: float
) -> list[tuple[str, float, float]]:
    """The stages of a step in order of time, each moment belonging to the innermost one."""
    spans = [
        (label["ts"], label["ts"] + label["dur"], label["name"])
        for label in labels
        if label["name"] in STAGES and start <= label["ts"] <= end
    ]
    bounds = sorted({bound for span in spans for bound in span[:2]})
    stages: list[tuple[str, float, float]] = []
    for left, right in itertools.pairwise(bounds):
        around = [span for span in spans if span[0] <= left and right <= span[1]]
        if around:
            name = max(around)[2]  # the one that began last
            stages.append((name, (left - start) / 1e3, (right - start) / 1e3))
    return stages


def draw(timelines: Mapping[str, Timeline], device_type: str, title: str, path: Path) -> None:
    """One panel for each step: allocated (and reserved) memory over time, stages as bands.

    Args:
        timelines: by the name of the step, at least one.
        device_type: "cpu" or "cuda".
        path: the PNG, written in place.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(timelines),
        1,
        figsize=(13, 1 + 3.3 * len(timelines)),
        squeeze=False,
        layout="constrained",
    )
    try:
        for axis, (name, timeline) in zip(axes[:, 0], timelines.items(), strict=True):
            _draw_bands(axis, timeline)
            _draw_memory(axis, timeline)
            axis.set_title(f"One {name} step", loc="left", fontsize=11, pad=18)
            axis.set_ylabel(KINDS[device_type], fontsize=9)
            _draw_legend(axis)
        axes[-1, 0].set_xlabel("ms; a profiled step is slower than one that runs freely")
        figure.suptitle(title, fontsize=11)
        figure.savefig(path, dpi=110)
    finally:
        plt.close(figure)


def _draw_legend(axis: "Axes") -> None:
    """Beside the panel, the stages in the order of a step."""
    from matplotlib.patches import Patch

    handles, labels = axis.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    if OTHER in by_label:  # white on white would be no sample
        by_label[OTHER] = Patch(facecolor=COLOURS[OTHER], edgecolor="0.6")
    names = [name for name in (*STAGES, OTHER, "allocated", "reserved") if name in by_label]
    axis.legend(
        [by_label[name] for name in names],
        names,
        loc="upper left",
        bbox_to_anchor=(1.005, 1.02),
        frameon=False,
        fontsize=9,
    )


def _draw_bands(axis: "Axes", timeline: Timeline) -> None:
    total_ms = max(timeline.stages[-1][2], float(timeline.ms[-1]))
    labelled: set[str] = set()
    for name, start, end in (*timeline.stages, *_between(timeline.stages, total_ms)):
        label = "" if name in labelled else name  # once in the legend
        labelled.add(name)
        axis.axvspan(start, end, color=COLOURS[name], alpha=0.45, linewidth=0, label=label)
        if end - start > NAMED_SHARE * total_ms:
            place = axis.get_xaxis_transform()
            middle = (start + end) / 2
            axis.text(middle, 1.01, name, transform=place, ha="center", va="bottom", fontsize=8)
    axis.set_xlim(0, total_ms)


def _between(
    stages: Sequence[tuple[str, float, float]], total_ms: float
) -> Iterator[tuple[str, float, float]]:
    """The gaps before, between and after the stages, which are in order of time."""
    ends = [0.0, *(end for _, _, end in stages)]
    starts = [*(start for _, start, _ in stages), total_ms]
    for end, start in zip(ends, starts, strict=True):
        if start > end:
            yield OTHER, end, start


def _draw_memory(axis: "Axes", timeline: Timeline) -> None:
    curves = {"allocated": (timeline.allocated_mib, "-")}
    if timeline.reserved_mib is not None:
        curves["reserved"] = (timeline.reserved_mib, "--")
    for name, (values, style) in curves.items():
        axis.step(timeline.ms, values, style, where="post", color="black", lw=1.2, label=name)
    peak_mib, moment, stage = timeline.peak()
    axis.plot(moment, peak_mib, "v", color="black", markersize=7)
    side = "left" if moment < axis.get_xlim()[1] / 2 else "right"
    axis.annotate(
        f"{peak_mib:.0f} MiB in {stage}",
        (moment, peak_mib),
        xytext=(8 if side == "left" else -8, 4),
        textcoords="offset points",
        ha=side,
        fontsize=9,
    )
    highest = max(float(values.max()) for values, _ in curves.values())
    axis.set_ylim(0, 1.12 * highest or 1.0)
