"""The picture of an export: size, latency and mAP of each format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed
from matplotlib import pyplot as plt

from common import artifacts

# Okabe & Ito (2008): told apart with every kind of colour vision.
COLOURS = {"pytorch": "#0072B2", "onnxruntime": "#E69F00", "openvino": "#009E73"}


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draws the `formats` of an export.json that ran; rejected ones are hatched."""
    rows = [row for row in report["formats"] if row["latency_ms"]][::-1]
    panels = (
        ("Size of the file, MiB", [row["size_mib"] for row in rows], "{:.1f}"),
        (
            "Latency of one image, ms (p50, line to p99)",
            [row["latency_ms"]["p50"] for row in rows],
            "{:.0f}, {:.0f}",
        ),
        ("mAP, points (IoU 0.50:0.95)", [100 * (row["map"] or 0) for row in rows], "{:.1f}"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(15, 1.6 + 0.55 * len(rows)), sharey=True)
    try:
        for axis, (title, values, _) in zip(axes, panels, strict=True):
            for place, (row, value) in enumerate(zip(rows, values, strict=True)):
                colour, valid = COLOURS[row["runtime"]], row["status"] == "ok"
                axis.barh(
                    place,
                    value,
                    color=colour if valid else "white",
                    edgecolor=colour,
                    hatch=None if valid else "//",
                )
            axis.set_title(title, fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
        slow = [row["latency_ms"]["p99"] for row in rows]
        axes[1].hlines(range(len(rows)), panels[1][1], slow, color="0.25", linewidth=2)
        for axis, (_, values, form), ends in zip(
            axes, panels, (panels[0][1], slow, panels[2][1]), strict=True
        ):
            axis.set_xlim(0, 1.18 * max(*values, *ends, 1e-9))
            for place, (value, end) in enumerate(zip(values, ends, strict=True)):
                text = form.format(value, end)
                axis.text(max(value, end), place, f" {text}", va="center", fontsize=9)
        axes[0].set_yticks(range(len(rows)), [row["name"].replace("_", " ") for row in rows])
        handles = [
            plt.Rectangle((0, 0), 1, 1, color=colour, label=runtime)
            for runtime, colour in COLOURS.items()
        ]
        figure.legend(
            handles=handles, loc="lower right", ncols=len(COLOURS), frameon=False, fontsize=9
        )
        figure.suptitle(_title(report), fontsize=11)
        figure.tight_layout(rect=(0, 0.05, 1, 1))
        with artifacts.atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
    finally:
        plt.close(figure)


def _title(report: Mapping[str, Any]) -> str:
    machine, proposals = report["environment"], report["max_proposals"]
    parts = [
        report["architecture"],
        machine["device_name"],
        f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}",
        f"torch {machine['packages']['torch']}",
        f"{report['val_images']} validation images",
    ]
    if proposals["exported"] < proposals["model"]:
        parts.append(f"{proposals['exported']} of {proposals['model']} proposals when exported")
    return ", ".join(parts)
