"""What each way of running the detector buys in speed, and what it costs in accuracy and memory.

    python phase2_optimization/benchmark_inference.py               # the demo model and data
    python phase2_optimization/benchmark_inference.py \\
        --model-path outputs/models/trained_model.pth \\
        --batch-sizes 1,2,4,8,16 --num-iterations 100 --output outputs/metrics/
    python phase2_optimization/benchmark_inference.py --variants eager_fp32,channels_last

Timed end to end: uint8 RGB images (H, W, 3) in host memory in; boxes in original pixels, scores
and labels in host memory out. That holds the copy to the device, resize, normalisation, the
networks, NMS and the copy back; it leaves out reading and decoding files. All variants see the
same real images in the same rounds, and the baseline runs twice in every round: what differs
between equal arms is the noise, and no speed-up inside it is called one.

Writes outputs/metrics/inference_benchmark.json and inference_benchmark.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase2_optimization/benchmark_inference.py` works

from common import artifacts, cli, paths
from common.cli import UserError, log

if TYPE_CHECKING:
    import numpy as np

    from common.coco import CocoSplit

BATCH_SIZES = "1,2,4,8,16"
NUM_ITERATIONS = 100
TIME_BUDGET_S = 1.0
MAX_IMAGES = 100
MAX_SIDE = 8192  # pixels of --image-size
TIMED = (
    "uint8 RGB images in host memory -> boxes in original pixels, scores and labels in host "
    "memory; decoding of files is not timed"
)


def benchmark_inference(
    model_path: Path | None,
    data_path: Path | None,
    *,
    variant_names: Sequence[str] | None,
    compile_backbone: bool,
    batch_sizes: Sequence[int],
    num_iterations: int,
    time_budget_s: float,
    max_images: int,
    image_size: tuple[int, int] | None,
    device_name: str,
    seed: int,
    output: Path,
) -> None:
    """Measures every variant at every batch size and writes the report and its picture."""
    import torch

    from phase2_optimization import benchmark_plot
    from phase2_optimization.inputs import load_inputs, start
    from phase2_optimization.measuring import Benchmark

    device = start(device_name, seed)
    names = choose_variants(variant_names, compile_backbone, device.type)
    loaded, (split,) = load_inputs(model_path, data_path, ["val"], torch.device("cpu"))
    images = timed_images(split, max(batch_sizes), image_size)
    height, width = images[0].shape[:2]
    log.info("Timed: %s; images of %dx%d", TIMED, width, height)
    benchmark = Benchmark(
        loaded.model, device, split, images, num_iterations, time_budget_s, max_images, seed
    )
    report_path, picture = output / "inference_benchmark.json", output / "inference_benchmark.png"
    finished = False
    try:
        benchmark.check(names, batch_sizes)
        for batch_size in batch_sizes:
            benchmark.time(batch_size)
            log_batch_size(benchmark.rows, batch_size)
        finished = True
    finally:  # an interrupted run keeps what it has measured
        if benchmark.rows:
            report = {
                **artifacts.provenance(
                    "inference_benchmark", str(device), [loaded.path, split.annotation_file]
                ),
                "complete": finished,
                "architecture": loaded.architecture,
                "timed": TIMED,
                "image_size": [width, height],
                "tf32": False,
                **benchmark.report(),
            }
            artifacts.write_json(report_path, report)
    log.info("%s", report["conclusion"])
    benchmark_plot.draw(report, picture)
    cli.finished([report_path, picture], "python phase3_tracking/video_detector.py")


def choose_variants(
    asked: Sequence[str] | None, compile_backbone: bool, device_type: str
) -> list[str]:
    """The variants to run, the baseline first.

    Raises:
        UserError: a variant that does not exist was asked for.
    """
    from phase2_optimization.variants import BASELINE, VARIANTS

    if asked is None:
        names = [
            name
            for name, variant in VARIANTS.items()
            if variant.by_default and device_type in variant.devices
        ]
    else:
        names = list(dict.fromkeys(asked))
        for name in names:
            if name not in VARIANTS:
                raise UserError(f"--variants {name}", "unknown", f"use {', '.join(VARIANTS)}")
    if compile_backbone and "inference_graph_compiled" not in names:
        names.append("inference_graph_compiled")
    return [BASELINE, *(name for name in names if name != BASELINE)]


def timed_images(
    split: "CocoSplit", largest_batch: int, size: tuple[int, int] | None
) -> list["np.ndarray"]:
    """Images of one size to make batches of: those of the most common size of the split.

    Args:
        largest_batch: at most this many, and at least 16 if there are as many, are returned.
        size: (width, height) to resize all to instead; then the first images are taken.
    """
    from collections import Counter

    import numpy as np
    from PIL import Image

    from common.coco import read_image

    records = split.records
    if size is None:
        sizes = Counter((record.width, record.height) for record in records)
        common = max(sizes, key=lambda pair: (sizes[pair], pair))
        records = tuple(r for r in records if (r.width, r.height) == common)
    images = [read_image(r.path, (r.width, r.height)) for r in records[: max(largest_batch, 16)]]
    if size is not None:
        images = [np.array(Image.fromarray(image).resize(size)) for image in images]
    return images


def log_batch_size(rows: Sequence[dict[str, Any]], batch_size: int) -> None:
    log.info(
        "\n%-36s%9s%9s%9s%10s  %-20s%8s",
        f"batch size {batch_size}",
        *("p50 ms", "p99 ms", "img/s", "peak MiB", "speed-up [95%]", "map_50"),
    )
    for row in (row for row in rows if row["batch_size"] == batch_size):
        if row["latency_ms"] is None:
            log.info("%-36s%s", row["variant"], row["status"])
            continue
        speedup = row["speedup"]
        interval = (
            "{:.2f} [{:.2f}, {:.2f}]".format(speedup["ratio"], *speedup["ci95"]) if speedup else "–"
        )
        log.info(
            "%-36s%9.1f%9.1f%9.1f%10s  %-20s%8s  %s",
            row["variant"],
            row["latency_ms"]["p50"],
            row["latency_ms"]["p99"],
            row["throughput_img_s"],
            "–" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}",
            interval,
            "–" if row["map_50"] is None else f"{row['map_50']:.3f}",
            row["verdict"] if row["status"] == "ok" else row["status"],
        )


def name_list(text: str) -> list[str]:
    """`a,b` -> ["a", "b"]."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("the list is empty; write for instance eager_fp32")
    return names


