"""Checks COCO-format data before a training finds the fault: boxes, ids, images, leakage, anchors.

    python phase1_training/check_data.py                                # the demo data
    python phase1_training/check_data.py --data-path /path/to/coco
    python phase1_training/check_data.py --data-path /path/to/coco --fix /path/to/fixed.json

Changes nothing of the data. Writes data_report.json, which lists every finding, and
image_cache.json, which saves the next check the files that did not change, into --output. The
exit status is 2 when a problem is found that would crash a training or spoil it silently. --fix
writes a repaired copy of the annotations of --split and lists what it changed in data_fix.json.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase1_training/check_data.py` finds common/

from common import artifacts, cli, models, paths
from common.cli import UserError, log
from common.coco_files import find_annotations
from phase1_training import data_doctor, data_fix
from phase1_training.options import default_architecture

SHOWN_PER_KIND = 3
SHOWN_CLASSES = 10
WORKERS = 2
CACHE = "image_cache.json"


def _log_report(report: Mapping[str, Any]) -> None:
    for name, counts in report["counts"].items():
        log.info(
            "%-5s %6d images (%d without boxes), %7d boxes (%d crowd), %d classes",
            *(name, counts["images"], counts["images_without_boxes"], counts["boxes"]),
            *(counts["crowd_boxes"], len(counts["per_class"])),
        )
        frequent = Counter(counts["per_class"]).most_common(SHOWN_CLASSES)
        more = ", …" if len(counts["per_class"]) > SHOWN_CLASSES else ""
        log.info("      %s%s", ", ".join(f"{cls} {boxes}" for cls, boxes in frequent), more)
    _log_anchors(report)
    found = data_doctor.groups(report)
    if found:
        log.info("\n%-8s %-24s %-5s %6s", "severity", "kind", "split", "times")
    for (severity, kind, split), problems in found:
        log.info("%-8s %-24s %-5s %6d", severity, kind, split, len(problems))
    if found:
        log.info("")
    for (severity, kind, split), problems in found:
        log.info("%s: %s (%s), %d times", severity, kind, split, len(problems))
        for problem in problems[:SHOWN_PER_KIND]:
            log.info("    %s", data_doctor.line(problem))


def _log_anchors(report: Mapping[str, Any]) -> None:
    if report["anchors"] is None or not report["anchors"]["own"]["boxes"]:
        return
    own = report["anchors"]["own"]
    log.info(
        "Anchors of %s at %d to %d px: %.1f%% of the boxes have one of IoU 0.5, %.1f%% one of 0.7",
        *(report["architecture"], report["min_size"], report["max_size"]),
        *(100 - 100 * own[f"below_{iou}"] / own["boxes"] for iou in (0.5, 0.7)),
    )


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--data-path", type=Path, default=paths.DEMO, help="COCO-format folder")
    parser.add_argument(
        "--architecture",
        choices=models.ARCHITECTURES,
        help="whose resize and anchors boxes are judged by (default: the one train.py takes)",
    )
    parser.add_argument("--min-size", type=cli.positive_int, help="short side after the resize, px")
    parser.add_argument("--max-size", type=cli.positive_int, help="longest side after it, px")
    parser.add_argument(
        "--anchor-sizes",
        type=cli.positive_int_list,
        metavar="PX,PX,...",
        help="in place of the architecture's own",
    )
    parser.add_argument(
        "--workers", type=cli.non_negative_int, default=WORKERS, help="threads that read images"
    )
    parser.add_argument("--fix", type=Path, metavar="NEW.json", help="write a repaired copy")
    parser.add_argument("--split", choices=("train", "val"), default="train", help="what to fix")
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder of the report")
    return parser


def _check(args: argparse.Namespace) -> None:
    architecture = args.architecture or default_architecture(args.data_path)
    min_size, max_size = models.input_size(architecture, args.min_size, args.max_size)
    report = data_doctor.inspect(
        args.data_path,
        architecture=architecture,
        min_size=min_size,
        max_size=max_size,
        workers=args.workers,
        cache=args.output / CACHE,
        anchor_sizes=args.anchor_sizes and tuple(args.anchor_sizes),
    )
    _log_report(report)
    path = args.output / "data_report.json"
    inputs = [find_annotations(args.data_path, split) for split in report["counts"]]
    artifacts.write_json(path, {**artifacts.provenance("data_report", "cpu", inputs), **report})
    errors = [problem for problem in report["problems"] if problem["severity"] == "error"]
    data = ["--data-path", paths.display(args.data_path)]
    if errors:
        log.info("Saved %s", paths.display(path))
        what = f"{len(errors)} errors ({errors[0]['split']}: {data_doctor.line(errors[0])})"
        repair = ["python", "phase1_training/check_data.py", *data, "--fix", "fixed.json"]
        if errors[0]["split"] == "val":
            repair += ["--split", "val"]
        raise UserError(args.data_path, what, f"mend them, or: {shlex.join(repair)}")
    log.info("Nothing found that would stop a training.")
    judged_by = []
    for name in ("architecture", "min_size", "max_size"):
        if getattr(args, name) is not None:
            judged_by += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    if args.anchor_sizes:
        judged_by += ["--anchor-sizes", ",".join(map(str, args.anchor_sizes))]
    cli.finished([path], shlex.join(["python", "phase1_training/train.py", *data, *judged_by]))


def _fix(args: argparse.Namespace) -> None:
    """Writes the copy, and what differs in it from the original."""
    source = find_annotations(args.data_path, args.split)
    changes = data_fix.fix(
        args.data_path, args.split, args.fix, workers=args.workers, cache=args.output / CACHE
    )
    for change, number in Counter(row["change"] for row in changes).items():
        log.info("%s, %d times", change, number)
        same = [row for row in changes if row["change"] == change]
        for row in same[:SHOWN_PER_KIND]:
            number_of = (
                "" if row["annotation_id"] is None else f"annotation {row['annotation_id']}: "
            )
            log.info("    %s", data_doctor.line({**row, "message": number_of + row["message"]}))
    path = args.output / "data_fix.json"
    record = artifacts.provenance("data_fix", "cpu", [source])
    artifacts.write_json(path, {**record, "changes": changes})
    if changes:
        old, new = (shlex.quote(paths.display(path)) for path in (source, args.fix))
        log.info("To use it: mv %s %s.original && mv %s %s", old, old, new, old)
    else:
        log.info("There was nothing to repair here: the copy says the same.")
    cli.finished([args.fix, path], None)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: _fix(args) if args.fix else _check(args), args)


if __name__ == "__main__":
    raise SystemExit(main())
