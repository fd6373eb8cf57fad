"""What the annotations tell without a look at the images: boxes, ids, classes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from common import models
from common.anchors import flat_sizes
from common.coco_format import ParsedFile, Problem
from phase1_training.anchor_fit import Anchors, anchor_report
from phase1_training.data_boxes import box_format, format_problems, sizes_wh

MIN_IMAGE_SIDE = 32  # pixels after the resize, one cell of the coarser levels
FEW_ANCHORS = 0.05  # share of boxes without an anchor of IoU 0.5 that is worth a warning
NAMED_CLASSES = 3


def repeated_boxes(parsed: ParsedFile) -> np.ndarray:
    """bool (N,): a box of the same class stands at the same place of the same image before."""
    table = parsed.table
    rows = np.column_stack([table.image_index, table.labels, table.boxes_xywh])
    keys = np.ascontiguousarray(rows).view(f"V{rows.shape[1] * 8}").ravel().tolist()
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    return np.array([first[key] != index for index, key in enumerate(keys)], dtype=bool)


def file_problems(parsed: ParsedFile) -> list[Problem]:
    """What is wrong with a file as a whole, and which boxes it repeats."""
    table = parsed.table
    limits_wh = sizes_wh(parsed.images)[table.image_index]
    problems = format_problems(box_format(table.boxes_xywh, limits_wh))
    for index in np.flatnonzero(repeated_boxes(parsed)).tolist():
        what = f"{_what(parsed, index)} repeats another of its image and class: counts twice in"
        problems.append(_of_box(parsed, index, "repeated box", f"{what} the loss and in mAP"))
    for index, entry in enumerate(table.entries):
        if entry.get("id") == 0:
            message = f"{_what(parsed, index)}: COCO's evaluators take the id 0 for no match and "
            message += "lower the AP of a perfect detector; numbered anew here"
            problems.append(_of_box(parsed, index, "annotation id 0", message))
    for key, handled in (
        ("id", "numbered"),
        ("iscrowd", "taken as 0; pycocotools stops at it"),
        ("area", "taken from the box; pycocotools stops at it"),
    ):
        lacking = sum(key not in entry for entry in table.entries)
        if lacking:
            message = f"{lacking} annotations have no {key}: {handled}"
            problems.append(Problem(f"no {key}", "note", message))
    return problems


def split_problems(parsed: ParsedFile) -> list[Problem]:
    """Crowds, images without boxes, classes without boxes, ids that are no labels."""
    split = parsed.split
    assert split is not None
    problems = []
    crowds = int(parsed.table.is_crowd[parsed.usable].sum())
    if crowds:
        message = f"{crowds} crowd regions: not trained on, never a false alarm in evaluation"
        problems.append(Problem("crowd", "note", message))
    empty = sum(not len(record.labels) for record in split.records)
    if 0 < empty < len(split.records):
        message = f"{empty} images without boxes are kept: they teach the background"
        problems.append(Problem("image without boxes", "note", message))
    counts = np.bincount(parsed.table.labels[parsed.usable], minlength=len(split.class_names) + 1)
    for name, number in zip(split.class_names, counts[1:].tolist(), strict=True):
        if not number and counts.any():
            message = f"no box of {name!r}: it cannot be learnt or scored from here"
            problems.append(Problem("unused class", "note", message))
    if split.category_ids != tuple(range(1, len(split.category_ids) + 1)):
        first = ", ".join(map(str, split.category_ids[:5]))
        message = f"category ids ({first}, …) become the labels 1 to {len(split.category_ids)}; "
        problems.append(Problem("category ids", "note", f"{message}the model keeps both"))
    return problems


def pair_problems(train: ParsedFile | None, val: ParsedFile | None) -> list[Problem]:
    """What is wrong with the val split beside train; `val` is None without a val file."""
    if train is None or train.split is None:
        return []
    if val is None:
        if len(train.split.records) == 1:
            return [Problem("structure", "error", "one image only: none can be held out")]
        return [Problem("structure", "warning", "no val file: training will hold images out")]
    if val.split is None:
        return []
    if (train.split.category_ids, train.split.class_names) != (
        val.split.category_ids,
        val.split.class_names,
    ):
        message = "its categories differ from those of train: labels would mean other classes"
        return [Problem("category", "error", message)]
    taught = set(train.table.labels[train.usable].tolist())
    return [
        Problem("untaught class", "warning", f"{name!r} has boxes in val and none in train: AP 0")
        for label, name in enumerate(val.split.class_names, 1)
        if label in val.table.labels[val.usable] and label not in taught
    ]


# --- after the resize -------------------------------------------------------------------------


def resized_problems(
    parsed: ParsedFile, anchors: Anchors, min_size: int, max_size: int
) -> tuple[list[Problem], dict[str, Any]]:
    """Images and boxes that the resize of the training leaves too small, boxes that no anchor
    fits, and the anchor report of `anchor_fit`."""
    split = parsed.split
    assert split is not None
    problems = []
    listed_wh = sizes_wh(parsed.images)
    resized = np.array(
        [
            models.resized_size(height, width, min_size, max_size)[::-1]
            for width, height in listed_wh.tolist()
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
    for index in np.flatnonzero(resized.min(axis=1) < MIN_IMAGE_SIDE).tolist():
        message = "becomes {}x{} px: nothing can be found in it".format(*resized[index])
        name = parsed.images[index]["file_name"]
        problems.append(Problem("image of extreme shape", "warning", message, name))

    rows = np.flatnonzero(parsed.usable & ~parsed.table.is_crowd)
    images = parsed.table.image_index[rows]
    scale = (resized / np.maximum(listed_wh, 1))[images]
    boxes = parsed.boxes_xyxy[rows] * np.hstack([scale, scale])
    sides = boxes[:, 2:] - boxes[:, :2]
    stride = anchors.strides[0]
    for index in np.flatnonzero((sides < stride).any(axis=1)).tolist():
        size = "{:.1f}x{:.1f}".format(*sides[index])
        message = f"{_what(parsed, rows[index])} is {size} px after the resize, below the stride "
        message += f"of {stride} px: hardly to be found; raise --min-size"
        problems.append(_of_box(parsed, rows[index], "tiny box", message))
    report, best = anchor_report(
        boxes, resized[images], parsed.table.labels[rows], split.class_names, anchors
    )
    for index in np.flatnonzero(best < 0.3).tolist():
        message = f"{_what(parsed, rows[index])}: its best anchor has an IoU of {best[index]:.2f}: "
        message += "learnt by that one alone (low-quality matching)"
        problems.append(_of_box(parsed, rows[index], "no anchor", message))
    return _recall_problems(report) + problems, report


def _recall_problems(report: Mapping[str, Any]) -> list[Problem]:
    own, other = report["own"], report["suggested"]
    if own["below_0.5"] < FEW_ANCHORS * max(1, own["boxes"]):
        return []
    message = f"{_percent(own, 0.5)} of the boxes have no anchor of IoU 0.5 ({_percent(own, 0.3)} "
    message += "none of 0.3): hard to learn"
    share = own["below_0.5"] / own["boxes"]
    worst = sorted(  # by the number of boxes that fit worse than those of the average class
        report["per_class"].items(),
        key=lambda item: share * item[1]["boxes"] - item[1]["below_0.5"],
    )
    named = [
        f"{name} {_percent(counts, 0.5)} of {counts['boxes']}"
        for name, counts in worst[:NAMED_CLASSES]
        if counts["below_0.5"]
    ]
    message += f". Worst: {', '.join(named)}"
    if other is None:
        message += ". Other anchor sizes gain nothing: raise --min-size"
    else:
        sizes = ",".join(map(str, flat_sizes(other["sizes"])))
        message += f". --anchor-sizes {sizes} would leave {_percent(other, 0.5)} (without one of "
        message += f"0.7: {_percent(other, 0.7)} instead of {_percent(own, 0.7)})"
    return [Problem("anchor recall", "warning", message)]


def _percent(counts: Mapping[str, Any], iou: float) -> str:
    return f"{counts[f'below_{iou}'] / counts['boxes']:.1%}"


def count(parsed: ParsedFile) -> dict[str, Any]:
    """`images`, `images_without_boxes`, `boxes`, of them `crowd_boxes`, and `per_class`, name ->
    boxes; boxes without an area inside their image do not count."""
    split = parsed.split
    assert split is not None
    labels = Counter(parsed.table.labels[parsed.usable].tolist())
    return {
        "images": len(split.records),
        "images_without_boxes": sum(not len(record.labels) for record in split.records),
        "boxes": sum(labels.values()),
        "crowd_boxes": int(parsed.table.is_crowd[parsed.usable].sum()),
        "per_class": {name: labels[index + 1] for index, name in enumerate(split.class_names)},
    }


def _what(parsed: ParsedFile, index: int) -> str:
    entry = parsed.table.entries[index]
    return f"annotation {entry.get('id')!r:.40}"


def _of_box(parsed: ParsedFile, index: int, kind: str, message: str) -> Problem:
    """A warning about row `index` of the table."""
    annotation_id = parsed.table.entries[index].get("id")
    image = parsed.images[parsed.table.image_index[index]]["file_name"]
    return Problem(
        kind, "warning", message, image, annotation_id if isinstance(annotation_id, int) else None
    )
