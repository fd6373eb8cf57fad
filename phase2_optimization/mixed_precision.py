"""FP32 against automatic mixed precision (AMP) in training: time, memory, loss and accuracy.

    python phase2_optimization/mixed_precision.py                   # the demo model and data
    python phase2_optimization/mixed_precision.py --steps 100 --batch-size 8 --seeds 3
    python phase2_optimization/mixed_precision.py --model-path outputs/models/best_model.pth \\
        --data-path path/to/coco

Every arm starts from the same weights and sees the same batches and the same sampled proposals.
Timed is the step of phase 1's training: batch to the device, forward, backward, optimizer. AMP
computes the networks in 16 bits and keeps the box arithmetic in FP32; amp_stock is the textbook's
way, torchvision's forward with autocast around the whole of it. FP32 is strict: TF32 is off, and
is an arm of its own. With the first seed the arms take turns and are timed, FP32 twice: what
differs between equal arms is the noise, and nothing inside it is called faster. The other seeds
tell how far losses and mAP differ anyway; the final loss is the mean of the last five steps. At the
end inference is timed, one image at a time, half precision against FP32: the graph of the video
pipeline, and torchvision's own forward pass under autocast.

Writes outputs/metrics/amp_comparison.json and optimization_comparison.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase2_optimization/mixed_precision.py` finds common/

from common import artifacts, cli, paths
from common.cli import log
from common.model_and_data import load_model_and_data

if TYPE_CHECKING:
    import numpy as np

STEPS = {"cuda": 50}  # by device; the others are slow
STEPS_ELSEWHERE = 7  # the fewest that carry an interval
SEEDS = 3
BATCH_SIZE = 4
LEARNING_RATE = 1e-3
MAX_IMAGES = 24
PICTURE = "optimization_comparison.png"


def compare_training(
    model_path: Path | None,
    data_path: Path | None,
    *,
    steps: int | None,
    batch_size: int,
    seeds: int | None,
    learning_rate: float,
    max_images: int,
    device_name: str,
    seed: int,
    output: Path,
) -> None:
    """Trains every precision from the same weights and writes the comparison.

    A run that is stopped keeps what it has measured, once there are times.

    Args:
        steps: timed steps per arm; None: as many as suit the device.
        seeds: how many seeds every arm trains with; None: three, but where bfloat16 is emulated
            AMP has one.
    """
    import torch

    from phase2_optimization.amp_comparison import AmpComparison, Settings
    from phase2_optimization.amp_report import results
    from phase2_optimization.inputs import at_most_all, start, writable_folder

    writable_folder(output)
    device = start(device_name, seed)
    loaded, (train, val) = load_model_and_data(model_path, data_path, torch.device("cpu"))
    settings = Settings(
        steps=steps or STEPS.get(device.type, STEPS_ELSEWHERE),
        batch_size=at_most_all(batch_size, train),
        learning_rate=learning_rate,
        max_images=max_images,
        seeds=tuple(range(seed, seed + (seeds or SEEDS))),
        spare_emulated=seeds is None,
    )
    comparison = AmpComparison(loaded.model, train, val, device, settings)
    finished = False
    try:
        comparison.check()
        comparison.train()
        comparison.time_inference()
        finished = True
    finally:
        if finished or comparison.records["fp32"].step_ms:
            inputs = [loaded.path, train.annotation_file, val.annotation_file]
            report = {
                **artifacts.provenance("amp_comparison", str(device), inputs),
                "complete": finished,
                "architecture": loaded.architecture,
                **results(comparison),
            }
            artifacts.write_json(output / "amp_comparison.json", report)
    _tell(report, output)


def _tell(report: dict[str, Any], output: Path) -> None:
    from phase2_optimization import amp_plot
    from phase2_optimization.amp_reading import log_tables

    log_tables(report)
    for warning in report["warnings"]:
        log.warning("warning: %s", warning)
    log.info("\nReading: %s\n%s", report["reading"], report["limits"])
    amp_plot.draw(report, output / PICTURE)
    saved = [output / "amp_comparison.json", output / PICTURE]
    cli.finished(saved, "python phase2_optimization/benchmark_inference.py")


def plot_optimization_results(
    fp32_times: "np.ndarray | Sequence[float]",
    amp_times: "np.ndarray | Sequence[float]",
    path: Path = paths.METRICS / PICTURE,
) -> None:
    """Draws step times of two arms: their distribution, medians with the speed-up, and course.

    Args:
        fp32_times, amp_times: milliseconds per step, shapes (n,) and (m,).
        path: the PNG to write.
    """
    from phase2_optimization import amp_plot

    amp_plot.draw_times({"FP32": fp32_times, "AMP": amp_times}, path)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    inputs = parser.add_argument_group("model and data")
    inputs.add_argument(
        "--model-path", type=Path, help="start from it (default: newest best model)"
    )
    inputs.add_argument("--data-path", type=Path, help="COCO data set (default: the demo data)")
    comparison = parser.add_argument_group("comparison")
    comparison.add_argument(
        "--steps",
        type=cli.positive_int,
        help=f"timed steps of each arm, after a few to warm up (default: {STEPS['cuda']} on a CUDA "
        f"GPU, else {STEPS_ELSEWHERE}, the fewest that can carry an interval)",
    )
    comparison.add_argument(
        "--batch-size", type=cli.positive_int, default=BATCH_SIZE, help="images of a step"
    )
    comparison.add_argument(
        "--seeds",
        type=cli.positive_int,
        help=f"train every arm with so many seeds, from --seed on (default: {SEEDS}; where the CPU "
        "emulates bfloat16, AMP has the first one only)",
    )
    comparison.add_argument(
        "--learning-rate",
        "--lr",
        type=cli.positive_float,
        default=LEARNING_RATE,
        help="of SGD with momentum",
    )
    comparison.add_argument(
        "--max-images", type=cli.positive_int, default=MAX_IMAGES, help="images to compute mAP on"
    )
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder for the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: compare_training(
            args.model_path,
            args.data_path,
            steps=args.steps,
            batch_size=args.batch_size,
            seeds=args.seeds,
            learning_rate=args.learning_rate,
            max_images=args.max_images,
            device_name=args.device,
            seed=args.seed,
            output=args.output,
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
