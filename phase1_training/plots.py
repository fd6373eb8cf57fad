"""The pictures of a training: curves, average precision per class, predictions beside the ground
truth, and what the model is trained on.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from common import detection_matching
from common.coco import CocoSplit, ImageRecord, read_image
from common.error_analysis import CONFIDENCE
from common.models import Detections
from phase1_training.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    draw_box,
    new_figure,
    panels,
    short,
    show,
)

if TYPE_CHECKING:
    import torch

CLASS_COLORS = (ORANGE, SKY, GREEN, YELLOW, PURPLE, VERMILION, BLUE)
MARKED_EPOCHS = 40  # more markers than this would run into each other
GRID_IMAGES = 8
MAX_LABELS = 30  # of one panel: more would hide the picture
CLASSES_SHOWN = 30
VERDICT_STYLES = {True: (GREEN, "-"), False: (VERMILION, "--"), None: (GREY, ":")}
LOSS_TITLES = {
    "loss_classifier": "Class of a region",
    "loss_box_reg": "Box of a region",
    "loss_objectness": "Object or background (RPN)",
    "loss_rpn_box_reg": "Box of a proposal (RPN)",
}


# --- curves -----------------------------------------------------------------------------------


def training_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training and validation loss, mAP with its best epoch, learning rate, and the four losses.

    Args:
        history: one row per epoch: `epoch`, `train_loss`, `losses` by torchvision's names,
            `learning_rate`, and `val` with `map`, `map_50` and `losses` (torchvision's names and
            `loss`, their sum).
    """
    with new_figure(path, figsize=(14, 7)) as figure:
        grid = figure.add_gridspec(2, 12)
        total, scores, rate = (figure.add_subplot(grid[0, 4 * i : 4 * i + 4]) for i in range(3))
        _loss_curves(total, history, [row["train_loss"] for row in history], "loss")
        total.set_title("Total loss")
        _score_curves(scores, history)
        epochs = [row["epoch"] for row in history]
        rate.plot(epochs, [row["learning_rate"] for row in history], ".-", color=PURPLE)
        rate.set_title("Learning rate at the start of the epoch")
        for column, name in enumerate(history[0]["losses"]):
            axis = figure.add_subplot(grid[1, 3 * column : 3 * column + 3])
            _loss_curves(axis, history, [row["losses"][name] for row in history], name)
            axis.set_title(LOSS_TITLES[name])
        for axis in figure.axes:
            axis.margins(y=0.12)
            axis.set(xlabel="epoch", ylim=(0, 1.04 if axis is scores else None))
            axis.grid(alpha=0.3)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
            axis.spines[["top", "right"]].set_visible(False)
            for line in axis.lines[: 2 if len(history) > MARKED_EPOCHS else 0]:
                line.set_marker("")
        total.legend()
        scores.legend()


def _loss_curves(
    axis: Axes, history: Sequence[Mapping[str, Any]], train: Sequence[float], name: str
) -> None:
    epochs = [row["epoch"] for row in history]
    axis.plot(epochs, train, ".-", color=BLUE, label="training")
    validation = [row["val"]["losses"][name] for row in history]
    axis.plot(epochs, validation, "x--", color=VERMILION, label="validation")


def _score_curves(axis: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    epochs = [row["epoch"] for row in history]
    for key, label, color in (("map_50", "IoU 0.50", SKY), ("map", "IoU 0.50 to 0.95", BLUE)):
        axis.plot(epochs, [row["val"][key] for row in history], ".-", color=color, label=label)
    best = max(history, key=lambda row: row["val"]["map"])
    label = f"best: {best['val']['map']:.3f} in epoch {best['epoch']}"
    star = axis.plot(best["epoch"], best["val"]["map"], "*", color=ORANGE, label=label)[0]
    star.set(markersize=15, markeredgecolor="black", clip_on=False)
    axis.set_title("mAP on the validation images")


# --- average precision per class --------------------------------------------------------------


def per_class_ap(split: CocoSplit, per_class: Mapping[str, float | None], path: Path) -> None:
    """Average precision (IoU 0.50:0.95) of each class as bars, the best at the top.

    Of more than CLASSES_SHOWN classes the best and the worst are shown. Beside the bar stands how
    many boxes the figure rests on; a class without any has none.
    """
    counts = Counter(
        label for record in split.records for label in record.labels[~record.is_crowd].tolist()
    )
    boxes = {name: counts[label] for label, name in enumerate(split.class_names, start=1)}
    measured = {name: ap for name, ap in per_class.items() if ap is not None}
    ranked = sorted(measured.items(), key=lambda item: -item[1])
    half, hidden = CLASSES_SHOWN // 2, len(ranked) - CLASSES_SHOWN
    shown = ranked if hidden <= 0 else ranked[:half] + ranked[-half:]
    places = [place + (hidden > 0 and place >= half) for place in range(len(shown))]
    with new_figure(path, figsize=(8, 1.6 + 0.27 * len(shown))) as figure:
        axis = figure.add_subplot()
        axis.barh(places, [ap for _, ap in shown], color=BLUE, height=0.75)
        for place, (name, ap) in zip(places, shown, strict=True):
            count = f"{boxes[name]} box" + "es" * (boxes[name] != 1)
            axis.text(ap + 0.01, place, f"{ap:.2f}  ({count})", va="center", fontsize=8)
        if hidden > 0:
            text = f"{hidden} classes between these"
            axis.text(0.01, half, text, va="center", fontsize=8, color=GREY, style="italic")
        axis.set_yticks(places, [short(name, 28) for name, _ in shown], parse_math=False)
        axis.set(
            xlim=(0, 1.18), ylim=(len(shown) + (hidden > 0) - 0.4, -0.6), xlabel=_absent(per_class)
        )
        axis.set_xticks(np.linspace(0, 1, 6))
        axis.set_title("Average precision per class (IoU 0.50 to 0.95)")
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)


