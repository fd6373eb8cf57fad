"""FP32 against automatic mixed precision (AMP) in training: time, memory, loss and accuracy.

    python phase2_optimization/mixed_precision.py                   # the demo model and data
    python phase2_optimization/mixed_precision.py --steps 100 --batch-size 8 --device cuda
    python phase2_optimization/mixed_precision.py --model-path outputs/models/best_model.pth \\
        --data-path path/to/coco

Every arm starts from the same weights and sees the same batches with the same random numbers; the
arms take turns step by step in a random order. AMP computes the networks in bfloat16 (CPU) or in
float16 with loss scaling and bfloat16 (GPU) and keeps the box arithmetic in FP32. FP32 is strict:
TF32 is off. Timed: forward, backward and optimizer step of images already on the device.

Writes outputs/metrics/amp_comparison.json and optimization_comparison.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase2_optimization/mixed_precision.py` finds common/

from common import artifacts, cli, evaluation, paths, timing
from common.cli import log

if TYPE_CHECKING:
    import numpy as np

    from common.coco import CocoSplit
    from phase2_optimization.amp_arm import TrainingArm

STEPS = 20
BATCH_SIZE = 4
LEARNING_RATE = 1e-3
MAX_IMAGES = 60
WARMUP_STEPS = 2
FINAL_LOSS_STEPS = 5  # the final loss is the mean of the last ones: one batch alone is noisy
MAX_BATCHES = 32  # different batches kept on the device; a longer run goes through them again


def compare_training(
    model_path: Path | None,
    data_path: Path | None,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    max_images: int,
    device_name: str,
    seed: int,
    output: Path,
) -> None:
    """Trains one arm per precision from the same weights and writes the comparison."""
    import torch

    from phase2_optimization.amp_arm import TrainingArm, peak_memory, precisions, training_batches
    from phase2_optimization.inputs import load_inputs, start

    device = start(device_name, seed)
    loaded, (train, val) = load_inputs(model_path, data_path, ["train", "val"], torch.device("cpu"))
    batch_size = min(batch_size, len(train.records))
    batches = training_batches(train, batch_size, min(steps, MAX_BATCHES), device, seed)

    def make_arm(dtype: torch.dtype) -> TrainingArm:
        return TrainingArm(loaded.model, batches, dtype, learning_rate, device, seed)

    dtypes = precisions(device)
    log.info("Training %s: %d steps each at batch size %d", ", ".join(dtypes), steps, batch_size)
    peaks = {name: peak_memory(make_arm, dtype, device) for name, dtype in dtypes.items()}
    arms = {name: make_arm(dtype) for name, dtype in dtypes.items()}
    steppers = {name: arm.step for name, arm in arms.items()}
    times = timing.measure_interleaved(
        steppers, rounds=steps, warmup=WARMUP_STEPS, device=device, seed=seed
    )
    fp32, amp = list(arms)[:2]
    inputs = [loaded.path, train.annotation_file, val.annotation_file]
    report = {
        **artifacts.provenance("amp_comparison", str(device), inputs),
        "architecture": loaded.architecture,
        "steps": steps + WARMUP_STEPS,
        "timed_steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "tf32": False,
        "memory_kind": peaks[fp32].kind,
        "evaluated_images": min(max_images, len(val.records)),
        "arms": [
            {
                "name": name,
                "step_ms": timing.summarise(times[name]),
                "speedup": timing.ratio_with_ci(times[fp32], times[name], seed),
                "peak_memory_mib": peaks[name].mib,
                **_outcome(arm, val, max_images),
            }
            for name, arm in arms.items()
        ],
        "speedup": timing.ratio_with_ci(times[fp32], times[amp], seed),
    }
    _save(report, times[fp32], times[amp], output)


def _outcome(arm: "TrainingArm", val: "CocoSplit", max_images: int) -> dict[str, Any]:
    """What an arm has learnt: its losses, and mAP of its weights in FP32."""
    scores = evaluation.evaluate(arm.predictor(), val, max_images=max_images)
    return {
        "final_loss": arm.final_loss(FINAL_LOSS_STEPS),
        "map": scores["map"],
        "map_50": scores["map_50"],
        "loss": arm.losses(),
        "skipped_steps": arm.skipped_steps(),
    }


def _save(
    report: dict[str, Any], fp32_times: "np.ndarray", amp_times: "np.ndarray", output: Path
) -> None:
    report["reading"] = read_result(report)
    _log_arms(report)
    report_path, picture = output / "amp_comparison.json", output / "optimization_comparison.png"
    artifacts.write_json(report_path, report)
    plot_optimization_results(fp32_times, amp_times, picture)
    cli.finished([report_path, picture], "python phase2_optimization/benchmark_inference.py")


def read_result(report: dict[str, Any]) -> str:
    """The result in a sentence that claims no more than the interval allows."""
    fp32, amp = report["arms"][:2]
    ratio, (low, high) = report["speedup"]["ratio"], report["speedup"]["ci95"]
    if report["timed_steps"] < timing.MIN_ROUNDS:
        speed = f"{report['timed_steps']} steps are too few to compare the times"
    elif low > 1:
        speed = f"{amp['name']} trains {ratio:.2f}x as fast as FP32 [{low:.2f}, {high:.2f}]"
    elif high < 1:
        speed = (
            f"{amp['name']} is slower than FP32 on this machine: {ratio:.2f}x its speed "
            f"[{low:.2f}, {high:.2f}]"
        )
    else:
        speed = (
            f"no difference in speed can be told between {amp['name']} and FP32: "
            f"{ratio:.2f}x [{low:.2f}, {high:.2f}] includes 1"
        )
    parts = [speed]
    if fp32["peak_memory_mib"] and amp["peak_memory_mib"]:
        change = amp["peak_memory_mib"] / fp32["peak_memory_mib"] - 1
        parts.append(f"its peak memory is {change:+.0%} ({report['memory_kind']})")
    if fp32["map_50"] is not None and amp["map_50"] is not None:
        points = 100 * (amp["map_50"] - fp32["map_50"])
        parts.append(
            f"after {report['steps']} equal steps its map_50 on {report['evaluated_images']} "
            f"images is {points:+.1f} points"
        )
    if amp["final_loss"] is None:
        parts.append("its loss did not stay finite")
    return "; ".join(parts) + "."


def _log_arms(report: dict[str, Any]) -> None:
    log.info(
        "\n%-10s%10s%10s%10s%11s%12s%9s  %s",
        *("arm", "p50 ms", "p90 ms", "p99 ms", "peak MiB", "final loss", "map_50"),
        "speed-up [95%]",
    )
    for arm in report["arms"]:
        low, high = arm["speedup"]["ci95"]
        log.info(
            "%-10s%10.1f%10.1f%10.1f%11s%12s%9s  %.2f [%.2f, %.2f]",
            arm["name"],
            *(arm["step_ms"][key] for key in ("p50", "p90", "p99")),
            "–" if arm["peak_memory_mib"] is None else f"{arm['peak_memory_mib']:.0f}",
            "infinite" if arm["final_loss"] is None else f"{arm['final_loss']:.4f}",
            "–" if arm["map_50"] is None else f"{arm['map_50']:.3f}",
            arm["speedup"]["ratio"],
            low,
            high,
        )
    log.info("\nReading: %s", report["reading"])


def plot_optimization_results(
    fp32_times: "np.ndarray | Sequence[float]",
    amp_times: "np.ndarray | Sequence[float]",
    path: Path,
) -> None:
    """Draws step times of both arms: their distribution, medians with interval, and course.

    Args:
        fp32_times, amp_times: milliseconds per step, shapes (n,) and (m,).
        path: the PNG to write.
    """
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")  # no display is needed
    from matplotlib import pyplot as plt

    arms = {"FP32": np.asarray(fp32_times, float), "AMP": np.asarray(amp_times, float)}
    colours = {"FP32": "#0072B2", "AMP": "#E69F00"}  # Okabe & Ito (2008), colour-blind-safe
    speedup = timing.ratio_with_ci(arms["FP32"], arms["AMP"])
    figure, (boxes, bars, course) = plt.subplots(1, 3, figsize=(15, 5))
    try:
        drawn = boxes.boxplot(
            list(arms.values()), patch_artist=True, widths=0.5, medianprops={"color": "0.1"}
        )
        boxes.set_xticks([1, 2], list(arms))
        boxes.set_title("Training time distribution")
        for place, (patch, (name, times)) in enumerate(
            zip(drawn["boxes"], arms.items(), strict=True)
        ):
            patch.set(facecolor=colours[name], alpha=0.7)
            median = float(np.median(times))
            low, high = _median_interval(times)
            bars.bar(place, median, 0.6, color=colours[name], alpha=0.85)
            error = [[max(0.0, median - low)], [max(0.0, high - median)]]
            bars.errorbar(place, median, error, color="0.2", capsize=8)
            bars.text(place, high, f"{median:.1f} ms", ha="center", va="bottom")
            course.plot(times, label=name, color=colours[name], linestyle=("-", "--")[place])
        low, high = speedup["ci95"]
        bars.set_xticks([0, 1], list(arms))
        bars.margins(y=0.15)
        bars.set_title(f"Speed-up: {speedup['ratio']:.2f}x [{low:.2f}, {high:.2f}]")
        bars.set_ylabel("median step (ms), 95% interval")
        course.set_title("Time progression")
        course.set_xlabel("step")
        course.set_ylim(bottom=0)
        course.xaxis.get_major_locator().set_params(integer=True)
        course.legend(frameon=False)
        for axis in (boxes, course):
            axis.set_ylabel("step time (ms)")
            axis.grid(alpha=0.3)
        figure.tight_layout()
        with artifacts.atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
    finally:
        plt.close(figure)


def _median_interval(times: "np.ndarray") -> tuple[float, float]:
    """95% percentile-bootstrap interval of the median."""
    import numpy as np

    picks = np.random.default_rng(0).integers(len(times), size=(1000, len(times)))
    low, high = np.percentile(np.median(times[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model-path", type=Path, help="start from it (default: newest best model)"
    )
    parser.add_argument("--data-path", type=Path, help="COCO data set (default: the demo data)")
    parser.add_argument("--steps", type=cli.positive_int, default=STEPS, help="timed steps per arm")
    parser.add_argument("--batch-size", type=cli.positive_int, default=BATCH_SIZE, help="images")
    parser.add_argument(
        "--learning-rate", type=cli.positive_float, default=LEARNING_RATE, help="of SGD"
    )
    parser.add_argument(
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