def width_by_height(text: str) -> tuple[int, int]:
    """`640x480` -> (640, 480); `640` is a square."""
    sides = [cli.positive_int(side) for side in text.lower().split("x")]
    if len(sides) > 2 or max(sides) > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT up to {MAX_SIDE} pixels")
    return sides[0], sides[-1]


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=Path, help="checkpoint (default: newest best model)")
    parser.add_argument("--data-path", type=Path, help="COCO data set (default: the demo data)")
    parser.add_argument(
        "--batch-sizes", type=cli.positive_int_list, default=BATCH_SIZES, help="comma-separated"
    )
    parser.add_argument(
        "--num-iterations",
        type=cli.positive_int,
        default=NUM_ITERATIONS,
        help="timed iterations of each variant and batch size, at most",
    )
    parser.add_argument(
        "--time-budget-s",
        type=cli.positive_float,
        default=TIME_BUDGET_S,
        help="timed seconds after which a variant and batch size stop (not before 7 iterations)",
    )
    parser.add_argument(
        "--variants", type=name_list, help="comma-separated (default: all made for the device)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="add torch.compile (minutes of compiling on a CPU)"
    )
    parser.add_argument(
        "--image-size",
        type=width_by_height,
        metavar="WIDTHxHEIGHT",
        help="resize the timed images (default: the most common size of the val split)",
    )
    parser.add_argument(
        "--max-images", type=cli.positive_int, default=MAX_IMAGES, help="images to compute mAP on"
    )
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder for the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: benchmark_inference(
            args.model_path,
            args.data_path,
            variant_names=args.variants,
            compile_backbone=args.compile,
            batch_sizes=args.batch_sizes,
            num_iterations=args.num_iterations,
            time_budget_s=args.time_budget_s,
            max_images=args.max_images,
            image_size=args.image_size,
            device_name=args.device,
            seed=args.seed,
            output=args.output,
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
