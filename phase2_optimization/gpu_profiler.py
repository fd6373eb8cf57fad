"""Where the time of a training step and of an inference goes, stage by stage.

    python phase2_optimization/gpu_profiler.py                      # the demo model and data
    python phase2_optimization/gpu_profiler.py \\
        --model-path outputs/models/best_model.pth --data-path path/to/coco \\
        --batch-size 8 --steps 20 --device cuda

Profiles the training step of phase 1 and inference as the video pipeline runs it (in the half
precision that the device computes natively, if any), each beside torchvision's own in FP32. Writes
into outputs/metrics: profile.json (stages, forced waits for the device, kernel launches, arithmetic
and traffic against what this machine was measured to do, advice), profile_memory.png (memory in the
course of a step) and profile_trace.json.gz, which https://ui.perfetto.dev opens.

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
from common.cli import UserError, log
from common.model_and_data import load_model_and_data

if TYPE_CHECKING:
    import torch

STEPS = 8
BATCH_SIZE = 4
AMP = ("auto", "off", "bf16", "fp16")
MAX_TRACE_MIB = 20.0


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
        """Ends the measurement begun last and returns its seconds.

        Raises:
            UserError: the clock went back meanwhile.
        """
        if not self._open:
            raise RuntimeError("stop() without start()")
        timing.synchronize(self.device)
        elapsed_s = perf_counter() - self._open[-1].started
        measurement = self._open.pop()
        measurement.memory.__exit__(None, None, None)
        if elapsed_s < 0:
            raise UserError("the clock", "went back during a measurement", "measure again")
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


# --- the command --------------------------------------------------------------------------------


def profile_model(
    model_path: Path | None,
    data_path: Path | None,
    *,
    device_name: str,
    batch_size: int,
    steps: int,
    amp: str,
    max_trace_mib: float,
    seed: int,
    output: Path,
) -> None:
    """Profiles training on the train split and inference on the val split; writes the report."""
    import torch

    from phase2_optimization import profile_report, profiling
    from phase2_optimization.inputs import at_most_all, writable_folder
    from phase2_optimization.memory_use import bounded_host_memory

    writable_folder(output)
    # TF32 stays as PyTorch has it: so do training and the video pipeline.
    device = environment.select_device(device_name)
    amp = chosen_amp(amp, device)
    environment.seed_everything(seed)
    log.info(environment.summary_line(str(device)))
    loaded, (train, val) = load_model_and_data(model_path, data_path, torch.device("cpu"))
    batch_size = at_most_all(batch_size, train)
    try:
        with bounded_host_memory(device):
            profile = profiling.measure(
                *(GPUProfiler(device), loaded, train, val),
                batch_size=batch_size,
                steps=steps,
                amp=amp,
                seed=seed,
            )
    except Exception as error:
        if not timing.is_out_of_memory(error):
            raise
        what = f"does not fit into the memory of {device}"
        raise UserError(f"--batch-size {batch_size}", what, "give a smaller one") from error
    inputs = [loaded.path, train.annotation_file, val.annotation_file]
    settings = {
        "architecture": loaded.architecture,
        "amp": amp,
        "batch_size": batch_size,
        "steps": steps,
    }
    profile_report.log_profile(profile, device)
    report = {**artifacts.provenance("profile", str(device), inputs), **settings}
    saved = profile_report.save(report, profile, device, output, max_trace_mib)
    cli.finished(saved, "python phase2_optimization/benchmark_inference.py")


def chosen_amp(amp: str, device: "torch.device") -> str:
    """The precision of the training step's heavy layers: "off", "bf16" or "fp16".

    Raises:
        UserError: float16 was asked for on a CPU.
    """
    from common.fastpath import native_amp

    if amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16", "needs a GPU", "use --amp bf16 or off")
    return native_amp(device) if amp == "auto" else amp


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    inputs = parser.add_argument_group("model and data")
    inputs.add_argument(
        "--model-path", type=Path, help="checkpoint (default: the newest best model)"
    )
    inputs.add_argument("--data-path", type=Path, help="COCO data set (default: the demo data)")
    measured = parser.add_argument_group("measurement")
    measured.add_argument(
        "--batch-size", type=cli.positive_int, default=BATCH_SIZE, help="images of a step"
    )
    measured.add_argument(
        "--steps", type=cli.positive_int, default=STEPS, help="timed steps of each kind"
    )
    measured.add_argument(
        "--amp",
        choices=AMP,
        default=AMP[0],
        help="half precision of the training step, as in train.py; auto: what the device computes "
        "natively, if any, which inference always takes",
    )
    measured.add_argument(
        "--max-trace-mib",
        type=cli.positive_float,
        default=MAX_TRACE_MIB,
        help="a larger trace keeps its longest events only",
    )
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder for the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    # Before torch is loaded: its profiler calls a CPU without a GPU an error, and memory that is
    # older than the profile worth a warning.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return cli.run(
        lambda: profile_model(
            args.model_path,
            args.data_path,
            device_name=args.device,
            batch_size=args.batch_size,
            steps=args.steps,
            amp=args.amp,
            max_trace_mib=args.max_trace_mib,
            seed=args.seed,
            output=args.output,
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
