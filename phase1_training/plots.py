"""The pictures of a training: curves, and predictions beside the ground truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from common import artifacts
from common.coco import CocoSplit, read_image
from common.models import Detections

GRID_IMAGES = 8
SHOWN_SCORE = 0.5
TRUTH_COLOR, PREDICTION_COLOR = "#56B4E9", "#E69F00"  # Okabe and Ito: safe for the colour-blind


def training_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses by component, validation mAP and learning rate over the epochs."""
    epochs = [row["epoch"] for row in history]
    figure, (losses, scores, rates) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    losses.plot(epochs, [row["train_loss"] for row in history], "k", linewidth=2, label="total")
    for name in history[0]["losses"]:
        values = [row["losses"][name] for row in history]
        losses.plot(epochs, values, label=name.removeprefix("loss_"))
    losses.set(title="Training loss", xlabel="epoch", ylim=(0, None))
    losses.legend()
    for key, label in (("map_50", "mAP at IoU 0.50"), ("map", "mAP 0.50:0.95")):
        scores.plot(epochs, [row["val"][key] for row in history], marker="o", label=label)
    scores.set(title="Validation", xlabel="epoch", ylim=(0, 1))
    scores.legend(loc="lower right")
    rates.plot(epochs, [row["learning_rate"] for row in history], marker="o", color="#009E73")
    rates.set(title="Learning rate at the start of the epoch", xlabel="epoch", ylim=(0, None))
    for axes in (losses, scores, rates):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    _save(figure, path)


def predictions_grid(split: CocoSplit, detections: Sequence[Detections], path: Path) -> None:
    """Evenly chosen validation images: ground truth dashed, predictions solid with their score."""
    count = min(GRID_IMAGES, len(split.records))
    chosen = np.linspace(0, len(split.records) - 1, count).round().astype(int)
    columns = min(4, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 2.7 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, chosen, strict=False):
        record = split.records[index]
        axis.imshow(read_image(record.path, (record.width, record.height)))
        for box in record.boxes_xyxy:
            _draw_box(axis, box, TRUTH_COLOR, "--")
        for box, score, label in zip(*detections[index], strict=True):
            if score >= SHOWN_SCORE:
                _draw_box(axis, box, PREDICTION_COLOR, "-")
                text = f"{split.class_names[label - 1]} {score:.2f}".replace("$", r"\$")
                axis.text(
                    box[0],
                    box[1],
                    text,
                    fontsize=7,
                    va="bottom",
                    clip_on=True,
                    bbox={"facecolor": PREDICTION_COLOR, "pad": 0.8, "linewidth": 0},
                )
    title = f"Dashed blue: ground truth. Solid orange: predictions scoring at least {SHOWN_SCORE}."
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _draw_box(axis: plt.Axes, box: np.ndarray, color: str, style: str) -> None:
    x1, y1, x2, y2 = box
    axis.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linestyle=style, lw=1.6)
    )


def _save(figure: plt.Figure, path: Path) -> None:
    with artifacts.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
