"""The section about detections: what is found, missed and confused on the validation images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import recorded_files
from common.reporting import charts
from common.reporting.blocks import (
    Bar,
    Bars,
    Block,
    Lines,
    Note,
    Section,
    Table,
    dig,
    finite,
    listed,
    number,
    pictures,
    text,
)

Report = Mapping[str, Any]

EVALUATE_COMMAND = "python phase1_training/evaluate_detector.py"
WORST_MISSES, PREDICTIONS = "worst_misses.png", "val_predictions.png"
MAX_BARS, MAX_CURVES, MAX_CONFUSED = 20, 7, 12
SHOWN_ERRORS = 4  # of each kind, as in the picture
KINDS = {"missed": "Missed objects", "false_alarm": "False alarms", "confusion": "Wrong class"}
COLUMNS = (
    *("Class", "Boxes", "AP", "AP at IoU 0.50", "Precision", "Recall", "Right", "Missed"),
    "False alarms",
)


def section(report: Report | None, metrics: Path) -> Section:
    """`report` is evaluation.json; the pictures lie in `metrics`."""
    title = "What is found, missed and confused"
    reading = (
        "AP, from 0 to 1, is the area under the precision-recall curve of a class: precision is "
        "the share of detections that are right, recall the share of objects that are found. A "
        "curve that falls early means confident mistakes, one that ends early means objects that "
        "are never found. The pictures show the worst first."
    )
    samples = pictures(
        [charts.picture(metrics / PREDICTIONS)],
        "Images from all over the validation set, each twice. Left, ground truth: found (blue), "
        "missed (red, dashed). Right, predictions: right (green), wrong (red, dashed).",
        is_wide=True,
    )
    rows = [row for row in listed(dig(report, "classes")) if row.get("name") is not None]
    if report is None or not rows:
        return Section(title, reading, samples, missing=EVALUATE_COMMAND)
    at = (
        f"On {number(dig(report, 'images'), 0)} images ({text(dig(report, 'split'))}). Precision, "
        "recall and all that follows the curves count detections with a score of at least "
        f"{number(dig(report, 'confidence'))} and an IoU of at least {number(dig(report, 'iou'))}."
    )
    blocks: list[Block] = [*_average_precisions(rows), Note(at)]
    blocks += [Table(COLUMNS, tuple(map(_class_row, rows))), *_curves(report)]
    blocks += [*_confusion(report), *_errors(report), *_worst(report, metrics)]
    return Section(title, reading, [*blocks, *samples])


def _average_precisions(rows: Sequence[Report]) -> list[Block]:
    """Bars, the worst class first, as many as can be read."""
    measured = [(ap, row) for row in rows if (ap := finite(row.get("ap"))) is not None]
    measured.sort(key=lambda pair: pair[0])
    bars = tuple(Bar(text(row["name"]), ap, number(ap, 3)) for ap, row in measured[:MAX_BARS])
    which = "each class" if len(measured) <= MAX_BARS else f"the {MAX_BARS} worst classes"
    title = f"AP over IoU 0.50 to 0.95 of {which}, the worst first"
    return [Bars(title, bars, reference=1.0)] if bars else []


def _class_row(row: Report) -> tuple[str, ...]:
    return (
        text(row.get("name")),
        number(row.get("boxes"), 0),
        *(number(row.get(key), 3) for key in ("ap", "ap_50", "precision", "recall")),
        *(number(row.get(key), 0) for key in ("right", "missed", "false_alarms")),
    )


def precision_curves(report: Report) -> dict[str, list[tuple[float, float]]]:
    """Class -> (recall, precision) at all recalls; of classes with a curve."""
    recalls = dig(report, "pr_curves", "recall")
    told = dig(report, "pr_curves", "precision")
    if not isinstance(recalls, list) or not isinstance(told, Mapping):
        return {}
    return {
        text(name): [(float(x), float(y)) for x, y in zip(recalls, values, strict=True)]
        for name, values in told.items()
        if isinstance(values, list) and len(values) == len(recalls) > 0
        if all(finite(value) is not None for value in [*recalls, *values])
    }


def mean_curve(
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> list[tuple[float, float]]:
    """The mean precision of all classes at each recall; empty without a class."""
    at_recalls = zip(*curves.values(), strict=True)
    return [(points[0][0], sum(y for _, y in points) / len(points)) for points in at_recalls]


def _curves(report: Report) -> list[Block]:
    """Precision over recall: the mean of all classes and the worst of them."""
    curves = precision_curves(report)
    if not curves:
        return []
    by_area = sorted(curves, key=lambda name: sum(y for _, y in curves[name]))
    shown = {"mean of all classes": mean_curve(curves)} if len(curves) > 1 else {}
    shown |= {name: curves[name] for name in by_area[:MAX_CURVES]}
    which = f", mean and {MAX_CURVES} worst classes" if len(curves) > MAX_CURVES else ""
    series = tuple((name, tuple(points)) for name, points in shown.items())
    title = f"Precision over recall at IoU 0.50{which}"
    return [Lines(title, "recall", series, y_max=1.0, is_scale=True)]


def _confusion(report: Report) -> list[Block]:
    """The matrix as a table; of many classes those with the most errors, the others together."""
    names, counts = dig(report, "confusion", "classes"), dig(report, "confusion", "counts")
    if not isinstance(names, list) or not _is_matrix(counts, len(names)) or len(names) < 2:
        return []
    shown, cells = _condensed([text(name) for name in names], counts)
    rows, shades = [], []
    for index, name in enumerate(shown):
        total = max(1, sum(cells[index]))
        is_background = index == len(shown) - 1
        rows.append((name, *("" if v == 0 else number(v, 0) for v in cells[index])))
        signs = [1 if column == index else -1 for column in range(len(shown))]
        shares = zip(signs, cells[index], strict=True)
        shades.append((0.0, *((0.0 if is_background else s * v / total) for s, v in shares)))
    note = (
        "Rows are what is there, columns what was detected. On the diagonal (blue) it is right; "
        "the last column are missed objects, the last row false alarms. The deeper the colour, "
        "the larger the share of the row."
    )
    columns = ("Ground truth \\ detected as", *shown)
    return [Note(note), Table(columns, tuple(rows), tuple(shades))]


def _is_matrix(counts: Any, size: int) -> bool:
    return (
        isinstance(counts, list)
        and len(counts) == size
        and all(isinstance(row, list) and len(row) == size for row in counts)
        and all(finite(value) is not None for row in counts for value in row)
    )


def _condensed(
    names: Sequence[str], counts: Sequence[Sequence[float]]
) -> tuple[list[str], list[list[float]]]:
    """At most MAX_CONFUSED classes, those with the most errors, the sum of the others, and the
    background, which is the last of `names`."""
    last = len(names) - 1
    if last <= MAX_CONFUSED:
        return list(names), [list(row) for row in counts]

    def errors(index: int) -> float:
        column = sum(row[index] for row in counts)
        return sum(counts[index]) + column - 2 * counts[index][index]

    chosen = sorted(sorted(range(last), key=errors, reverse=True)[: MAX_CONFUSED - 1])
    rest = [index for index in range(last) if index not in chosen]
    groups = [*([index] for index in chosen), rest, [last]]
    shown = [*(names[index] for index in chosen), f"{len(rest)} other classes", names[last]]
    return shown, [[sum(counts[i][j] for i in a for j in b) for b in groups] for a in groups]


def _errors(report: Report) -> list[Block]:
    """How many errors there are of each kind, and why."""
    rows = []
    for kind, words in KINDS.items():
        found = dig(report, "errors", kind)
        reasons = dig(found, "reasons")
        told = reasons.items() if isinstance(reasons, Mapping) else ()
        why = "; ".join(f"{reason}: {number(count, 0)}" for reason, count in told)
        rows.append((words, number(dig(found, "count"), 0), text(why)))
    return [Table(("Errors", "How many", "Reason"), tuple(rows))]


def _worst(report: Report, metrics: Path) -> list[Block]:
    """The picture of the worst errors, if it is of this evaluation, and a table of them."""
    path = metrics / WORST_MISSES
    blocks: list[Block] = []
    if path.is_file() and not recorded_files.tells_of(report, path):
        blocks.append(Note(f"{path.name} is not of the evaluation that evaluation.json tells of."))
    else:
        caption = (
            "The worst errors: the largest missed objects, the most confident false alarms and "
            "wrong classes. Red: the error; blue: ground truth; yellow, dashed: predictions."
        )
        blocks += pictures([charts.picture(path)], caption, is_wide=True)
    rows = tuple(
        (
            words,
            text(dig(error, "image")),
            text(dig(error, "truth")),
            text(dig(error, "predicted")),
            number(dig(error, "score")),
            text(dig(error, "reason")),
        )
        for kind, words in KINDS.items()
        for error in listed(dig(report, "errors", kind, "worst"))[:SHOWN_ERRORS]
    )
    columns = ("Worst errors", "Image", "Truth", "Predicted", "Score", "Reason")
    return [*blocks, Table(columns, rows)] if rows else blocks
