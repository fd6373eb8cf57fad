"""The picture of an inference benchmark: the ladder as a waterfall, speed against accuracy, and
throughput by batch size."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from common import artifacts
from common.reporting.charts import pareto_front

# Okabe & Ito (2008): told apart with every kind of colour vision
GAIN, LOSS, TOTAL, INVALID = "#0072B2", "#D55E00", "#000000", "#999999"
LINES = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MAX_LINES = len(LINES)  # variants in the picture of throughput: the fastest ones
PALE, FULL = 0.3, 0.85  # opacity of a bar whose step is nothing, and of one that is told
TICK_SHARE = 0.07  # of an axis: the least room between two numbers on it

Row = Mapping[str, Any]


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draws the `results` of an inference_benchmark.json."""
    rows = [row for row in report["results"] if row["latency_ms"]]
    batch_size = min(row["batch_size"] for row in rows)
    first = [row for row in rows if row["batch_size"] == batch_size]
    height = max(5.5, 1.5 + 0.42 * len(first))
    figure, axes = plt.subplots(
        1,
        3,
        figsize=(19, height),
        gridspec_kw={"width_ratios": [1.5, 1.1, 0.9]},
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),  # inches
    )
    try:
        draw_waterfall(axes[0], first, report)
        draw_pareto(axes[1], first, report["evaluated_images"])
        _draw_throughput(axes[2], rows)
        machine = report["environment"]
        width, tall = report["image_size"]
        figure.suptitle(
            f"{report['architecture']}, {width}x{tall} images, {machine['device']} "
            f"({machine['device_name']}), threads: {machine['threads']}, "
            f"torch {machine['packages']['torch']}",
            fontsize=11,
        )
        with artifacts.atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
    finally:
        plt.close(figure)


def draw_waterfall(axis: Axes, rows: Sequence[Row], report: Mapping[str, Any]) -> None:
    """Times as fast as the baseline, rung by rung: a bar begins where the rung below ends."""
    ratio = {row["variant"]: row["speedup"]["ratio"] for row in rows if row["speedup"]}
    shown = [row for row in rows if row["variant"] in ratio][::-1]
    if not shown:
        axis.set_axis_off()
        return
    for place, row in enumerate(shown):
        valid = row["status"] == "ok"
        below = row["step"]["over"] if row.get("step") else None
        start, end = ratio.get(below, 0.0), ratio[row["variant"]]
        axis.barh(place, end - start, left=start, height=0.62, **_bar_style(row, start))
        interval = row["speedup"]["ci95"] or []
        if interval:
            axis.plot(interval, [place] * 2, color="0.35", linewidth=2, solid_capstyle="butt")
        note = "" if valid else " invalid"
        axis.text(max(start, end, *interval), place, f"  {end:.2f}x{note}", va="center", fontsize=9)
        if below is not None and below in ratio:
            places = [place, _place(shown, below)]
            axis.plot([start] * 2, places, color="0.6", linewidth=0.8, zorder=0)
    noise = report["noise"].get(str(rows[0]["batch_size"]))
    if noise:
        axis.axvspan(*noise["ci95"], color="0.85", zorder=0)
    _legend_below(axis, _keys(shown, ratio, bool(noise)), 2)
    axis.set_yticks(range(len(shown)), [_label(row) for row in shown], fontsize=9)
    ends = [max([ratio[row["variant"]], *(row["speedup"]["ci95"] or [])]) for row in shown]
    axis.set_xlim(0, 1.2 * max(1.0, *ends))
    axis.set_xlabel(f"times as fast as {report['baseline']}")
    axis.set_title(f"What each technique buys, batch size {rows[0]['batch_size']}")


def _is_told(row: Row) -> bool:
    """Whether the rung's own step is more than nothing; earlier reports do not say."""
    return not row.get("step") or row["step"].get("verdict", "faster") in ("faster", "slower")


def _bar_style(row: Row, start: float) -> dict[str, Any]:
    """Of a bar that begins at `start`, where the rung below ends."""
    is_total = not row.get("step")
    colour = TOTAL if is_total else GAIN if row["speedup"]["ratio"] >= start else LOSS
    if row["status"] == "ok":
        return {"color": colour, "alpha": FULL if _is_told(row) else PALE}
    return {"facecolor": "white", "edgecolor": INVALID, "hatch": "//", "alpha": FULL}


def _keys(shown: Sequence[Row], ratio: Mapping[str, float], has_noise: bool) -> list[Artist]:
    """The legend of a waterfall: what is in it."""
    keys: list[Artist] = [Patch(color=TOTAL, alpha=FULL, label="baseline, or beside the ladder")]
    rungs = [row for row in shown if row.get("step") and row["status"] == "ok"]
    gains = {ratio[row["variant"]] >= ratio.get(row["step"]["over"], 0.0) for row in rungs}
    if True in gains:
        keys.append(Patch(color=GAIN, alpha=FULL, label="faster than the rung it adds to"))
    if False in gains:
        keys.append(Patch(color=LOSS, alpha=FULL, label="slower than the rung it adds to"))
    if not all(_is_told(row) for row in rungs):
        label = "pale: the step is not told from nothing"
        keys.append(Patch(color=GAIN, alpha=PALE, label=label))
    if any(row["status"] != "ok" for row in shown):
        label = "invalid: not the baseline's results"
        keys.append(Patch(facecolor="white", edgecolor=INVALID, hatch="//", label=label))
    if any(row["speedup"]["ci95"] for row in shown):
        keys.append(Line2D([], [], color="0.35", linewidth=2, label="95% interval"))
    if has_noise:
        keys.append(Patch(color="0.85", label="noise: what two equal arms differ by"))
    return keys


