"""The sections about results: the trained model, the tracks, the exported formats, the package."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.reporting import charts
from common.reporting.blocks import (
    NOTHING,
    Block,
    Card,
    Lines,
    Note,
    Pictures,
    Section,
    Table,
    dig,
    finite,
    interval,
    listed,
    number,
    percent,
    text,
)

Report = Mapping[str, Any]

TRAIN_COMMAND = "python phase1_training/train.py"
TRACK_COMMAND = "python phase3_tracking/video_detector.py"
EVALUATE_COMMAND = "python phase3_tracking/evaluate_tracking.py"
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


def training_section(report: Report | None, metrics: Path) -> Section:
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
    if isinstance(per_class, Mapping) and per_class:
        rows = tuple((text(name), number(value, 3)) for name, value in per_class.items())
        blocks.append(Table(("Class", "AP over IoU 0.50 to 0.95"), rows))
    if (predictions := metrics / "val_predictions.png").is_file():
        blocks += _pictures(
            [charts.picture(predictions)],
            "Validation images: dashed blue is the ground truth, solid orange what was found.",
        )
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
    losses = (("total", points("train_loss")),)
    curves = [
        Lines("Training loss", "epoch", losses),
        Lines("Validation mAP", "epoch", scores, y_max=1.0),
    ]
    return [chart for chart in curves if all(line for _, line in chart.series)]


def _pictures(sources: Sequence[str | None], caption: str) -> list[Block]:
    found = tuple(source for source in sources if source)
    return [Pictures(found, caption)] if found else []


# --- tracking ---------------------------------------------------------------------------------


def tracking_cards(evaluation: Report | None, videos: Mapping[str, Report]) -> list[Card]:
    cards = []
    combined = dig(evaluation, "combined")
    if finite(dig(combined, "idf1")) is not None:
        mota, hota = number(dig(combined, "mota"), 3), number(dig(combined, "hota"), 3)
        switches = number(dig(combined, "id_switches"), 0)
        note = f"MOTA {mota}, HOTA {hota}, {switches} identity switches"
        cards.append(Card("Tracking IDF1", number(dig(combined, "idf1"), 3), note))
    newest = next(iter(videos.values()), None)
    if newest is not None and finite(dig(newest, "fps_end_to_end")) is not None:
        frames = number(dig(newest, "frames_written"), 0)
        device = text(dig(newest, "environment", "device_name"))
        note = f"frames per second from file to file over {frames} frames, on {device}"
        cards.append(Card("Video, end to end", number(newest["fps_end_to_end"], 1), note))
    return cards


def tracking_section(
    evaluation: Report | None, videos: Mapping[str, Report], folder: Path
) -> Section:
    """`videos` holds the reports of video_detector by name, the newest first."""
    title = "Tracking"
    reading = (
        "Each object keeps the number and colour it was given when it first appeared; a number "
        "that changes on the same object is an identity switch. IDF1 is the share of boxes under "
        "the right identity, MOTA also counts misses and false alarms, HOTA balances both."
    )
    if not videos and evaluation is None:
        return Section(title, reading, missing=TRACK_COMMAND)
    blocks: list[Block] = []
    for name in list(videos)[:1]:
        strip = charts.video_strip(folder / f"{name}.mp4")
        blocks += _pictures(strip, f"Frames at equal distances through {name}.mp4.")
    if videos:
        blocks += _video_tables(videos)
    else:
        blocks.append(Note(f"No video has been made yet. Make one with: {TRACK_COMMAND}"))
    if evaluation is None:
        blocks.append(Note(f"Not scored yet. Score it with: {EVALUATE_COMMAND}"))
    else:
        blocks.append(_score_table(evaluation))
    return Section(title, reading, blocks)


def _video_tables(videos: Mapping[str, Report]) -> list[Block]:
    rows = tuple(
        (
            text(name),
            f"{number(dig(video, 'frames_written'), 0)} of {number(dig(video, 'frames_read'), 0)}"
            + (", source cut short" if dig(video, "truncated") else "")
            + ("" if dig(video, "complete") is not False else ", stopped early"),
            number(dig(video, "fps_end_to_end"), 1),
            number(dig(video, "tracks"), 0),
            _counts(dig(video, "class_counts")),
        )
        for name, video in videos.items()
    )
    columns = ("Video", "Frames written", "Frames/s", "Tracks", "Objects by class")
    stages = ("decode", "detect", "track", "draw", "encode")
    times = tuple(
        (text(name), *(number(dig(video, "stage_ms", stage), 1) for stage in stages))
        for name, video in videos.items()
    )
    return [Table(columns, rows), Table(("Milliseconds per frame", *stages), times)]


def _counts(counts: Any) -> str:
    pairs = counts.items() if isinstance(counts, Mapping) else ()
    return text(", ".join(f"{number(count, 0)} {name}" for name, count in pairs))


def _score_table(evaluation: Report) -> Table:
    groups = listed(dig(evaluation, "sequences")) + listed(dig(evaluation, "classes"))
    if len(groups) != 1:
        combined = dig(evaluation, "combined")
        scores = combined if isinstance(combined, Mapping) else {}
        groups.append({**scores, "name": "all together"})
    rows = tuple(
        (
            text(dig(scores, "name")),
            *(number(dig(scores, key), 3) for key in ("idf1", "mota", "hota", "deta", "assa")),
            *(number(dig(scores, key), 0) for key in ("id_switches", "fp", "fn")),
        )
        for scores in groups
    )
    columns = (
        *("Scored", "IDF1", "MOTA", "HOTA", "DetA", "AssA"),
        *("Id switches", "False boxes", "Missed boxes"),
    )
    return Table(columns, rows)


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
            Path(text(dig(row, "file"))).name,
            text(dig(row, "status")).split(":")[0],
        )
        for name, row in formats.items()
    )
    columns = (
        *("Format", "Size MiB", "p50 ms", "Images/s", "Speed-up (95%)", "mAP"),
        *("Same boxes", "Largest shift px", "File", "Status"),
    )
    blocks: list[Block] = [Table(columns, rows)]
    reasons = {name: text(row.get("status")) for name, row in formats.items()}
    blocks += [Note(f"{name} is {why}.") for name, why in reasons.items() if ":" in why]
    return Section(title, reading, blocks)


def package_files(info: Report | None) -> list[tuple[str, float | None, str]]:
    """(name, bytes, sha256) of the files that package_info.json lists, as a mapping or a list."""
    files = dig(info, "files") or {}
    if isinstance(files, Mapping):
        entries = [(name, value) for name, value in files.items()]
    else:
        entries = [(dig(value, "name") or dig(value, "file"), value) for value in files]
    return [
        (
            text(name),
            finite(dig(value, "bytes") or dig(value, "size_bytes")),
            value if isinstance(value, str) else text(dig(value, "sha256")),
        )
        for name, value in entries
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
        "What to copy to another machine, whose detect.py runs without this project. Its files "
        "are whole if sha256sum prints the same sums there."
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
