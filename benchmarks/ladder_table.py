"""Prints inference ladders side by side, from committed results of benchmark_inference.py.

    python benchmarks/ladder_table.py                                  # what README_PHASE2.md shows
    python benchmarks/ladder_table.py benchmarks/results/cpu_amx/trained_*.json  # what README shows
    python benchmarks/ladder_table.py outputs/metrics/inference_benchmark.json   # your own run

A table for every machine, a column for every report at its smallest batch size. Figures are times
as fast as stock torchvision in FP32 with the 95% interval. Files called random_* are of detectors
made by stand_in_detector.py: sizes and speeds are real, weights are not. A test compares the pages
with what this script prints.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/ladder_table.py` finds common/

from common import artifacts, cli
from common.cli import UserError
from common.comparison import interval_text
from common.reporting.blocks import number

RESULTS = ROOT / "benchmarks" / "results"
STAND_IN = "random_"  # how the names of reports on random weights begin


def default_reports() -> list[Path]:
    """Of every CPU measured, the richest in instructions first."""
    machines = sorted(RESULTS.glob("cpu_*"))
    return [path for machine in machines for path in sorted(machine.glob("*.json"))[::-1]]


def ladder_tables(paths: Sequence[Path]) -> str:
    """Markdown, a table for every machine; each figure is read from the reports."""
    by_machine: dict[str, list[Path]] = {}
    for path in paths:
        report = artifacts.read_json(path)
        if "baseline" not in report or not report.get("results"):
            remedy = "give a result of benchmark_inference.py"
            raise UserError(path, "no inference benchmark", remedy)
        by_machine.setdefault(_machine(report["environment"]), []).append(path)
    return "\n\n".join(f"{name}:\n\n{_table(files)}" for name, files in by_machine.items())


def _machine(environment: dict[str, Any]) -> str:
    return (
        f"{environment['device_name']}, {environment['threads']} threads, "
        f"{_features(environment)}, torch {environment['packages']['torch']}"
    )


def _table(paths: Sequence[Path]) -> str:
    reports = [artifacts.read_json(path) for path in paths]
    richest_first = sorted(reports, key=lambda report: -len(report["results"]))
    variants = list(dict.fromkeys(r["variant"] for one in richest_first for r in one["results"]))
    headings = [_heading(report, path) for report, path in zip(reports, paths, strict=True)]
    head = [f"| rung | {' | '.join(headings)} |", "|---" * (len(reports) + 1) + "|"]
    rows = [
        f"| `{variant}` | " + " | ".join(_cell(report, variant) for report in reports) + " |"
        for variant in variants
    ]
    return "\n".join([*head, *rows])


def _heading(report: dict[str, Any], path: Path) -> str:
    width, height = report["image_size"]
    name = report["architecture"].removeprefix("fasterrcnn_")
    weights = ", random weights" if path.name.startswith(STAND_IN) else ""
    size = min(row["batch_size"] for row in report["results"])
    return f"{name}{weights}, {width}x{height}, batch size {size}"


def _features(machine: dict[str, Any]) -> str:
    has = [name for name in ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16")
           if name in machine.get("cpu_features", ())]  # fmt: skip
    return "+".join(has) or "no vector instructions known"


def _cell(report: dict[str, Any], variant: str) -> str:
    size = min(row["batch_size"] for row in report["results"])
    row = next(
        (r for r in report["results"] if (r["variant"], r["batch_size"]) == (variant, size)), None
    )
    if row is None:
        return "–"
    if row["latency_ms"] is None:
        return row["status"].split(":")[0]
    score = number(row["map"], 3)
    if row["verdict"] == "baseline" or not row["speedup"]:  # the baseline did not fit beside it
        return f"{row['latency_ms']['p50']:.0f} ms, map {score}"
    text = interval_text(row["speedup"]["ratio"], row["speedup"]["ci95"])
    if row["status"] != "ok":
        return f"{text} invalid: map {score}"
    return text if row["verdict"] == "faster" else f"{text} {row['verdict']}"


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("reports", nargs="*", type=Path, help="default: the committed ones")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.quiet = args.debug = False
    return cli.run(lambda: cli.log.info(ladder_tables(args.reports or default_reports())), args)


if __name__ == "__main__":
    raise SystemExit(main())
