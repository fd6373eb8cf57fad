"""Prints the export formats of an export.json as a table.

    python benchmarks/formats_table.py                                # what README_PHASE4.md shows
    python benchmarks/formats_table.py outputs/metrics/export.json    # your own run

A test compares the guide with what this script prints.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/formats_table.py` finds common/

from common import artifacts, cli
from common.cli import UserError
from common.comparison import interval_text
from common.reporting.blocks import number

DEFAULT = ROOT / "benchmarks" / "results" / "formats" / "trained_resnet50.json"


def formats_table(path: Path) -> str:
    """Markdown of an export.json: size, speed over the first format, mAP and what became of each.

    Raises:
        UserError: it is another file.
    """
    report = artifacts.read_json(path)
    if not report.get("formats"):
        raise UserError(path, "lists no formats", "give an export.json of export_all.py")
    lines = ["| format | MiB | times as fast | mAP | |", "|---|---|---|---|---|"]
    for item in report["formats"]:
        speedup = item.get("speedup")
        speed = interval_text(speedup["ratio"], speedup["ci95"]) if speedup else "1"
        lines.append(
            f"| `{item['name']}` | {number(item['size_mib'], 1)} | {speed} "
            f"| {number(item['map'], 3)} | {item['status']} |"
        )
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("report", type=Path, nargs="?", default=DEFAULT, help="an export.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.quiet = args.debug = False
    return cli.run(lambda: cli.log.info(formats_table(args.report)), args)


if __name__ == "__main__":
    raise SystemExit(main())
