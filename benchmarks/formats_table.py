"""Prints the export formats of a committed export.json as the table of README_PHASE4.md.

python benchmarks/formats_table.py benchmarks/results/formats/trained_resnet50.json
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/formats_table.py` finds common/

from common import artifacts, cli
from common.comparison import interval_text

DEFAULT = ROOT / "benchmarks" / "results" / "formats" / "trained_resnet50.json"


def formats_table(report: dict[str, Any]) -> str:
    """Markdown: size, speed over the first format, mAP and what became of each."""
    lines = ["| format | MiB | times as fast | mAP | |", "|---|---|---|---|---|"]
    for item in report["formats"]:
        speedup = item.get("speedup")
        speed = interval_text(speedup["ratio"], speedup["ci95"]) if speedup else "1"
        lines.append(
            f"| `{item['name']}` | {item['size_mib']:.1f} | {speed} | {item['map']:.3f} "
            f"| {item['status']} |"
        )
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("report", type=Path, nargs="?", default=DEFAULT, help="an export.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    sys.stdout.write(formats_table(artifacts.read_json(args.report)) + "\n")
    return cli.EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
