"""The sections about results: the trained model, the exported formats, the package."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.reporting.blocks import (
    NOTHING,
    Block,
    Card,
    Lines,
    Section,
    Table,
    dig,
    finite,
    interval,
    listed,
    number,
    percent,
    reasons,
    text,
)

Report = Mapping[str, Any]

TRAIN_COMMAND = "python phase1_training/train.py"
EXPORT_COMMAND = "python phase4_deployment/export_all.py"
MIB = 1 << 20


# --- training ---------------------------------------------------------------------------------


def training_card(report: Report | None) -> Card | None:
    best = dig(report, "best")
    if finite(dig(best, "map_50")) is None:
        return None
    images = number(dig(report, "images", "val"), 0)
    return Card(
        "mAP at IoU 0.50",
        number(dig(best, "map_50"), 3),
        f"on {images} validation images; {number(dig(best, 'map'), 3)} over IoU 0.50 to 0.95",
    )


def training_section(report: Report | None, *, has_classes: bool) -> Section:
    """`has_classes`: another section tells of the classes."""
    title = "What was trained"
    reading = (
        "The training loss should fall and the validation mAP should rise and level off; an mAP "
        "that falls while the loss goes on falling means the model learns its training images by "
        "heart. The best epoch is the one that all later sections use."
    )
    if report is None:
        return Section(title, reading, missing=TRAIN_COMMAND)
    epochs = listed(dig(report, "epochs"))
    blocks: list[Block] = [_training_facts(report, epochs)]
    blocks += _curves(epochs)
    per_class = dig(report, "best", "per_class")
    if isinstance(per_class, Mapping) and per_class and not has_classes:
        rows = tuple((text(name), number(value, 3)) for name, value in per_class.items())
        blocks.append(Table(("Class", "AP over IoU 0.50 to 0.95"), rows))
    return Section(title, reading, blocks)


def _training_facts(report: Report, epochs: Sequence[Report]) -> Table:
    recipe, classes = dig(report, "recipe"), dig(report, "class_names")
    names = [text(name) for name in classes] if isinstance(classes, list) else []
    facts = {
        "Architecture": dig(report, "architecture"),
        "Classes": ", ".join(names),
        "Images": f"{number(dig(report, 'images', 'train'), 0)} to train, "
        f"{number(dig(report, 'images', 'val'), 0)} to validate",
        "Epochs": f"{len(epochs)} of {text(dig(recipe, 'epochs'))}, "
        f"best: {text(dig(report, 'best', 'epoch'))}",
        "Optimizer": f"{text(dig(recipe, 'optimizer'))}, learning rate "
        f"{text(dig(recipe, 'learning_rate'))}, batch size {text(dig(recipe, 'batch_size'))}",
        "Best mAP": f"{number(dig(report, 'best', 'map'), 3)} "
        f"(IoU 0.50: {number(dig(report, 'best', 'map_50'), 3)}, "
        f"IoU 0.75: {number(dig(report, 'best', 'map_75'), 3)})",
        "Speed": f"{number(dig(report, 'images_per_s'), 1)} images/s, "
        f"{number(dig(report, 'training_s'), 0)} s in all",
        "Memory": number(dig(report, "peak_memory_mib"), 0, "MiB at most"),
    }
    rows = tuple((name, text(value)) for name, value in facts.items() if text(value) != NOTHING)
    return Table(("Training", ""), rows)


def _curves(epochs: Sequence[Report]) -> list[Lines]:
    def points(*keys: str) -> tuple[tuple[float, float], ...]:
        return tuple(
            (float(row["epoch"]), value)
            for row in epochs
            if finite(row.get("epoch")) is not None
            and (value := finite(dig(row, *keys))) is not None
        )

    scores = (("IoU 0.50", points("val", "map_50")), ("IoU 0.50 to 0.95", points("val", "map")))
    losses = (("training", points("train_loss")), ("validation", points("val", "loss")))
    curves = [
        Lines("Loss", "epoch", losses if losses[1][1] else losses[:1]),
        Lines("Validation mAP", "epoch", scores, y_max=1.0),
    ]
    return [chart for chart in curves if all(line for _, line in chart.series)]


# --- deployment -------------------------------------------------------------------------------


def formats_section(export: Report | None, quantization: Report | None) -> Section:
    title = "Exported formats"
    reading = (
        "Every format is the same model, compared with the PyTorch one on the same images. Take "
        "the smallest or fastest whose mAP has not moved and whose status is ok."
    )
    formats: dict[str, Report] = {}
    for report in (export, quantization):  # what both have measured is shown as the first has it
        for row in listed(dig(report, "formats")):
            formats.setdefault(text(row.get("name")), row)
    if not formats:
        return Section(title, reading, missing=EXPORT_COMMAND)
    rows = tuple(
        (
            name,
            number(dig(row, "size_mib"), 1),
            number(dig(row, "latency_ms", "p50"), 1),
            number(dig(row, "throughput_img_s"), 1),
            interval(dig(row, "speedup")),
            number(dig(row, "map"), 4),
            percent(dig(row, "parity", "matched"), 1),
            number(dig(row, "parity", "max_box_error_px"), 3),
            text(dig(row, "status")).split(":")[0],
            Path(text(dig(row, "file"))).name,
        )
        for name, row in formats.items()
    )
    columns = (
        *("Format", "Size MiB", "p50 ms", "Images/s", "Speed-up (95%)", "mAP"),
        *("Same boxes", "Largest shift px", "Status", "File"),
    )
    return Section(title, reading, [Table(columns, rows), *reasons(list(formats.values()))])


def package_files(info: Report | None) -> list[tuple[str, float | None, str]]:
    """(name, bytes, sha256) of the files that package_info.json lists."""
    files = dig(info, "files")
    return [
        (text(name), finite(dig(facts, "bytes")), text(dig(facts, "sha256")))
        for name, facts in (files.items() if isinstance(files, Mapping) else ())
    ]


def package_size(folder: Path, info: Report | None) -> float | None:
    """MiB of the listed files that are there."""
    sizes = [
        (folder / name).stat().st_size
        for name, _, _ in package_files(info)
        if (folder / name).is_file()
    ]
    return sum(sizes) / MIB if sizes else None


def package_card(folder: Path, info: Report | None) -> Card | None:
    size = package_size(folder, info)
    if size is None:
        return None
    return Card("Package", number(size, 1, "MiB"), f"{len(package_files(info))} files to ship")


def package_section(folder: Path, info: Report | None) -> Section:
    title = "The package"
    reading = (
        "What to copy to another machine, whose detect.py runs without this project. There, "
        "python detect.py --verify checks every file against these sums, and the boxes in a known "
        "picture."
    )
    files = package_files(info)
    if not files:
        return Section(title, reading, missing=EXPORT_COMMAND)
    rows = []
    for name, size, digest in files:
        path = folder / name
        found = path.stat().st_size if path.is_file() else size
        rows.append((name, number(None if found is None else found / MIB), digest))
    return Section(title, reading, [Table(("File", "MiB", "sha256"), tuple(rows))])
