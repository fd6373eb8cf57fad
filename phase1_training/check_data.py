"""Checks COCO-format data before a training finds the fault: annotations, images, leakage.

    python phase1_training/check_data.py                                # the demo data
    python phase1_training/check_data.py --data-path /path/to/coco

Reads every image once, changes nothing, and writes data_report.json into --output. The exit
status is 2 when a problem is found that would crash a training or spoil it silently.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase1_training/check_data.py` finds common/

from common import artifacts, cli, coco, models, paths
from common.cli import UserError, log
from common.coco_format import (
    CocoSplit,
    MissingSplitError,
    Problem,
    find_annotations,
    parse_split,
)

SHOWN_PER_KIND = 5
MIN_RESIZED_SIDE = 8  # pixels: the finest feature map has one cell per 4 to 8 pixels


def check(data_path: Path, min_size: int, max_size: int) -> dict[str, Any]:
    """Checks both splits below `data_path`.

    Args:
        min_size, max_size: the resize of the training, in pixels; boxes are judged after it.

    Returns:
        `counts` per split and `problems`, each with kind, severity ("error" or "warning"), split,
        image, annotation_id and message.

    Raises:
        UserError: there are no training annotations, or a file is not JSON at all.
    """
    problems: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    splits: dict[str, CocoSplit] = {}
    first_seen: dict[str, tuple[str, Path]] = {}  # sha256 of an image -> split and file
    for split_name in ("train", "val"):
        try:
            split, found = parse_split(data_path, split_name)
        except MissingSplitError:
            if split_name == "train":
                raise
            found = [Problem("structure", "warning", "no val file: training will hold images out")]
            split = None
        if split is not None:
            splits[split_name] = split
            found = found + _check_images(split, split_name, first_seen)
            found += _check_sizes(split, min_size, max_size)
            counts[split_name] = _count(split)
        found += _check_against_train(split_name, splits)
        problems += [{"split": split_name, **asdict(problem)} for problem in found]
    return {"counts": counts, "problems": problems}


def _check_against_train(split_name: str, splits: dict[str, CocoSplit]) -> list[Problem]:
    """What makes a training refuse its validation images."""
    train, val = splits.get("train"), splits.get("val")
    if split_name != "val" or train is None:
        return []
    if val is None and len(train.records) == 1:
        return [Problem("structure", "error", "one image only: none can be held out")]
    if val is not None and (train.category_ids, train.class_names) != (
        val.category_ids,
        val.class_names,
    ):
        return [Problem("category", "error", "its categories differ from those of train")]
    return []


def _check_images(
    split: CocoSplit, split_name: str, first_seen: dict[str, tuple[str, Path]]
) -> list[Problem]:
    """Decodes every image; equal files are named, above all between train and val."""
    problems = []
    progress = cli.progress(split.records, total=len(split.records), label=f"{split_name} images")
    for record in progress:
        name = record.path.name
        try:
            coco.read_image(record.path, (record.width, record.height))
        except UserError as error:
            problems.append(Problem("image", "error", str(error), name))
            continue
        here = (split_name, record.path)
        seen = first_seen.setdefault(artifacts.sha256(record.path), here)
        if seen != here:
            kind = "leakage" if seen[0] != split_name else "duplicate image"
            message = f"{name} is the same picture as {seen[1].name} in {seen[0]}"
            problems.append(Problem(kind, "warning", message, name))
    return problems


def _check_sizes(split: CocoSplit, min_size: int, max_size: int) -> list[Problem]:
    problems = []
    for record in split.records:
        height, _ = models.resized_size(record.height, record.width, min_size, max_size)
        sides = (record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]) * height / record.height
        tiny = int((sides.min(axis=1) < MIN_RESIZED_SIDE).sum()) if len(sides) else 0
        if tiny:
            what = f"{tiny} boxes are narrower than {MIN_RESIZED_SIDE} px after the resize"
            message = f"{what} to a short side of {min_size} px: hard to find; raise --min-size"
            problems.append(Problem("tiny box", "warning", message, record.path.name))
    return problems


def _count(split: CocoSplit) -> dict[str, Any]:
    labels = Counter(int(label) for record in split.records for label in record.labels)
    return {
        "images": len(split.records),
        "images_without_boxes": sum(not len(record.labels) for record in split.records),
        "boxes": sum(labels.values()),
        "crowd_boxes": sum(int(record.is_crowd.sum()) for record in split.records),
        "per_class": {name: labels[index + 1] for index, name in enumerate(split.class_names)},
    }


def _log_summary(report: dict[str, Any]) -> None:
    for name, counts in report["counts"].items():
        log.info(
            "%-5s %6d images (%d without boxes), %7d boxes (%d crowd), %d classes",
            *(name, counts["images"], counts["images_without_boxes"], counts["boxes"]),
            *(counts["crowd_boxes"], len(counts["per_class"])),
        )
        unused = [cls for cls, number in counts["per_class"].items() if not number]
        if unused:
            log.info("      no box of: %s", ", ".join(unused))
    kinds = Counter((p["severity"], p["kind"], p["split"]) for p in report["problems"])
    for (severity, kind, split), number in kinds.items():
        log.info("%s: %s (%s), %d times", severity, kind, split, number)
        same = (
            p
            for p in report["problems"]
            if (p["severity"], p["kind"], p["split"]) == (severity, kind, split)
        )
        for problem, _ in zip(same, range(SHOWN_PER_KIND), strict=False):
            image = f"{problem['image']}: " if problem["image"] else ""
            log.info("    %s%s", image, problem["message"])


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--data-path", type=Path, default=paths.DEMO, help="COCO-format folder")
    parser.add_argument(
        "--architecture",
        choices=models.ARCHITECTURES,
        help="whose resize boxes are judged by (default: the one that train.py takes)",
    )
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder of the report")
    return parser


def _run(args: argparse.Namespace) -> int:
    is_demo = args.data_path.resolve() == paths.DEMO
    architecture = args.architecture or (models.DEMO if is_demo else "fasterrcnn_resnet50_fpn")
    report = check(args.data_path, *models.SIZES[architecture])
    _log_summary(report)
    path = args.output / "data_report.json"
    inputs = [find_annotations(args.data_path, split) for split in report["counts"]]
    artifacts.write_json(path, {**artifacts.provenance("data_report", "cpu", inputs), **report})
    errors = [problem for problem in report["problems"] if problem["severity"] == "error"]
    if errors:
        where = f"{errors[0]['split']}: {errors[0]['message']}"
        log.info("Saved %s", paths.display(path))
        raise UserError(args.data_path, f"{len(errors)} errors ({where})", "mend them first")
    log.info("Nothing found that would stop a training.")
    words = ["python", "phase1_training/train.py", "--data-path", paths.display(args.data_path)]
    cli.finished([path], shlex.join(words))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: _run(args), args)


if __name__ == "__main__":
    raise SystemExit(main())