def _legend_below(axis: Axes, handles: Sequence[Artist], columns: int) -> None:
    """Under the label of the x-axis, where it can hide nothing."""
    axis.legend(
        handles=list(handles),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=5.0,  # of the font's size
        ncols=columns,
        fontsize=8,
        frameon=False,
    )


def _place(shown: Sequence[Row], name: str) -> int:
    return next(place for place, row in enumerate(shown) if row["variant"] == name)


def _label(row: Row) -> str:
    return row["variant"].replace("_", " ")


def draw_pareto(axis: Axes, rows: Sequence[Row], images: int) -> None:
    """Speed against accuracy; the line joins those that no other beats in both."""
    points = [
        (row["throughput_img_s"], 100 * row["map"], row) for row in rows if row["map"] is not None
    ]
    if not points:
        axis.set_axis_off()
        return
    front = pareto_front([(x, y) for x, y, row in points if row["status"] == "ok"])
    if front:
        axis.step(*zip(*front, strict=True), where="pre", color="0.6", linewidth=1, zorder=0)
    labelled = set(front)
    for x, y, row in points:
        valid = row["status"] == "ok"
        colour = GAIN if valid else INVALID
        axis.scatter(x, y, s=50, facecolor=colour if valid else "none", edgecolor=colour, zorder=2)
        if (x, y) in labelled or not valid:
            axis.annotate(
                _label(row),
                (x, y),
                xytext=(-6, 7),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color="black" if valid else INVALID,
            )
    values = [y for _, y, _ in points]
    middle, half = (max(values) + min(values)) / 2, max(1.0, 0.9 * (max(values) - min(values)))
    axis.set_ylim(
        max(-2, middle - half), min(102, middle + half)
    )  # parts of a point should look like parts of one
    axis.set_xlim(0, 1.08 * max(x for x, _, _ in points))
    axis.set_xlabel("images per second")
    axis.set_ylabel(f"mAP on {images} images, points (IoU 0.50:0.95)")
    axis.set_title("Speed against accuracy")
    best = Line2D([], [], color="0.6", marker="o", markerfacecolor=GAIN, markeredgecolor=GAIN)
    best.set_label("on the line, named: no other is better in both")
    invalid = Line2D([], [], linestyle="", marker="o", markerfacecolor="none", color=INVALID)
    invalid.set_label("invalid")
    has_invalid = any(row["status"] != "ok" for _, _, row in points)
    _legend_below(axis, [best, invalid] if has_invalid else [best], 2)
    axis.grid(alpha=0.3)


def _draw_throughput(axis: Axes, rows: Sequence[Row]) -> None:
    rows = [row for row in rows if row["status"] == "ok"]
    if not rows:  # not even the baseline's results hold
        axis.set_axis_off()
        return
    names = list(dict.fromkeys(row["variant"] for row in rows))
    best = {
        name: max(_img_s_across(row) for row in rows if row["variant"] == name) for name in names
    }
    fastest = sorted(names[1:], key=lambda name: -best[name])[: MAX_LINES - 1]
    for index, name in enumerate([names[0], *fastest]):
        own = sorted(
            (row["batch_size"], _img_s_across(row)) for row in rows if row["variant"] == name
        )
        axis.plot(
            *zip(*own, strict=True),
            color=LINES[index],
            marker=MARKERS[index],
            label=name.replace("_", " "),
        )
    sizes = sorted({row["batch_size"] for row in rows})
    axis.set_xscale("log", base=2)
    named = spaced(sizes)
    axis.set_xticks(sizes, [str(size) if size in named else "" for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(0, 1.06 * max(best.values()))
    axis.set_xlabel("batch size")
    is_drift_free = any(row.get("drift_free_img_s") for row in rows)
    told = ", had the machine not drifted" if is_drift_free else ""
    axis.set_ylabel(f"images per second{told}")
    axis.set_title("Throughput of the fastest valid ones")
    _legend_below(axis, axis.get_lines(), 2)
    axis.grid(alpha=0.3)


def _img_s_across(row: Row) -> float:
    """Images per second as batch sizes compare, which were timed apart; earlier reports have only
    those that the machine happened to reach."""
    return row.get("drift_free_img_s") or row["throughput_img_s"]


def spaced(sizes: Sequence[int]) -> list[int]:
    """Those of ascending batch sizes whose numbers have room beside each other on a log axis."""
    span = math.log2(sizes[-1] / sizes[0])
    named = [sizes[0]]
    for size in sizes[1:]:
        if math.log2(size / named[-1]) >= TICK_SHARE * span:
            named.append(size)
    return named