def _absent(per_class: Mapping[str, float | None]) -> str:
    count = sum(ap is None for ap in per_class.values())
    text = f"Classes without a box in the validation images: {count} of {len(per_class)}"
    return text if count else ""


# --- pictures with boxes ----------------------------------------------------------------------


def predictions_grid(split: CocoSplit, detections: Sequence[Detections], path: Path) -> None:
    """Evenly chosen validation images, each twice: ground truth on the left, found or missed, and
    confident predictions on the right, right or wrong.

    See `detection_matching.match` for what is right. Crowd regions are dotted, and predictions
    inside are neither.
    """
    count = min(GRID_IMAGES, len(split.records))
    chosen = np.linspace(0, len(split.records) - 1, count).round().astype(int)
    sizes = [(split.records[i].height, split.records[i].width) for i in chosen for _ in range(2)]
    title = (
        "Left, ground truth: found (blue), missed (red, dashed). "
        f"Right, predictions scoring at least {CONFIDENCE}: right (green), wrong (red, dashed)."
    )
    with panels(path, sizes, title) as axes:
        for index, truth, predicted in zip(chosen, axes[::2], axes[1::2], strict=True):
            _draw_pair(truth, predicted, split, split.records[index], detections[index])


def _draw_pair(
    truth: Axes, predicted: Axes, split: CocoSplit, record: ImageRecord, found: Detections
) -> None:
    picture = read_image(record.path, (record.width, record.height))
    size = (record.height, record.width)
    found = detection_matching.finite(found)
    confident = found.scores >= CONFIDENCE
    found = Detections(*(values[confident] for values in found))
    matched = detection_matching.match(record, found)
    for axis in (truth, predicted):
        show(axis, picture, size)
    for i, box in enumerate(record.boxes_xyxy):
        color, style = (SKY, "-") if i in matched.partner else (VERMILION, "--")
        if record.is_crowd[i]:
            color, style = GREY, ":"
        name = short(split.class_names[record.labels[i] - 1]) if i < MAX_LABELS else ""
        draw_box(truth, box, color, style, name, size)
    for i, box in enumerate(found.boxes_xyxy):
        verdict = None if matched.is_ignored[i] else bool(matched.partner[i] >= 0)
        color, style = VERDICT_STYLES[verdict]
        name = f"{short(split.class_names[found.labels[i] - 1], 19)} {found.scores[i]:.2f}"
        draw_box(predicted, box, color, style, name if i < MAX_LABELS else "", size)
    truth.set_title(short(record.path.name, 40), fontsize=8, parse_math=False)
    predicted.set_title(f"{len(found.scores)} predicted", fontsize=8)


def training_batch(
    images: "torch.Tensor",
    sizes: Sequence[tuple[int, int]],
    targets: Sequence[Mapping[str, "torch.Tensor"]],
    class_names: Sequence[str],
    path: Path,
    *,
    titles: Sequence[str] = (),
) -> None:
    """What the model is trained on, augmentation included: the first GRID_IMAGES of a batch with
    their boxes and class names. Wrong boxes and swapped classes show here at once.

    Args:
        images: uint8 (B, 3, H, W), padded on the right and at the bottom.
        sizes: (height, width) of each image inside the padding, which is not shown.
        targets: `boxes` (N, 4) xyxy in pixels of the padded image and `labels` (N,) from 1.
        titles: a name for each image.
    """
    count = min(GRID_IMAGES, len(images))
    with panels(path, sizes[:count], "A training batch as the model sees it, augmented") as axes:
        for i, axis in enumerate(axes):
            height, width = sizes[i]
            show(axis, images[i, :, :height, :width].permute(1, 2, 0).cpu().numpy(), sizes[i])
            boxes, labels = (targets[i][key].cpu().numpy() for key in ("boxes", "labels"))
            for number, (box, label) in enumerate(zip(boxes, labels, strict=True)):
                name = short(class_names[label - 1]) if number < MAX_LABELS else ""
                color = CLASS_COLORS[(label - 1) % len(CLASS_COLORS)]
                draw_box(axis, box, color, "-", name, sizes[i])
            title = f"{short(titles[i], 32)}  " if titles else ""
            text = f"{title}{width}x{height}, {len(boxes)} box" + "es" * (len(boxes) != 1)
            axis.set_title(text, fontsize=8, parse_math=False)
