"""The picture of an inference benchmark: speed-ups with intervals, throughput, speed and mAP."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from common import artifacts

# Okabe & Ito (2008): told apart with every kind of colour vision; markers differ as well.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draws the `results` of an inference_benchmark.json; invalid rows are hatched or hollow."""
    rows = [row for row in report["results"] if row["latency_ms"]]
    names = list(dict.fromkeys(row["variant"] for row in rows))
    style = {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    }
    figure, axes = plt.subplots(1, 3, figsize=(18, 5.5), gridspec_kw={"width_ratios": [1.25, 1, 1]})
    try:
        _draw_speedups(axes[0], rows, report, style)
        _draw_throughput(axes[1], rows, style)
        _draw_speed_against_map(axes[2], rows, style)
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=min(4, len(labels)), frameon=False)
        machine = report["environment"]
        width, height = report["image_size"]
        figure.suptitle(
            f"{report['architecture']}, {width}x{height} images, {machine['device']} "
            f"({machine['device_name']}), threads: {machine['threads']}, "
            f"torch {machine['packages']['torch']}",
            fontsize=11,
        )
        figure.tight_layout(rect=(0, 0.04 + 0.045 * -(-len(labels) // 4), 1, 1))
        with artifacts.atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
    finally:
        plt.close(figure)


def _draw_speedups(
    axis: Axes,
    rows: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    style: Mapping[str, tuple[str, str]],
) -> None:
    """Bars at the smallest batch size that was compared, with the noise of equal arms behind."""
    compared = [row for row in rows if row["speedup"]]
    if not compared:
        axis.set_axis_off()
        return
    batch_size = min(row["batch_size"] for row in compared)
    bars = [row for row in compared if row["batch_size"] == batch_size][::-1]
    for place, row in enumerate(bars):
        ratio, (low, high) = row["speedup"]["ratio"], row["speedup"]["ci95"]
        valid = row["status"] == "ok"
        axis.barh(
            place,
            ratio,
            color=style[row["variant"]][0] if valid else "white",
            edgecolor=style[row["variant"]][0],
            hatch=None if valid else "//",
            alpha=0.85,
        )
        axis.plot([low, high], [place, place], color="0.35", linewidth=3, solid_capstyle="butt")
        text = f" {ratio:.2f}x" if valid else f" {ratio:.2f}x (invalid)"
        axis.text(max(high, ratio), place, text, va="center", fontsize=9)
    noise = report["noise"].get(str(batch_size))
    if noise:
        axis.axvspan(*noise["ci95"], color="0.85", zorder=0, label="noise (equal arms)")
        axis.legend(loc="lower right", fontsize=8, frameon=False)
    axis.axvline(1, color="0.4", linewidth=1, linestyle="--")
    axis.set_yticks(range(len(bars)), [row["variant"].replace("_", " ") for row in bars])
    axis.set_xlim(0, 1.25 * max(row["speedup"]["ci95"][1] for row in bars))
    axis.set_xlabel(f"times as fast as {report['baseline']} (95% interval)")
    axis.set_title(f"Speed-up at batch size {batch_size}")


def _draw_throughput(
    axis: Axes, rows: Sequence[Mapping[str, Any]], style: Mapping[str, tuple[str, str]]
) -> None:
    for name, (colour, marker) in style.items():
        own = [row for row in rows if row["variant"] == name]
        axis.plot(
            [row["batch_size"] for row in own],
            [row["throughput_img_s"] for row in own],
            color=colour,
            marker=marker,
            label=name.replace("_", " "),
        )
    sizes = sorted({row["batch_size"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("batch size")
    axis.set_ylabel("images per second")
    axis.set_title("Throughput")
    axis.grid(alpha=0.3)


def _draw_speed_against_map(
    axis: Axes, rows: Sequence[Mapping[str, Any]], style: Mapping[str, tuple[str, str]]
) -> None:
    """Each variant at its fastest batch size; up and right is better."""
    for name, (colour, marker) in style.items():
        own = [row for row in rows if row["variant"] == name and row["map"] is not None]
        if not own:
            continue
        best = max(own, key=lambda row: row["throughput_img_s"])
        face = colour if best["status"] == "ok" else "none"
        axis.scatter(
            best["throughput_img_s"],
            100 * best["map"],
            s=90,
            marker=marker,
            facecolor=face,
            edgecolor=colour,
        )
    maps = [100 * row["map"] for row in rows if row["map"] is not None]
    if maps:  # a difference of parts of a point should look like one
        middle = (max(maps) + min(maps)) / 2
        half = max(1.0, (max(maps) - min(maps)) * 0.75)
        axis.set_ylim(middle - half, middle + half)
    axis.set_xlim(left=0)
    axis.set_xlabel("images per second at its fastest batch size")
    axis.set_ylabel("mAP, points (IoU 0.50:0.95)")
    axis.set_title("Speed against accuracy (hollow: invalid)")
    axis.grid(alpha=0.3)
