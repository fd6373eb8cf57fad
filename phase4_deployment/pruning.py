"""Prunes a trained detector and measures what that buys and costs.

    python phase4_deployment/pruning.py                      # several amounts on the demo model
    python phase4_deployment/pruning.py --method structured --amounts 0.3 --finetune-epochs 2 \\
        --output pruned_model.pth                            # a narrower model to deploy

Unstructured pruning zeroes single weights, structured pruning whole channels. Both leave every
tensor its shape and so, as a rule, the speed as it was; that is measured, not assumed. What
shrinks a model is to take the zeroed channels out, which is done where no shortcut needs them,
and compared with the zeroed model. The result is an ordinary checkpoint for --model-path of all
scripts.

Reports to outputs/metrics/pruning.json and pruning.png. With --output the model with the most
removed that keeps --max-map-drop is written (with --method unstructured the one with the most
zeros); if none does, nothing is, and the exit status is 2.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/pruning.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log
from common.model_and_data import load_model_and_data

if TYPE_CHECKING:
    from common.models import LoadedModel
    from phase4_deployment.pruned.pruned_models import PrunedModel, PruningPlan

AMOUNTS = "0.3,0.5,0.7,0.9"
METHODS = ("unstructured", "structured", "both")
PARTS = ("backbone", "rpn", "box_head")
CHANNEL_MULTIPLE = 8  # what SIMD units and tensor cores work on at once
MIN_ROUNDS = 7  # of common.comparison: fewer carry no interval
MAX_MAP_DROP = 0.02
TIME_BUDGET_S = 120.0


def prune(
    model_path: Path | None,
    data_path: Path | None,
    plan: "PruningPlan",
    *,
    output: Path | None,
    max_map_drop: float,
    max_images: int,
    num_iterations: int,
    time_budget_s: float,
    device_name: str,
    seed: int,
    metrics: Path = paths.METRICS,
) -> list[Path]:
    """Makes, measures and reports the versions of the plan; returns the files written.

    Raises:
        UserError: missing inputs, a failed training, or no version to write to `output`.
    """
    from phase4_deployment import measuring
    from phase4_deployment.pruned import pruned_models, pruning_measures, pruning_report

    device = environment.select_device(device_name)
    environment.seed_everything(seed)
    log.info(environment.summary_line(str(device)))
    loaded, splits = load_model_and_data(model_path, data_path, pruned_models.CPU)
    check_output(output, loaded.path)
    val = measuring.ValImages(splits[1], max_images)
    with tempfile.TemporaryDirectory() as folder:
        versions = pruned_models.make_all(
            loaded, plan, Path(folder), data_path=data_path, device_name=device_name, seed=seed
        )
        rows, times = pruning_measures.measure(
            versions,
            val,
            rounds=num_iterations,
            time_budget_s=time_budget_s,
            device=device,
            seed=seed,
            max_map_drop=max_map_drop,
        )
        content = pruning_report.report(
            rows,
            times,
            pruning_measures.noise_of(times, seed),
            loaded=loaded,
            splits=splits,
            plan=plan,
            val_images=len(val.images),
            max_map_drop=max_map_drop,
            seed=seed,
            device=str(device),
        )
        saved = _write_report(content, metrics)
        for line in (*pruning_report.table_lines(rows), *content["conclusion"]):
            log.info("%s", line)
        if output is not None:
            saved += _deliver(output, versions, rows, loaded, content)
    return saved


def check_output(output: Path | None, model_path: Path) -> None:
    """Before anything is computed; None asks for no file."""
    if output is None:
        return
    if output.suffix != ".pth":
        raise UserError(output, "the name must end in .pth", "for instance pruned_model.pth")
    if output.resolve() == model_path.resolve():
        raise UserError(output, "is the model that is pruned", "choose another --output")


def _write_report(content: dict[str, Any], metrics: Path) -> list[Path]:
    from phase4_deployment.pruned import pruning_plot

    artifacts.write_json(metrics / "pruning.json", content)
    pruning_plot.draw(content, metrics / "pruning.png")
    return [metrics / "pruning.json", metrics / "pruning.png"]


def _deliver(
    output: Path,
    versions: Sequence["PrunedModel"],
    rows: Sequence[dict[str, Any]],
    loaded: "LoadedModel",
    content: dict[str, Any],
) -> list[Path]:
    """Writes the most pruned version within the budget: the last one, as amounts ascend."""
    from phase4_deployment.pruned.pruned_models import save

    kind = versions[-1].kind
    valid = [
        (version, row)
        for version, row in zip(versions, rows, strict=True)
        if version.kind == kind and row["status"] == "ok"
    ]
    if not valid:
        what = f"not written: every amount loses more than {content['max_map_drop']:g} mAP"
        remedy = "give smaller --amounts, --finetune-epochs, or raise --max-map-drop"
        raise UserError(output, what, remedy)
    version, row = valid[-1]
    kept = ("schema", "command", "created", "environment", "inputs", "architecture", "settings")
    save(version, output, loaded, {key: content[key] for key in kept} | {"pruned": row})
    return [output, artifacts.sidecar(output)]


def amount_list(text: str) -> tuple[float, ...]:
    """`0.5,0.3` -> (0.3, 0.5): shares above 0 and below 1, ascending and without repeats."""
    amounts = sorted({cli.fraction_below_one(name) for name in cli.names(text)})
    if amounts[0] == 0:
        raise argparse.ArgumentTypeError("0 prunes nothing; give shares above 0")
    return tuple(amounts)


def part_list(text: str) -> tuple[str, ...]:
    found = cli.names(text)
    for name in found:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in found)


def round_count(text: str) -> int:
    value = cli.positive_int(text)
    if value < MIN_ROUNDS:
        raise argparse.ArgumentTypeError(f"{value} is not {MIN_ROUNDS} or more, for an interval")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=Path, help="checkpoint (default: newest best model)")
    parser.add_argument("--data-path", type=Path, help="COCO data set (default: the demo data)")
    _add_pruning(parser.add_argument_group("pruning"))
    _add_measuring(parser.add_argument_group("measuring"))
    cli.add_common_arguments(
        parser, output=None, output_help="checkpoint (.pth) to write (default: measure only)"
    )
    return parser


def _add_pruning(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--method", choices=METHODS, default="both", help="what to zero or remove")
    group.add_argument(
        "--amounts",
        type=amount_list,
        default=AMOUNTS,
        help="shares of the weights (unstructured) or of a layer's channels (structured)",
    )
    group.add_argument(
        "--parts", type=part_list, default=",".join(PARTS), help="of the detector, to prune"
    )
    group.add_argument(
        "--scope",
        choices=("global", "layer"),
        default="global",
        help="unstructured: compare weights of all layers, or take the same share from each",
    )
    group.add_argument(
        "--channel-multiple",
        type=cli.positive_int,
        default=CHANNEL_MULTIPLE,
        help="structured: round the channels left in a layer up to a multiple",
    )
    group.add_argument(
        "--finetune-epochs",
        type=cli.non_negative_int,
        default=0,
        help="train every pruned model so long with phase1_training/train.py",
    )
    group.add_argument(
        "--finetune-lr", type=cli.positive_float, help="learning rate (default: train.py's own)"
    )


def _add_measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-map-drop",
        type=cli.fraction,
        default=MAX_MAP_DROP,
        help="mAP that a model may lose on the val images",
    )
    group.add_argument(
        "--max-images", type=cli.positive_int, default=100, help="val images to compute mAP on"
    )
    group.add_argument(
        "--num-iterations",
        type=round_count,
        default=30,
        help=f"timed rounds, at most; {MIN_ROUNDS} at least",
    )
    group.add_argument(
        "--time-budget-s",
        type=cli.positive_float,
        default=TIME_BUDGET_S,
        help=f"no further round after this many seconds, once there are {MIN_ROUNDS}",
    )


def next_command(args: argparse.Namespace) -> str:
    if args.output is not None:
        exported = paths.display(args.output)
        return f"python phase4_deployment/export_onnx.py --model-path {exported}"
    return (
        "python phase4_deployment/pruning.py --method structured --amounts 0.3 "
        "--finetune-epochs 2 --output pruned_model.pth"
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def work() -> None:
        if args.output is not None:
            check_output(args.output, args.model_path or paths.BEST_MODEL)
        from phase4_deployment.pruned.pruned_models import KINDS, PruningPlan

        plan = PruningPlan(
            kinds=KINDS[args.method],
            amounts=args.amounts,
            parts=args.parts,
            scope=args.scope,
            multiple=args.channel_multiple,
            finetune_epochs=args.finetune_epochs,
            finetune_lr=args.finetune_lr,
        )
        saved = prune(
            args.model_path,
            args.data_path,
            plan,
            output=args.output,
            max_map_drop=args.max_map_drop,
            max_images=args.max_images,
            num_iterations=args.num_iterations,
            time_budget_s=args.time_budget_s,
            device_name=args.device,
            seed=args.seed,
        )
        cli.finished(saved, next_command(args))

    return cli.run(work, args)


if __name__ == "__main__":
    sys.exit(main())
