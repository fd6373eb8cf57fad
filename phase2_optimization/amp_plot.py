"""The pictures of a precision comparison: step times, and what the arms have learnt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from common import artifacts
from common.comparison import MIN_ROUNDS, compare, median_interval
from phase2_optimization.amp_reading import compared_title, speed_title

# Okabe & Ito (2008): told apart with every kind of colour vision; line styles differ as well.
STYLES = {
    "fp32": ("#0072B2", "-"),
    "tf32": ("#56B4E9", "-."),
    "amp_fp16": ("#D55E00", (0, (8, 2))),
    "amp_bf16": ("#E69F00", "--"),
    "amp_stock": ("#009E73", ":"),
    "FP32": ("#0072B2", "-"),
    "AMP": ("#E69F00", "--"),
}
SMALLEST_RANGE = 2.0  # points of map_50; a smaller one would make much of nothing
LOG_FROM = 4.0  # times between the medians; a linear scale would flatten the faster arms
Times = Mapping[str, "np.ndarray | Sequence[float]"]
Arm = Mapping[str, Any]


def draw_times(times: Times, path: Path) -> None:
    """Draws step times in milliseconds, by arm, the baseline first: three panels."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 5))
    arms = {name: np.asarray(ms, float) for name, ms in times.items()}
    baseline, *others = arms
    _draw_times(axes, arms, _title(arms, baseline, others[-1]))
    _save(figure, path)


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draws an amp_comparison.json: step times above, losses and map_50 over the seeds below."""
    arms = [arm for arm in report["arms"] if arm["step_times_ms"]]
    figure = plt.figure(figsize=(15, 9.5))
    grid = figure.add_gridspec(2, 6)
    above = [figure.add_subplot(grid[0, start : start + 2]) for start in (0, 2, 4)]
    times = {arm["name"]: np.asarray(arm["step_times_ms"], float) for arm in arms}
    _draw_times(above, times, speed_title(report))
    _draw_losses(figure.add_subplot(grid[1, :4]), arms, report)
    _draw_scores(figure.add_subplot(grid[1, 4:]), arms, report)
    machine = report["environment"]
    emulated = "; bfloat16 is emulated" if any(arm["emulated"] for arm in arms) else ""
    figure.suptitle(
        f"{report['architecture']}, batch size {report['batch_size']}, {machine['device']} "
        f"({machine['device_name']}), threads: {machine['threads']}, "
        f"torch {machine['packages']['torch']}{emulated}",
        fontsize=11,
    )
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.tight_layout()
        with artifacts.atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
    finally:
        plt.close(figure)


# --- step times -------------------------------------------------------------------------------


def _draw_times(axes: Sequence[Axes], times: Mapping[str, np.ndarray], title: str) -> None:
    """The spread of the step times, their medians, and their course."""
    spread, bars, course = axes
    if not times:
        return
    drawn = spread.boxplot(
        list(times.values()), patch_artist=True, widths=0.5, medianprops={"color": "0.1"}
    )
    for place, (name, ms) in enumerate(times.items()):
        colour, line = STYLES[name]
        drawn["boxes"][place].set(facecolor=colour, alpha=0.7)
        median, interval = median_interval(ms)
        bars.bar(place, median, 0.6, color=colour, alpha=0.85)
        low, top = interval or (median, median)
        if interval:
            error = [[max(0.0, median - low)], [max(0.0, top - median)]]
            bars.errorbar(place, median, error, color="0.2", capsize=8)
        bars.text(place, top, f"{median:.1f} ms", ha="center", va="bottom")
        course.plot(range(1, len(ms) + 1), ms, label=name, color=colour, linestyle=line)
    spread.set_xticks(range(1, len(times) + 1), list(times))
    spread.set_title("Training time distribution")
    bars.set_xticks(range(len(times)), list(times))
    bars.margins(y=0.15)
    told = any(len(ms) >= MIN_ROUNDS for ms in times.values())
    bars.set_ylabel("median step (ms), 95% interval" if told else "median step (ms)")
    bars.set_title(title or "Median step times", fontsize=11)
    course.set_title("Time progression")
    course.set_xlabel("timed step")
    course.xaxis.set_major_locator(MaxNLocator(integer=True))
    medians = [float(np.median(ms)) for ms in times.values()]
    for axis in (spread, course):
        axis.set_ylabel("step time (ms)")
        axis.grid(alpha=0.3)
        if max(medians) > LOG_FROM * min(medians):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            axis.set_ylim(bottom=0)
    course.legend(frameon=False)


def _title(arms: Mapping[str, np.ndarray], baseline: str, name: str) -> str:
    """Arms of equal length are taken to come from the same rounds; others have no interval."""
    before, after = arms[baseline], arms[name]
    if len(before) != len(after):
        ratio = np.median(before) / np.median(after)
        return f"median of {name}: {ratio:.2f}x the speed of {baseline}\n(not paired: no interval)"
    return compared_title(name, baseline, compare(before, after).as_dict(), len(before))


# --- what was learnt --------------------------------------------------------------------------


def _draw_losses(axis: Axes, arms: Sequence[Arm], report: Mapping[str, Any]) -> None:
    """The loss of every step, mean over the seeds that all arms have, and the range FP32's own
    seeds span."""
    trained = [arm for arm in arms if arm["runs"]]
    curves = {
        arm["name"]: {run["seed"]: np.array(run["loss"], float) for run in arm["runs"]}
        for arm in trained  # None, no finite number, becomes NaN: a gap
    }
    shared = [seed for seed in report["seeds"] if all(seed in own for own in curves.values())]
    for name, own in curves.items():
        colour, line = STYLES[name]
        if name == report["baseline"] and len(own) > 1:
            every = np.array(list(own.values()))
            places = np.arange(1, every.shape[1] + 1)
            low, high = every.min(axis=0), every.max(axis=0)
            label = f"{name}, range of {len(own)} seeds"
            axis.fill_between(places, low, high, color=colour, alpha=0.15, label=label)
        mean = np.mean([own[seed] for seed in shared], axis=0)
        of = f"mean of {len(shared)} seeds" if len(shared) > 1 else f"seed {shared[0]}"
        places = np.arange(1, len(mean) + 1)
        axis.plot(places, mean, color=colour, linestyle=line, label=f"{name}, {of}")
    steps, last = report["steps"], report["final_loss_is_the_mean_of_steps"]
    axis.axvspan(
        *(steps - last + 0.5, steps + 0.5),
        color="0.5",
        alpha=0.12,
        label=f"final loss: mean of the last {last} steps",
    )
    axis.set_title("Training loss")
    axis.set_xlabel(f"step; the first {report['warmup_steps']} to warm up, not timed")
    axis.set_ylabel("loss")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False)


def _draw_scores(axis: Axes, arms: Sequence[Arm], report: Mapping[str, Any]) -> None:
    """map_50 of every seed, their means, and the range of FP32's."""
    shown = [arm for arm in arms if arm["over_seeds"]["map_50"]]
    for place, arm in enumerate(shown):
        values = 100 * np.array(arm["over_seeds"]["map_50"]["values"])
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        colour = STYLES[arm["name"]][0]
        axis.scatter(place + np.array(offsets), values, s=60, color=colour, zorder=3)
        axis.plot([place - 0.28, place + 0.28], [values.mean()] * 2, color=colour, linewidth=2)
        if arm["name"] == report["baseline"]:
            label = f"range of {arm['name']}'s seeds"
            axis.axhspan(values.min(), values.max(), color=colour, alpha=0.12, label=label)
    axis.set_xticks(range(len(shown)), [arm["name"] for arm in shown])
    axis.set_xlim(-0.6, len(shown) - 0.4)
    axis.set_title(f"map_50 on {report['evaluated_images']} images after {report['steps']} steps")
    axis.set_ylabel("map_50 (points); dots: seeds, lines: means")
    axis.grid(axis="y", alpha=0.3)
    axis.margins(y=0.3)
    low, high = axis.get_ylim()
    if high - low < SMALLEST_RANGE:
        middle = (low + high) / 2
        axis.set_ylim(middle - SMALLEST_RANGE / 2, middle + SMALLEST_RANGE / 2)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False)
