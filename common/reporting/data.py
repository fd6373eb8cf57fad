"""The section about the data: how much there is, and what the check found in it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from common.reporting.blocks import Block, Note, Section, Table, dig, listed, number, text

Report = Mapping[str, Any]

CHECK_COMMAND = "python phase1_training/check_data.py"
SHOWN_PROBLEMS, SHOWN_CLASSES = 20, 40


def section(report: Report | None) -> Section:
    """`report` is data_report.json."""
    title = "The data"
    reading = (
        "A model is as good as the boxes it learns from. An error would stop or spoil a training, "
        "a warning is worth a look, a note is a fact. Classes with few boxes are the first to be "
        "missed."
    )
    counts = dig(report, "counts")
    if not isinstance(counts, Mapping) or not counts:
        return Section(title, reading, missing=CHECK_COMMAND)
    keys = ("images", "images_without_boxes", "boxes", "crowd_boxes")
    splits = tuple(
        (text(name), *(number(dig(split, key), 0) for key in keys))
        for name, split in counts.items()
    )
    columns = ("Split", "Images", "Without boxes", "Boxes", "Crowd regions")
    blocks: list[Block] = [Table(columns, splits), *_classes(counts)]
    return Section(title, reading, [*blocks, *_problems(report)])


def _classes(counts: Mapping[str, Any]) -> list[Block]:
    """Boxes of each class by split, the rarest classes where there are many."""
    by_split = {name: dig(split, "per_class") or {} for name, split in counts.items()}
    by_split = {name: told for name, told in by_split.items() if isinstance(told, Mapping)}
    names = dict.fromkeys(name for told in by_split.values() for name in told)
    ordered = list(names)
    heading = "Boxes of each class"
    if len(ordered) > SHOWN_CLASSES:
        first = next(iter(by_split.values()))
        ordered = sorted(names, key=lambda name: first.get(name) or 0)[:SHOWN_CLASSES]
        heading = f"Boxes of the {SHOWN_CLASSES} rarest classes of {len(names)}"
    rows = tuple(
        (text(name), *(number(told.get(name, 0), 0) for told in by_split.values()))
        for name in ordered
    )
    return [Table((heading, *map(text, by_split)), rows)] if rows else []


def _problems(report: Report | None) -> list[Block]:
    """How often each kind was found, with the first of its messages."""
    problems = listed(dig(report, "problems"))
    if not problems:
        return [Note("The check found nothing.")]
    keys = ("severity", "kind", "split")
    kinds = [tuple(text(dig(problem, key)) for key in keys) for problem in problems]
    first = dict(zip(reversed(kinds), reversed(problems), strict=True))
    rows = tuple(
        (*kind, number(times, 0), text(dig(first[kind], "message")))
        for kind, times in list(Counter(kinds).items())[:SHOWN_PROBLEMS]
    )
    return [Table(("Severity", "Found", "Split", "Times", "Reason"), rows)]
