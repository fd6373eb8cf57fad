"""How a training step scales over devices, or what to expect of that where there is only one.

    python benchmarks/scaling.py --architecture fasterrcnn_resnet50_fpn    # all GPUs of the machine
    python benchmarks/scaling.py --network-gbit-s 100                      # one device: expected
    python benchmarks/scaling.py --device cpu --ranks 1,2                  # processes that share it

Weak scaling: every device has --batch-size images a step, so more devices train on more. Strong
scaling: the images of a step stay the same, as many as all devices have in the weak one, and are
divided. Efficiency is images per second against that of one device times the number of devices.
A step is all that a person pays for: reading (with --workers), forward, backward, summing and
update.

With one device nothing can be measured of this. Expected is then the share of communication: the
gradients' bytes over a bandwidth, after a step of one device. It does not hide behind the backward
pass (see phase1_training/distributed.py), so it adds to the step. Measured are the step and gloo's
all-reduce between two processes over loopback, which is this machine's memory and no network; give
yours with --network-gbit-s.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/scaling.py` finds common/

from benchmarks.scaling_steps import Setup, measure
from common import artifacts, cli, coco, environment, models, paths
from common.cli import UserError, log

EXPECTED_RANKS = (2, 4, 8, 16, 64)
GIB = 2**30


# --- what it comes to -------------------------------------------------------------------------


def rank_counts(devices: int) -> list[int]:
    """1, 2, 4, ... and the number of devices."""
    return sorted({*(2**power for power in range(devices.bit_length())), devices})


def scaling_rows(step_ms: Mapping[int, float], images: Mapping[int, int]) -> list[dict[str, Any]]:
    """Images per second and efficiency for each number of ranks.

    Args:
        step_ms: by the number of ranks, among them 1.
        images: of a step of all ranks together, by their number.
    """
    rate = {ranks: 1e3 * images[ranks] / ms for ranks, ms in step_ms.items()}
    return [
        {
            "ranks": ranks,
            "images_per_step": images[ranks],
            "step_ms": ms,
            "images_per_s": rate[ranks],
            "efficiency": rate[ranks] / (ranks * rate[1]),
        }
        for ranks, ms in sorted(step_ms.items())
    ]


def allreduce_bandwidth(allreduce_ms: float, nbytes: int, ranks: int) -> float:
    """Bytes per second that every rank sent, as a ring does: 2 (n - 1) / n of all."""
    return 2 * (ranks - 1) / ranks * nbytes / (allreduce_ms / 1e3)


def expected_rows(
    step_ms: float, nbytes: int, bytes_per_s: float, counts: Sequence[int] = EXPECTED_RANKS
) -> list[dict[str, Any]]:
    """The share of communication in a step, and the efficiency of weak scaling it leaves.

    Args:
        step_ms: of one device, without any communication.
        nbytes: of the gradients.
        bytes_per_s: that each rank sends.
    """
    rows = []
    for ranks in counts:
        communication_ms = 1e3 * 2 * (ranks - 1) / ranks * nbytes / bytes_per_s
        share = communication_ms / (step_ms + communication_ms)
        rows.append(
            {
                "ranks": ranks,
                "communication_ms": communication_ms,
                "share": share,
                "efficiency": 1 - share,
            }
        )
    return rows


def measured_table(report: Mapping[str, Any]) -> str:
    lines = [f"Measured on {report['devices']}"]
    for kind in ("weak", "strong"):
        lines += [
            "",
            f"| {kind} scaling: ranks | images per step | step p50 (ms) | images/s | efficiency |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['ranks']} | {row['images_per_step']} | {row['step_ms']:.1f} "
            f"| {row['images_per_s']:.1f} | {row['efficiency']:.2f} |"
            for row in report[kind]
        ]
    return "\n".join(lines)


def expected_table(report: Mapping[str, Any]) -> str:
    lines = [
        "Expected, not measured: there is one device here.",
        f"Measured: a step of {report['step_ms']:.1f} ms for {report['batch_size']} images on one "
        f"device; gradients of {report['gradient_bytes'] / 2**20:.1f} MiB.",
        "",
        "| bandwidth of each rank | ranks | communication (ms) | share of the step | efficiency |",
        "|---|---|---|---|---|",
    ]
    for network in report["expected"]:
        name = f"{network['bytes_per_s'] / GIB:.2f} GiB/s, {network['from']}"
        lines += [
            f"| {name} | {row['ranks']} | {row['communication_ms']:.1f} | {row['share']:.0%} "
            f"| {row['efficiency']:.2f} |"
            for row in network["rows"]
        ]
    return "\n".join(lines)


# --- command line -----------------------------------------------------------------------------


def measured_report(setup: Setup, counts: Sequence[int], devices: str) -> dict[str, Any]:
    """Weak and strong scaling over these numbers of ranks."""
    most = max(counts)
    weak, strong = {}, {}
    for ranks in counts:
        weak[ranks] = _p50_ms(setup, ranks)
        divided = replace(setup, batch_size=most * setup.batch_size // ranks)
        strong[ranks] = weak[ranks] if ranks == most else _p50_ms(divided, ranks)
        log.info("%d ranks done", ranks)
    return {
        "devices": devices,
        "weak": scaling_rows(weak, {ranks: ranks * setup.batch_size for ranks in counts}),
        "strong": scaling_rows(strong, dict.fromkeys(counts, most * setup.batch_size)),
    }


def _p50_ms(setup: Setup, ranks: int) -> float:
    from common import timing

    return timing.summarise(measure(setup, ranks)["step_ms"])["p50"]


def expected_report(setup: Setup, network_gbit_s: float | None) -> dict[str, Any]:
    """A step of one device, the all-reduce of two processes, and what follows from both."""
    from common import timing

    alone = measure(setup, 1)
    step_ms, nbytes = timing.summarise(alone["step_ms"])["p50"], alone["gradient_bytes"]
    pair = measure(replace(setup, device="cpu", rounds=1), 2)
    sum_ms = timing.summarise(pair["allreduce_ms"])["p50"]
    networks = {"gloo over loopback, measured": allreduce_bandwidth(sum_ms, nbytes, 2)}
    if network_gbit_s:
        networks["given by --network-gbit-s"] = network_gbit_s * 1e9 / 8
    return {
        "step_ms": step_ms,
        "batch_size": setup.batch_size,
        "gradient_bytes": nbytes,
        "allreduce_ms": sum_ms,
        "expected": [
            {"from": name, "bytes_per_s": rate, "rows": expected_rows(step_ms, nbytes, rate)}
            for name, rate in networks.items()
        ],
    }


def _run(args: argparse.Namespace) -> None:
    import torch

    device = environment.select_device(args.device)
    devices = (
        torch.cuda.device_count() if device.type == "cuda" and device.index in (None, 0) else 1
    )
    counts = args.ranks or rank_counts(devices)
    if counts[0] != 1 or any(counts[-1] % count for count in counts):
        what = "not 1 and divisors of the last"
        raise UserError(f"--ranks {','.join(map(str, counts))}", what, "give for instance 1,2,4")
    if device.type == "cuda" and counts[-1] > devices:
        raise UserError(f"--ranks {counts[-1]}", f"{devices} GPUs here", "give fewer")
    split = coco.training_split(args.data_path, "train")
    setup = Setup(
        **{key: getattr(args, key) for key in Setup.__dataclass_fields__ if key != "device"},
        device=device.type,
    )
    log.info(environment.summary_line(str(device)))
    if len(counts) > 1:
        shared = "1 CPU, which its processes share" if device.type == "cpu" else f"{devices} GPUs"
        report = measured_report(setup, counts, shared)
        text = measured_table(report)
    else:
        report = expected_report(setup, args.network_gbit_s)
        text = expected_table(report)
    log.info("%s", text)
    head = artifacts.provenance("scaling", str(device), [split.annotation_file])
    told = {key: value for key, value in asdict(setup).items() if key != "data_path"}
    artifacts.write_json(args.output, {**head, "setup": told, **report, "table": text})
    cli.finished([args.output], None)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--data-path", type=Path, default=paths.DEMO, help="COCO-format folder")
    parser.add_argument(
        "--architecture", choices=models.ARCHITECTURES, default=models.DEMO, help="to train"
    )
    parser.add_argument("--min-size", type=cli.positive_int, help="short side after the resize, px")
    parser.add_argument("--max-size", type=cli.positive_int, help="longest side after it, px")
    parser.add_argument("--batch-size", type=cli.positive_int, default=4, help="images per device")
    parser.add_argument("--rounds", type=cli.positive_int, default=20, help="steps to time")
    parser.add_argument(
        "--workers", type=cli.non_negative_int, default=0, help="loader processes of every rank"
    )
    parser.add_argument(
        "--ranks", type=cli.positive_int_list, help="default: 1, 2, 4, ... up to the devices"
    )
    parser.add_argument(
        "--network-gbit-s",
        type=cli.positive_float,
        help="also expect with this bandwidth of each rank (one device only)",
    )
    cli.add_common_arguments(
        parser, output=paths.METRICS / "scaling.json", output_help="JSON to write"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: _run(args), args)


if __name__ == "__main__":
    raise SystemExit(main())
