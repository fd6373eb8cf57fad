"""What each way of running the detector buys in speed, and what it costs in accuracy and memory.

    python phase2_optimization/benchmark_inference.py               # the demo model and data
    python phase2_optimization/benchmark_inference.py \\
        --model-path outputs/models/trained_model.pth \\
        --batch-sizes 1,2,4,8,16 --num-iterations 100 --output outputs/metrics/
    python phase2_optimization/benchmark_inference.py --variants inference_graph,winograd
    python phase2_optimization/benchmark_inference.py --batch-sizes auto --latency-budget-ms 100

The ways form a ladder: each rung adds one technique to the one below. Timed end to end: uint8 RGB
images (H, W, 3) in host memory in; boxes in original pixels, scores and labels in host memory out.
That holds the copy to the device, resize, normalisation, the networks, NMS and the copy back; it
leaves out reading and decoding files. All variants see the same real images in the same rounds, and
the baseline runs twice in every round: what differs between equal arms is the noise, and no
speed-up inside it is called one.

Writes outputs/metrics/inference_benchmark.json and inference_benchmark.png.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase2_optimization/benchmark_inference.py` works

from common import artifacts, cli, paths
from common.cli import UserError, log
from common.model_and_data import load_model_and_data
from phase2_optimization.batch_search import MAX_BATCH_SIZE

if TYPE_CHECKING:
    import torch

    from phase2_optimization.builders import Workshop
    from phase2_optimization.measuring import Benchmark

BATCH_SIZES = "1,2,4,8,16"
NUM_ITERATIONS = 100
TIME_BUDGET_S = 1.0
MAX_IMAGES = 100
CALIBRATION_IMAGES = 64  # of the training split, for INT8
FEW_IMAGES = 50
FEW_IMAGES_NOTE = ": so few that one box moves it by parts of a point, and may decide a verdict"
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
    compiles: bool,
    batch_sizes: Sequence[int] | None,
    latency_budget_ms: float | None,
    num_iterations: int,
    time_budget_s: float,
    max_images: int,
    image_size: tuple[int, int] | None,
    device_name: str,
    seed: int,
    output: Path,
) -> None:
    """Measures every variant at every batch size and writes the report and its picture.

    Args:
        batch_sizes: None looks for the best one.

    Raises:
        UserError: an input or the output folder is unfit, or nothing could be timed.
    """
    import torch

    from common.gpu_state import gpu_state
    from phase2_optimization.inputs import start, timed_images, writable_folder
    from phase2_optimization.measuring import Benchmark

    writable_folder(output)
    device = start(device_name, seed)
    names, skipped = choose_variants(variant_names, compiles, device)
    loaded, (split,) = load_model_and_data(model_path, data_path, torch.device("cpu"), ["val"])
    images = timed_images(split, max(batch_sizes or [1]), image_size)
    height, width = images[0].shape[:2]
    evaluated = min(max_images, len(split.records))
    log_task(width, height, evaluated)
    report_path, picture = output / "inference_benchmark.json", output / "inference_benchmark.png"
    finished = False
    with workshop(device, data_path, names, skipped) as shop:
        benchmark = Benchmark(
            loaded.model, shop, split, images, num_iterations, time_budget_s, max_images, seed
        )
        try:
            measure(benchmark, names, skipped, batch_sizes, latency_budget_ms, seed)
            finished = True
        finally:  # an interrupted run keeps what it has measured
            if benchmark.times:
                inputs = [loaded.path, split.annotation_file]
                report = {
                    **artifacts.provenance("inference_benchmark", str(device), inputs),
                    "complete": finished,
                    "architecture": loaded.architecture,
                    "image_size": [width, height],
                    "evaluated_images": evaluated,
                    **findings(benchmark, gpu_state(device), latency_budget_ms, seed),
                }
                keep(report, report_path, picture)
    cli.finished([report_path, picture], "python phase3_tracking/video_detector.py")


def log_task(width: int, height: int, evaluated: int) -> None:
    """Tells what is timed, and on how many images accuracy is measured."""
    log.info("Timed: %s; images of %dx%d", TIMED, width, height)
    log.info("mAP on %d images%s", evaluated, "" if evaluated >= FEW_IMAGES else FEW_IMAGES_NOTE)


def measure(
    benchmark: "Benchmark",
    names: Sequence[str],
    skipped: dict[str, str],
    batch_sizes: Sequence[int] | None,
    latency_budget_ms: float | None,
    seed: int,
) -> None:
    """Checks the variants and times them at every batch size, or at those a search comes across.

    Raises:
        UserError: nothing fits into memory, or no time can be believed.
    """
    from phase2_optimization.contest import finalists
    from phase2_optimization.ladder_report import log_batch_size

    sizes = batch_sizes or [1]
    benchmark.check(names, sizes, skipped)
    for batch_size in sizes:
        benchmark.time(batch_size)
        log_batch_size(benchmark.rows, batch_size, benchmark.noise)
    if not benchmark.times:
        what = f"nothing could be timed ({benchmark.rows[0]['status']})"
        raise UserError(f"--batch-sizes {min(sizes)}", what, "use smaller ones, or run it again")
    if batch_sizes is None:
        search_batch_size(benchmark, latency_budget_ms, seed)
    benchmark.time_finalists(finalists(benchmark, latency_budget_ms))


def findings(
    benchmark: "Benchmark",
    after: dict[str, Any] | None,
    latency_budget_ms: float | None,
    seed: int,
) -> dict[str, Any]:
    """What was measured, beside what may have disturbed it.

    Args:
        after: state of the GPU when the last arms were timed, see `common.gpu_state`.
    """
    from common.gpu_state import warnings_from
    from phase2_optimization.conclusion import conclude

    return {
        "timed": TIMED,
        "tf32": "off in the baseline and under stock autocast, on in all other variants on CUDA",
        "gpu_state": {"before": benchmark.gpu_before, "after": after},
        "warnings": [
            *warnings_from(benchmark.gpu_before, after),
            *waiting_warnings(benchmark.processor_shares),
        ],
        **conclude(benchmark, latency_budget_ms, seed),
    }


def waiting_warnings(shares: Mapping[str, float]) -> list[str]:
    """What to know of the rounds in which the processor was shared; nothing where it was not.

    Args:
        shares: a set of rounds -> the share of its time in which the main thread ran.
    """
    from common.processor_share import waiting_told

    told = {label: waiting_told(label, share) for label, share in shares.items()}
    disturbed = [label for label, sentence in told.items() if sentence]
    if not disturbed:
        return []
    worst = min(disturbed, key=shares.__getitem__)
    others = [label for label in disturbed if label != worst]
    less = f" Less so during: {', '.join(others)}." if others else ""
    told_apart = "so a neighbour that comes and goes may have misled the search."
    astray = f" Batch sizes are timed apart, {told_apart}" if len(shares) > 1 else ""
    return [f"{told[worst]}{less}{astray}"]


def choose_variants(
    asked: Sequence[str] | None, compiles: bool, device: "torch.device"
) -> tuple[list[str], dict[str, str]]:
    """The variants of the device, the baseline first, and which of them are left out and why.

    Raises:
        UserError: a variant that does not exist was asked for.
    """
    from phase2_optimization.variants import BASELINE, VARIANTS

    for name in asked or ():
        if name not in VARIANTS:
            raise UserError("--variants", *cli.unknown_choice(name, VARIANTS))
    if asked is not None:
        return list(dict.fromkeys([BASELINE, *asked])), {}
    names = [name for name, variant in VARIANTS.items() if device.type in variant.devices]
    reasons = {name: VARIANTS[name].reason_to_skip(device, compiles) for name in names}
    return names, {name: reason for name, reason in reasons.items() if reason}


@contextlib.contextmanager
def workshop(
    device: "torch.device",
    data_path: Path | None,
    names: Sequence[str],
    skipped: dict[str, str],
) -> Iterator["Workshop"]:
    """A folder for exported and compiled files, gone afterwards, and training images where a
    variant that will run calibrates on them."""
    import tempfile

    import torch

    from common.coco import read_image, training_split
    from common.environment import is_installed
    from phase2_optimization.builders import Workshop, compiler_cache
    from phase2_optimization.variants import CALIBRATED

    images = []
    if CALIBRATED in names and CALIBRATED not in skipped and is_installed("nncf"):
        split = training_split(data_path or paths.DEMO, "train")
        step = max(1, len(split.records) // CALIBRATION_IMAGES)
        records = split.records[::step][:CALIBRATION_IMAGES]
        images = [read_image(r.path, (r.width, r.height)) for r in records]
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        compiler_cache(Path(folder) / "inductor"),
    ):
        yield Workshop(device, Path(folder), images, torch.get_num_threads())


def search_batch_size(benchmark: "Benchmark", latency_budget_ms: float | None, seed: int) -> None:
    """Looks for the best batch size of the fastest variant and of the baseline beside it."""
    from phase2_optimization.conclusion import conclude
    from phase2_optimization.ladder_report import log_batch_size
    from phase2_optimization.variants import BASELINE

    fastest = conclude(benchmark, latency_budget_ms, seed)["fastest_variant"]
    name = fastest or BASELINE
    shown = {row["batch_size"] for row in benchmark.rows}
    tried = benchmark.search(name, latency_budget_ms)
    for batch_size in (size for size in tried if size not in shown):
        log_batch_size(benchmark.rows, batch_size, benchmark.noise)


def keep(report: dict[str, Any], report_path: Path, picture: Path) -> None:
    """Writes the report, tells the result and draws it; one of a stopped run says that it is."""
    from phase2_optimization import benchmark_plot, ladder_report

    if not report["complete"]:
        report["conclusion"] = f"So far, as it was stopped: {report['conclusion']}"
    artifacts.write_json(report_path, report)
    ladder_report.log_finals(report["timed_side_by_side"], report["side_by_side_noise"])
    for warning in report["warnings"]:
        log.warning("warning: %s", warning)
    log.info("%s", report["conclusion"])
    ladder_report.log_budget(report)
    benchmark_plot.draw(report, picture)


def batch_size_list(text: str) -> list[int] | None:
    """`1,2` -> [1, 2]; `auto` -> None."""
    if text.strip() == "auto":
        return None
    sizes = cli.positive_int_list(text)
    if sizes[-1] > MAX_BATCH_SIZE:
        raise argparse.ArgumentTypeError(f"{sizes[-1]} is above {MAX_BATCH_SIZE}")
    return sizes


def width_by_height(text: str) -> tuple[int, int]:
    """`640x480` -> (640, 480); `640` is a square: (640, 640)."""
    parts = text.lower().split("x")
    sides = [cli.positive_int(part) for part in parts] if all(parts) else []
    if len(sides) not in (1, 2) or max(sides) > MAX_SIDE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT, or one number for a square, up to {MAX_SIDE} pixels"
        )
    return sides[0], sides[-1]


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=Path, help="checkpoint (default: newest best model)")
    parser.add_argument("--data-path", type=Path, help="COCO data set (default: the demo data)")
    parser.add_argument(
        "--batch-sizes",
        type=batch_size_list,
        default=BATCH_SIZES,
        help="comma-separated; auto looks for the best one by doubling and bisection",
    )
    parser.add_argument(
        "--latency-budget-ms",
        type=cli.positive_float,
        help="also name the best throughput whose p90 stays below this",
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
        "--variants", type=cli.names, help="comma-separated (default: all that suit the machine)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="add torch.compile, which takes minutes"
    )
    parser.add_argument(
        "--image-size",
        type=width_by_height,
        metavar="WIDTHxHEIGHT",
        help="resize the timed images, without keeping their shape; one number is a square: 640 is "
        "640x640 (default: the most common size of the val split)",
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
            compiles=args.compile,
            batch_sizes=args.batch_sizes,
            latency_budget_ms=args.latency_budget_ms,
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
