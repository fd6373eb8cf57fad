"""Where the time of a training step and of an inference goes, stage by stage.

    python phase2_optimization/gpu_profiler.py                      # the demo model and data
    python phase2_optimization/gpu_profiler.py --batch-size 4 --steps 20 --device cuda
    python phase2_optimization/gpu_profiler.py --model-path outputs/models/best_model.pth \\
        --data-path path/to/coco

Writes outputs/metrics/profile.json (stages, forced waits for the device, advice) and
profile_trace.json.gz, which https://ui.perfetto.dev opens.

`GPUProfiler` is the small tool for code of your own:

    profiler = GPUProfiler()
    with profiler.profile("forward"):
        model(images)
    print(profiler.table())
"""

import argparse
import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase2_optimization/gpu_profiler.py` finds common/

from common import artifacts, cli, environment, paths, timing
from common.cli import log

if TYPE_CHECKING:
    import torch

STEPS = 8
BATCH_SIZE = 4
MAX_TRACE_MIB = 20.0
DATA_WAIT_SHARE = 0.1  # of a step; below it the loader is not worth a word


@dataclass
class _Measurement:
    tag: str
    memory: timing.PeakMemory
    peak_mib: float | None = None
    started: float = field(default_factory=perf_counter)

    def note_peak(self, mib: float | None) -> None:
        if mib is not None:
            self.peak_mib = max(mib, self.peak_mib or 0.0)


class GPUProfiler:
    """Times tagged pieces of code and records their memory, on a GPU or on the CPU.

    GPU calls return before the GPU has done the work, so both ends of a measurement wait for the
    device. Measurements may be nested: an inner one ends first, and the peak of the outer one
    holds the inner one's.

    Attributes:
        metrics: tag -> one record per measurement: `time_s`, and in MiB
            `memory_allocated_mib` (in use at the end), `memory_reserved_mib` (held by the
            allocator at the end) and `peak_memory_mib`. On a GPU these are PyTorch's allocator;
            on the CPU all three are the resident set of the process.
    """

    def __init__(self, device: "str | torch.device" = "auto"):
        self.device = environment.select_device(str(device))
        self.metrics: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._open: list[_Measurement] = []

    def start(self, tag: str = "operation") -> None:
        """Begins a measurement; `stop` ends the one begun last."""
        if self._open:  # the reset below would lose what the outer one has seen so far
            self._open[-1].note_peak(_peak_now_mib(self.device))
        memory = timing.PeakMemory(self.device)
        memory.__enter__()
        self._open.append(_Measurement(tag, memory))

    def stop(self) -> float:
        """Ends the measurement begun last and returns its seconds."""
        if not self._open:
            raise RuntimeError("stop() without start()")
        timing.synchronize(self.device)
        elapsed_s = perf_counter() - self._open[-1].started
        measurement = self._open.pop()
        measurement.memory.__exit__(None, None, None)
        allocated, reserved = _memory_now_mib(self.device)
        for mib in (measurement.memory.mib, allocated):  # Linux counts peak and present loosely
            measurement.note_peak(mib)
        if self._open:
            self._open[-1].note_peak(measurement.peak_mib)
        self.metrics[measurement.tag].append(
            {
                "time_s": elapsed_s,
                "memory_allocated_mib": allocated,
                "memory_reserved_mib": reserved,
                "peak_memory_mib": measurement.peak_mib,
            }
        )
        return elapsed_s

    @contextlib.contextmanager
    def profile(self, tag: str = "operation") -> Iterator[None]:
        """Measures the `with` block; a block that raises leaves no record."""
        depth = len(self._open)
        self.start(tag)
        try:
            yield
        except BaseException:
            del self._open[depth:]
            raise
        self.stop()

    def summary(self) -> dict[str, dict[str, Any]]:
        """tag -> calls, total_s, p50_ms, p90_ms, p99_ms, mean_ms and peak_memory_mib."""
        rows: dict[str, dict[str, Any]] = {}
        for tag, records in self.metrics.items():
            times_s = [record["time_s"] for record in records]
            peaks = [r["peak_memory_mib"] for r in records if r["peak_memory_mib"] is not None]
            spread = timing.summarise([seconds * 1e3 for seconds in times_s])
            rows[tag] = {
                "calls": len(records),
                "total_s": sum(times_s),
                **{f"{name}_ms": value for name, value in spread.items()},
                "peak_memory_mib": max(peaks) if peaks else None,
            }
        return rows

    def table(self) -> str:
        """The summary as text, the tag with the most time first."""
        head = f"{'tag':<24}{'calls':>7}{'total s':>10}{'p50 ms':>10}{'p99 ms':>10}{'peak MiB':>10}"
        lines = [head]
        for tag, row in sorted(self.summary().items(), key=lambda item: -item[1]["total_s"]):
            peak = "–" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}"
            lines.append(
                f"{tag:<24}{row['calls']:>7}{row['total_s']:>10.3f}{row['p50_ms']:>10.2f}"
                f"{row['p99_ms']:>10.2f}{peak:>10}"
            )
        return "\n".join(lines)


def _peak_now_mib(device: "torch.device") -> float | None:
    if device.type != "cuda":
        return timing.resident_peak_mib()
    import torch

    return torch.cuda.max_memory_allocated(device) / timing.MIB


def _memory_now_mib(device: "torch.device") -> tuple[float | None, float | None]:
    """(in use, held by the allocator); both are the resident set where there is no GPU."""
    if device.type != "cuda":
        resident = timing.resident_mib()
        return resident, resident
    import torch

    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return allocated / timing.MIB, reserved / timing.MIB


# --- the command: a training step and an inference, stage by stage -----------------------------


def advise(training: dict[str, Any], inference: dict[str, Any], device_type: str) -> list[str]:
    """Sentences that follow from the measured stages: what limits, and what mending it can give.

    A stage with share s of a step made k times as fast makes the step 1 / (1 - s + s/k) times as
    fast (Amdahl 1967); with k unbounded, at most 1 / (1 - s).
    """
    from phase2_optimization.stages import OTHER

    advice = []
    for label, report in (("training", training), ("inference", inference)):
        share = {stage["name"]: stage["share"] for stage in report["stages"]}
        waiting = share.get("data wait", 0.0)
        if waiting > DATA_WAIT_SHARE:
            advice.append(
                f"{label}: {waiting:.0%} of a step waits for images to be read and decoded; "
                f"hiding it (more --workers) would give at most {1 / (1 - waiting):.2f}x."
            )
        computing = {name: s for name, s in share.items() if name not in ("data wait", OTHER)}
        name = max(computing, key=computing.__getitem__)
        advice.append(
            f"{label}: {name} takes the most computing time ({computing[name]:.0%} of a step); "
            f"made twice as fast it would give {1 / (1 - computing[name] / 2):.2f}x."
        )
        syncs = report["host_syncs_per_step"]
        if syncs and device_type == "cuda":
            advice.append(
                f"{label}: the host waits for the GPU {syncs} times a step; each wait leaves the "
                "GPU idle until new work arrives, whatever its precision."
            )
        elif syncs:
            advice.append(
                f"{label}: {syncs} operations of a step would make the host wait on a GPU; on "
                f"this {device_type} they cost nothing extra."
            )
    return advice


def profile_model(
    model_path: Path | None,
    data_path: Path | None,
    *,
    device_name: str,
    batch_size: int,
    steps: int,
    workers: int,
    max_trace_mib: float,
    seed: int,
    output: Path,
) -> None:
    """Profiles training on the train split and inference on the val split; writes the report."""
    from phase2_optimization import profile_steps
    from phase2_optimization.inputs import load_inputs, start

    device = start(device_name, seed)
    loaded, (train, val) = load_inputs(model_path, data_path, ("train", "val"), device)
    batch_size = min(batch_size, len(train.records))
    steps_of = {
        "training": profile_steps.training_steps(loaded, train, device, batch_size, workers),
        "inference": profile_steps.inference_steps(loaded, val, device, batch_size),
    }
    profiler, reports = GPUProfiler(device), {}
    for name, step in steps_of.items():
        loaded.model.train(name == "training")
        reports[name] = profile_steps.measure_stages(profiler, name, loaded.model, step, steps)
        reports[name]["images_per_s"] = batch_size / reports[name]["free_step_ms"]["p50"] * 1e3
        _log_stages(name, reports[name], device)
    log.info("\nWhole steps, not timed by stage:\n%s\n", profiler.table())
    trace_path, report_path = output / "profile_trace.json.gz", output / "profile.json"
    works = profile_steps.traceable(loaded.model, steps_of, device)
    traced = profile_steps.write_trace(trace_path, works, device, max_trace_mib)
    advice = advise(reports["training"], reports["inference"], device.type)
    for sentence in advice:
        log.info("Advice – %s", sentence)
    inputs = [loaded.path, train.annotation_file, val.annotation_file]
    artifacts.write_json(
        report_path,
        {
            **artifacts.provenance("profile", str(device), inputs),
            "architecture": loaded.architecture,
            "precision": "FP32 without TF32",
            "batch_size": batch_size,
            "steps": steps,
            "workers": workers,
            **reports["training"],
            "host_syncs_are_measured_on": device.type,
            "inference": reports["inference"],
            "trace": traced,
            "advice": advice,
        },
    )
    cli.finished([report_path, trace_path], "python phase2_optimization/benchmark_inference.py")


def _log_stages(name: str, report: dict[str, Any], device: "torch.device") -> None:
    log.info(
        "\n%s: %.1f ms a step by stage, %.1f ms running freely (median), %.1f images/s",
        name,
        report["step_ms"]["p50"],
        report["free_step_ms"]["p50"],
        report["images_per_s"],
    )
    for stage in report["stages"]:
        bar = "#" * round(stage["share"] * 40)
        log.info(
            "  %-16s %9.2f ms %6.1f%%  %s", stage["name"], stage["ms"], stage["share"] * 100, bar
        )
    would_be = "" if device.type == "cuda" else " (would-be: there is no GPU to wait for)"
    log.info(
        "  %d operations, %d host syncs%s, peak memory %s MiB",
        report["operations_per_step"],
        report["host_syncs_per_step"],
        would_be,
        "unknown" if report["peak_memory_mib"] is None else round(report["peak_memory_mib"]),
    )


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model-path", type=Path, help="checkpoint (default: the newest best model)"
    )
    parser.add_argument("--data-path", type=Path, help="COCO data set (default: the demo data)")
    parser.add_argument("--batch-size", type=cli.positive_int, default=BATCH_SIZE, help="images")
    parser.add_argument(
        "--steps", type=cli.positive_int, default=STEPS, help="timed steps of each kind"
    )
    parser.add_argument(
        "--workers",
        type=cli.non_negative_int,
        default=0,
        help="processes that load training images; 0 shows their full cost as data wait",
    )
    parser.add_argument(
        "--max-trace-mib",
        type=cli.positive_float,
        default=MAX_TRACE_MIB,
        help="a larger trace keeps its longest events only",
    )
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder for the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its "ERROR: no GPU" on a CPU is none
    return cli.run(
        lambda: profile_model(
            args.model_path,
            args.data_path,
            device_name=args.device,
            batch_size=args.batch_size,
            steps=args.steps,
            workers=args.workers,
            max_trace_mib=args.max_trace_mib,
            seed=args.seed,
            output=args.output,
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
