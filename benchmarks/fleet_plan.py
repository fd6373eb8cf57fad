"""Prints how many machines a stream of videos takes, from measured costs of each stage.

    python benchmarks/fleet_plan.py                                # what docs/scale.md shows
    python benchmarks/fleet_plan.py outputs/videos/street_tracked.json --node-cores 32
    python benchmarks/fleet_plan.py --gpu-ms 4 --mbit-in 4 --mbit-out 2 --hours-a-day 5000

A report is one of benchmarks/video_pipeline.py, or of video_detector.py, which also tells the frame
rate, the bit rates of the video and of its results, and, made with --device cuda, what a GPU
sustains. All else is arithmetic, which takes a node to do so many times as much as the machine
measured as it has more cores. A test compares docs/scale.md with what this script prints.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/fleet_plan.py` finds common/

from common import artifacts, cli
from common.cli import UserError

RESULTS = ROOT / "benchmarks" / "results" / "pipeline"
STAGES = ("decode", "detect", "track", "draw", "encode")
BENCHMARK, RUN = "video_pipeline_benchmark/", "video_tracking/"
HOURS_A_DAY, FPS, NODE_CORES = 1_000_000.0, 30.0, 64
SECONDS_A_DAY = 86400


@dataclass(frozen=True)
class Costs:
    """What a frame of the input costs.

    Attributes:
        core_ms: stage -> milliseconds of a processor core, without what is between the stages.
        overhead: times as much as all stages that the whole run occupied its cores.
        gpu_ms: milliseconds of a GPU from end to end; None where none was measured.
        fps: frames per second of the video; None where the report does not tell.
        mbit_in, mbit_out: megabits of the file and of its results for a second of video; None as
            above.
    """

    name: str
    machine: str
    core_ms: Mapping[str, float]
    overhead: float
    gpu_ms: float | None = None
    fps: float | None = None
    mbit_in: float | None = None
    mbit_out: float | None = None

    def total_ms(self, shares: Mapping[str, float]) -> float:
        """Core-milliseconds for a frame of the input when a stage works for a share of them."""
        return self.overhead * sum(self.core_ms[stage] * shares[stage] for stage in STAGES)

    def largest(self, shares: Mapping[str, float]) -> str:
        """`decode 62%`: the stage that takes most."""
        parts = {stage: self.core_ms[stage] * shares[stage] for stage in STAGES}
        stage = max(parts, key=lambda name: parts[name])
        return f"{stage} {100 * parts[stage] / sum(parts.values()):.0f}%"


def read_costs(path: Path) -> Costs:
    """Raises UserError when the file is no report of a pipeline."""
    report = artifacts.read_json(path)
    schema = str(report.get("schema"))
    try:
        if schema.startswith(BENCHMARK):
            return _of_benchmark(path.stem, report)
        if schema.startswith(RUN):
            return _of_run(path, report)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        what = f"lacks something ({type(error).__name__}: {error})"
        raise UserError(path, what, "measure again") from None
    remedy = "give a report of video_detector.py or video_pipeline.py"
    raise UserError(path, "holds no times of stages", remedy)


def _of_benchmark(name: str, report: Mapping[str, Any]) -> Costs:
    core_ms = {stage: report["cpu_ms_per_frame"][stage] for stage in STAGES}
    occupied = report["ms_per_frame"]["ours"] * report["cores"]
    machine = f"{report['environment']['device_name']}, {report['cores']} cores"
    return Costs(name, machine, core_ms, occupied / sum(core_ms.values()))


def _of_run(path: Path, report: Mapping[str, Any]) -> Costs:
    """Of a run each stage's own time stands for processor time; it holds its waits, too.

    Raises:
        UserError: of a run that left frames out: what a frame costs then holds those as well.
    """
    facts, video = report["environment"], report["video"]
    core_ms, whole_ms = {s: report["stage_ms"][s] for s in STAGES}, 1e3 / report["fps_end_to_end"]
    if video["fps"] < video.get("source_fps", 0.0) * (1 - 1e-6):
        what = f"is of a run that took {video['fps']:g} of {video['source_fps']:g} frames/s"
        raise UserError(path, what, "measure without --frame-skip and --fps")
    overhead, gpu_ms = 1.0, None
    if facts["device"] == "cpu":
        overhead = max(1.0, whole_ms * facts["cpu_count"] / sum(core_ms.values()))
    else:
        core_ms, gpu_ms = core_ms | {"detect": 0.0}, whole_ms
    machine = f"{facts['device_name']}, {facts['cpu_count']} cores"
    return Costs(path.stem, machine, core_ms, overhead, gpu_ms, video["fps"], *_mbits(report))


def _mbits(report: Mapping[str, Any]) -> tuple[float | None, float]:
    """Megabits of a second of input and of results; none of input that is no file or has no end."""
    video, frames = report["video"], report.get("frames_promised")
    result_bytes = sum(file["bytes"] for file in report["files"].values())
    mbit_out = 8e-6 * result_bytes / (report["frames_read"] / video["fps"])
    if not (video.get("bytes") and frames):
        return None, mbit_out
    return 8e-6 * video["bytes"] / (frames / video["source_fps"]), mbit_out


# --- the arithmetic -------------------------------------------------------------------------


def scenarios() -> dict[str, dict[str, float]]:
    """What can be changed -> stage -> share of the frames for which it works on a core.

    Skipped frames are decoded all the same: the next one needs them.
    """
    found = {"as measured": dict.fromkeys(STAGES, 1.0)}
    found["`--no-video`"] = found["as measured"] | {"draw": 0.0, "encode": 0.0}
    for skip in (2, 3, 5):
        found[f"`--frame-skip {skip}`"] = dict.fromkeys(STAGES, 1 / skip) | {"decode": 1.0}
    found["`--frame-skip 5 --no-video`"] = found["`--frame-skip 5`"] | {"draw": 0.0, "encode": 0.0}
    found["detection on a GPU: the rest"] = found["as measured"] | {"detect": 0.0}
    found["detection on a GPU, `--no-video`"] = found["`--no-video`"] | {"detect": 0.0}
    return found


@dataclass(frozen=True)
class Demand:
    """What is to be done.

    Attributes:
        hours: of video that come in a day.
        fps: frames of a second of video.
        node_cores: of a machine.
    """

    hours: float
    fps: float
    node_cores: int

    def hours_of_node(self, core_ms: float) -> float:
        """Hours of video that a node finishes in a day."""
        return self.node_cores * 1e3 / core_ms / self.fps * 24

    def nodes(self, core_ms: float) -> int:
        return _whole(self.hours / self.hours_of_node(core_ms))


def _whole(machines: float) -> int:
    """So many there have to be; not one more for a rounding error."""
    return math.ceil(round(machines, 6))


def tables(costs: Sequence[Costs], args: argparse.Namespace) -> str:
    """Markdown."""
    parts = [_measured(costs)]
    for one in costs:
        demand = Demand(args.hours_a_day, args.fps or one.fps or FPS, args.node_cores)
        parts += [_nodes(one, demand), _gpu(one, demand, args.gpu_ms or one.gpu_ms)]
    first = costs[0]
    mbit_in, mbit_out = args.mbit_in or first.mbit_in, args.mbit_out or first.mbit_out
    parts += [_bytes(args.hours_a_day, mbit_in, mbit_out)]
    return "\n\n".join(parts)


def _measured(costs: Sequence[Costs]) -> str:
    """Core-milliseconds of each stage."""
    rows = [
        (one.name, one.machine, *(f"{one.core_ms[stage]:.2f}" for stage in STAGES),
         f"{one.total_ms(dict.fromkeys(STAGES, 1.0)):.1f}")
        for one in costs
    ]  # fmt: skip
    head = ("report", "measured on", *STAGES, "whole run")
    return f"Core-milliseconds a frame:\n\n{_table(head, rows)}"


def _nodes(one: Costs, demand: Demand) -> str:
    rows = []
    for name, shares in scenarios().items():
        core_ms = one.total_ms(shares)
        if one.gpu_ms is not None and shares["detect"]:
            continue  # this report does not tell what detection costs on a core
        if shares["encode"] and not one.core_ms["encode"]:
            continue  # nor this one what drawing and encoding cost: it is of --no-video
        rows.append(
            (name, f"{core_ms:.2f}", one.largest(shares), f"{1e3 / core_ms:,.0f}",
             f"{demand.hours_of_node(core_ms):,.0f}", f"{demand.nodes(core_ms):,.0f}")
        )  # fmt: skip
    head = ("", "core-ms a frame", "most of it", "frames/s of a core",
            "hours of video a node a day", "nodes")  # fmt: skip
    title = (
        f"{one.name}, {demand.hours:,.0f} hours of video a day at {demand.fps:g} frames/s, nodes "
        f"of {demand.node_cores} cores:"
    )
    return f"{title}\n\n{_table(head, rows)}"


def _gpu(one: Costs, demand: Demand, gpu_ms: float | None) -> str:
    """What is known of a GPU: when the cores beside it become the limit."""
    host_ms = one.total_ms(scenarios()["detection on a GPU: the rest"])
    limit_ms = host_ms / demand.node_cores
    known = (
        f"{one.name}: beside {demand.node_cores} cores, a GPU that takes less than "
        f"{limit_ms:.2f} ms a frame waits for them."
    )
    if gpu_ms is None:
        return f"{known} No GPU has been measured; `--gpu-ms` takes your number."
    slower_ms = max(gpu_ms, limit_ms)
    gpus = _whole(demand.hours / 24 * demand.fps * slower_ms / 1e3)
    return (
        f"{known} At {gpu_ms:g} ms a frame one GPU keeps {host_ms / gpu_ms:.1f} cores busy, and a "
        f"node with one GPU finishes {24e3 / slower_ms / demand.fps:,.0f} hours of video a day: "
        f"{gpus:,.0f} nodes."
    )


def _bytes(hours: float, mbit_in: float | None, mbit_out: float | None) -> str:
    """What goes through the network and stays on the disks."""
    streams = hours / 24
    rows = [
        (name, f"{mbit:.2f}", f"{streams * mbit / 1e3:,.1f}",
         f"{streams * mbit * SECONDS_A_DAY / 8e6:,.1f}")
        for name, mbit in (("in", mbit_in), ("out", mbit_out))
        if mbit is not None
    ]  # fmt: skip
    text = f"{streams:,.{0 if streams >= 10 else 1}f} videos at a time"
    if not rows:
        return f"{text}; `--mbit-in` and `--mbit-out` tell what that is in bytes."
    head = ("", "Mbit/s of a video", "Gbit/s of all", "TB a day")
    return f"{text}:\n\n{_table(head, rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


# --- the command line -----------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("reports", nargs="*", type=Path, help="default: the committed ones")
    number = {"type": cli.positive_float}
    parser.add_argument("--hours-a-day", default=HOURS_A_DAY, help="of video", **number)
    parser.add_argument(
        "--fps", help=f"of the videos (default: the report's, or {FPS:g})", **number
    )
    parser.add_argument("--node-cores", type=cli.positive_int, default=NODE_CORES, help="of a node")
    parser.add_argument("--gpu-ms", help="what your GPU takes for a frame, end to end", **number)
    parser.add_argument(
        "--mbit-in", help="megabits of a second of input (default: the first report's)", **number
    )
    parser.add_argument("--mbit-out", help="of results (default: the first report's)", **number)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.quiet = args.debug = False
    reports = args.reports or sorted(RESULTS.glob("*.json"))

    def work() -> None:
        cli.log.info(tables([read_costs(path) for path in reports], args))

    return cli.run(work, args)


if __name__ == "__main__":
    raise SystemExit(main())
