"""The picture of a pruning.json: speed and mAP against the amount pruned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from common import artifacts
from phase4_deployment.pruned.pruned_models import REMOVED_CHANNELS, ZERO_CHANNELS, ZERO_WEIGHTS

# Okabe & Ito (2008): told apart with every kind of colour vision.
STYLES = {
    ZERO_WEIGHTS: ("weights zeroed", "#0072B2", "o", "-"),
    ZERO_CHANNELS: ("channels zeroed", "#E69F00", "s", "--"),
    REMOVED_CHANNELS: ("channels removed", "#009E73", "^", "-"),
}
BASELINE_COLOUR = "0.4"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draws the `models` of a pruning.json; rejected ones are hollow."""
    unpruned, *rows = report["models"]
    figure, (speed, accuracy) = plt.subplots(1, 2, figsize=(12, 5), sharex=True)
    try:
        _draw_speed(speed, rows, report["noise"])
        _draw_map(accuracy, rows, unpruned)
        for axis in (speed, accuracy):
            axis.set_xlabel("amount pruned, %")
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False, fontsize=9)
        machine = report["environment"]
        epochs = report["settings"]["finetune_epochs"]
        trained = f"{epochs} epochs after pruning" if epochs else "not trained after pruning"
        figure.suptitle(
            f"{report['architecture']}, {machine['device_name']}, threads: {machine['threads']}, "
            f"torch {machine['packages']['torch']}, {report['val_images']} validation images, "
            f"{report['rounds']} rounds, {trained}; hollow: over the mAP budget",
            fontsize=10,
        )
        figure.tight_layout()
        with artifacts.atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
    finally:
        plt.close(figure)


def _draw_speed(
    axis: Axes, rows: Sequence[Mapping[str, Any]], noise: Mapping[str, Any] | None
) -> None:
    axis.axhline(1, color=BASELINE_COLOUR, linewidth=1, label="unpruned")
    if noise:
        axis.axhspan(*noise["ci95"], color=BASELINE_COLOUR, alpha=0.15, label="unpruned, again")
    for kind, shown in _by_kind(rows).items():
        ratios = [row["speedup"]["ratio"] for row in shown]
        _draw_line(axis, kind, shown, ratios)
        for row in shown:
            if row["speedup"]["ci95"]:
                axis.vlines(100 * row["amount"], *row["speedup"]["ci95"], color=STYLES[kind][1])
    axis.set_title("Speed-up of one image, with 95% intervals")
    axis.set_ylabel("times as fast as unpruned")


def _draw_map(axis: Axes, rows: Sequence[Mapping[str, Any]], unpruned: Mapping[str, Any]) -> None:
    if unpruned["map"] is not None:
        axis.axhline(100 * unpruned["map"], color=BASELINE_COLOUR, linewidth=1, label="unpruned")
    for kind, shown in _by_kind(rows).items():
        _draw_line(axis, kind, shown, [100 * (row["map"] or 0) for row in shown])
        before = [row for row in shown if row["map_before_finetuning"] is not None]
        if before:
            axis.plot(
                [100 * row["amount"] for row in before],
                [100 * row["map_before_finetuning"] for row in before],
                color=STYLES[kind][1],
                linestyle=":",
                label=f"{STYLES[kind][0]}, before training",
            )
    axis.set_ylim(bottom=0)
    axis.set_title("mAP (IoU 0.50:0.95)")
    axis.set_ylabel("points")


def _draw_line(
    axis: Axes, kind: str, rows: Sequence[Mapping[str, Any]], values: Sequence[float]
) -> None:
    label, colour, marker, line = STYLES[kind]
    amounts = [100 * row["amount"] for row in rows]
    axis.plot(amounts, values, color=colour, marker=marker, linestyle=line, label=label)
    for amount, value, row in zip(amounts, values, rows, strict=True):
        face = colour if row["status"] == "ok" else "white"
        axis.plot(amount, value, marker, color=colour, markerfacecolor=face)


def _by_kind(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    kinds = {kind: [row for row in rows if row["method"] == kind] for kind in STYLES}
    return {kind: shown for kind, shown in kinds.items() if shown}
