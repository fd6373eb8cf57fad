"""Prints the README's results table from committed results of the commands of `make demo`.

    python benchmarks/readme_table.py                                 # what the README shows
    python benchmarks/readme_table.py --results outputs/metrics       # your own run

To refresh the README: run `make demo` and the commands of benchmarks/training.py, copy the JSON
files named below from outputs/metrics into benchmarks/results/demo_cpu, and put what this prints in
the table's place.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/readme_table.py` finds common/

from common import artifacts, cli
from common.comparison import interval_text

RESULTS = ROOT / "benchmarks" / "results" / "demo_cpu"


def results_table(results: Path) -> str:
    """The Markdown table; every figure is read from a JSON in `results`."""
    training = artifacts.read_json(results / "training.json")
    amp = artifacts.read_json(results / "amp_comparison.json")
    tracking = artifacts.read_json(results / "tracking_eval.json")["combined"]
    formats = {row["name"]: row for row in artifacts.read_json(results / "export.json")["formats"]}
    best, images = training["best"], training["images"]
    lines = [
        ("Training", f"{images['train']} images, {len(training['epochs'])} epochs",
         f"{training['training_s']:.0f} s, {training['images_per_s']:.1f} images/s"),
        ("Detection", f"{images['val']} validation images",
         f"map_50 {best['map_50']:.3f}, map {best['map']:.3f}"),
        ("Training in half precision", "one step against FP32", _ratio(amp["speedup"])),
        *_training_rows(results),
        ("Tracking", "demo video",
         f"IDF1 {tracking['idf1']:.3f}, MOTA {tracking['mota']:.3f}, HOTA {tracking['hota']:.3f}"),
    ]  # fmt: skip
    for name, label in (("onnx_fp32", "ONNX FP32"), ("onnx_int8", "ONNX INT8")):
        entry = formats[name]
        lines.append(
            (f"{label} package", f"{entry['size_mib']:.1f} MiB",
             f"{entry['latency_ms']['p50']:.1f} ms an image, map {entry['map']:.3f}")
        )  # fmt: skip
    environment = training["environment"]
    packages = environment["packages"]
    gpu = "no GPU, " if environment["device"] == "cpu" else ""
    runtime = packages.get("onnxruntime-gpu") or packages.get("onnxruntime")
    head = [
        "The commands of `make demo`, and benchmarks/training.py, on "
        f"{environment['device_name']}, {environment['threads']} threads, {gpu}"
        f"torch {packages['torch']}, torchvision {packages['torchvision']}, "
        f"onnxruntime {runtime}; "
        "printed by `python benchmarks/readme_table.py`, intervals are 95%:",
        "",
        "| what | on | result |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in lines)])


def _training_rows(results: Path) -> list[tuple[str, str, str]]:
    """Of each training_benchmark*.json there is: a step in both precisions, ours and theirs."""
    rows = []
    for path in sorted(results.glob("training_benchmark*.json")):
        report = artifacts.read_json(path)
        speedups = {row["arm"]: _ratio(row["speedup"]) for row in report["speed"]}
        rows.append(
            ("Training step against torchvision's references in FP32",
             f"{report['architecture'].removeprefix('fasterrcnn_')}, "
             f"batch size {report['batch_size']}",
             f"FP32 {speedups['ours_fp32']}, BF16 {speedups['ours_bf16']}; "
             f"the references in BF16 {speedups['references_bf16']}")
        )  # fmt: skip
    return rows


def _ratio(speedup: dict[str, Any]) -> str:
    return interval_text(speedup["ratio"], speedup["ci95"], "x")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.quiet = args.debug = False
    return cli.run(lambda: cli.log.info(results_table(args.results)), args)


if __name__ == "__main__":
    raise SystemExit(main())
