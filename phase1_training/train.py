"""Trains a Faster R-CNN on COCO-format data.

    python phase1_training/train.py                                # the demo, minutes on a CPU
    python phase1_training/train.py --data-path /path/to/coco --epochs 10 --batch-size 4 --lr 0.005
    python phase1_training/train.py --data-path /path/to/coco --resume
    torchrun --nproc_per_node=2 phase1_training/train.py --data-path /path/to/coco   # two GPUs

README_PHASE1.md has the commands for several machines, and for restarts after a failure.

The data is examined first, see check_data.py. Writes last.pth (every epoch, every ten minutes and
when it is stopped), best_model.pth (best mAP on the validation images) and trained_model.pth (the
end) into --output, and training.json, training_log.csv and pictures into outputs/metrics, or into
--output when that is not the default folder. Curves for TensorBoard are in --output/tensorboard.
"""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase1_training/train.py` finds common/

from common import cli, coco, environment, models, paths
from common.anchors import flat_sizes
from common.cli import UserError, log
from common.model_and_data import check_classes
from phase1_training import data_doctor, options, run_folder
from phase1_training.run_files import Run

if TYPE_CHECKING:
    from phase1_training.distributed import Ranks
    from phase1_training.recipe import Recipe


FOUND_NOTHING = 0.005  # map_50 of a run that has not learnt


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    options.add_arguments(parser)
    return parser


def _prepare(args: argparse.Namespace) -> Run:
    """Everything that can be wrong with the arguments and the data, before anything is written."""
    if args.resume and args.overwrite:
        raise UserError("--resume", "contradicts --overwrite", "give one of them")
    if not (args.resume or args.overwrite):
        run_folder.refuse_another_run(args.output)
    data_path = args.data_path or paths.DEMO
    train_split, val_split = coco.load_train_and_val(data_path)
    start_from = _load_start(args, train_split)
    if start_from is not None:
        architecture = start_from.architecture
        transform = start_from.model.transform
        min_size, max_size = transform.min_size[-1], transform.max_size
    else:
        architecture = args.architecture or options.default_architecture(data_path)
        min_size, max_size = models.input_size(architecture, args.min_size, args.max_size)
    if args.multi_scale and max(args.multi_scale) > max_size:
        what = f"above the longest side, {max_size} px"
        raise UserError(f"--multi-scale {max(args.multi_scale)}", what, "raise --max-size")
    metrics = paths.METRICS if args.output.resolve() == paths.MODELS else args.output
    return Run(
        architecture=architecture,
        weights=args.weights or ("none" if architecture == models.DEMO else "coco"),
        min_size=min_size,
        max_size=max_size,
        anchor_sizes=tuple(args.anchor_sizes) if args.anchor_sizes else None,
        train=train_split,
        val=val_split,
        output=args.output,
        metrics=metrics,
        workers=args.workers,
        seed=args.seed,
        start_from=start_from,
        pictures={},
        save_every_s=args.save_every_s,
    )


def _load_start(args: argparse.Namespace, train_split: coco.CocoSplit) -> models.LoadedModel | None:
    """The checkpoint to start from, which settles architecture and sizes and knows the classes."""
    if args.model_path is None:
        return None
    for flag in ("architecture", "weights", "min_size", "max_size", "anchor_sizes"):
        if getattr(args, flag) is not None:
            name = f"--{flag.replace('_', '-')}"
            raise UserError(name, "is settled by --model-path", "leave one of them out")
    if args.overwrite and run_folder.is_cleared(args.model_path, args.output):
        raise UserError(args.model_path, "is removed by --overwrite", "choose another --output")
    import torch

    loaded = models.load_model(args.model_path, torch.device("cpu"))
    check_classes(loaded, train_split, "give a model of the same classes")
    return loaded


def _examine_data(args: argparse.Namespace, run: Run) -> dict[str, str]:
    """Looks at the data as check_data.py does; what it finds is told, an error ends the run.

    Returns:
        A digest of the pixels of each split.
    """
    anchor_sizes = run.anchor_sizes
    if run.start_from is not None:
        anchor_sizes = tuple(flat_sizes(run.start_from.model.rpn.anchor_generator.sizes))
    report = data_doctor.examine(
        args.data_path or paths.DEMO,
        architecture=run.architecture,
        min_size=run.min_size,
        max_size=run.max_size,
        workers=max(1, run.workers),
        cache=run.metrics / "image_cache.json",
        anchor_sizes=anchor_sizes,
    )
    for line in data_doctor.summary_lines(report):
        log.info("%s", line)
    return report["pictures"]


def _run(args: argparse.Namespace) -> None:
    from phase1_training import distributed

    with distributed.join(args.device) as ranks:
        _train(args, ranks)


def _train(args: argparse.Namespace, ranks: "Ranks") -> None:
    if args.amp == "fp16" and ranks.device.type == "cpu":
        raise UserError("--amp fp16", "needs a GPU", "use --amp bf16 or off")
    if ranks.broadcast(run_folder.is_of_launch(args.output, ranks.launches)):
        args.resume, args.overwrite = True, False  # whatever its first start was asked for
    run = _prepare(args)
    recipe = options.make_recipe(args, run, ranks)
    with contextlib.ExitStack() as held:
        pictures: dict[str, str] = {}
        with ranks.main_first():
            if ranks.is_main:
                held.enter_context(run_folder.hold(run.output, run.metrics))
                if not (args.resume or args.overwrite):  # ended since the first look, perhaps
                    run_folder.refuse_another_run(run.output)
                log.info(environment.summary_line(str(ranks.device)))
                pictures = _examine_data(args, run)
        run = replace(run, pictures=ranks.broadcast(pictures))
        _train_held(args, run, recipe, ranks)


def _train_held(args: argparse.Namespace, run: Run, recipe: "Recipe", ranks: "Ranks") -> None:
    """Trains on examined data into folders no other run writes to."""
    from phase1_training import training_run

    if args.batch_size is None:
        args.batch_size = training_run.fitting_batch_size(run, recipe, ranks, resume=args.resume)
        recipe = options.make_recipe(args, run, ranks)
    log.info(
        "%s on %d images of %d classes (%d val images), %d epochs of batch %d, lr %g, amp %s",
        *(run.architecture, len(run.train.records), len(run.train.class_names)),
        *(len(run.val.records), recipe.epochs, recipe.batch_size * ranks.size),
        *(recipe.learning_rate, recipe.amp),
    )
    report = training_run.train(run, recipe, ranks.device, ranks, resume=args.resume)
    if ranks.is_main:
        _tell_result(args, run, report)


def _tell_result(args: argparse.Namespace, run: Run, report: dict) -> None:
    best = report["best"]
    log.info(
        "Best: epoch %d, map %.3f, map_50 %.3f (%.0f s of training)",
        *(best["epoch"], best["map"], best["map_50"], report["training_s"]),
    )
    if best["map_50"] < FOUND_NOTHING:
        log.warning(
            "The model finds next to nothing. Look at training_batch.png and the losses, train for "
            "more epochs, or change --lr; README_PHASE1.md has a table of causes"
        )
    names = ["training.json", "training_curves.png", "per_class_ap.png", "val_predictions.png"]
    names += ["evaluation.json", "worst_misses.png"]
    saved = [run.output / "best_model.pth", *(run.metrics / name for name in names)]
    saved = [path for path in saved if path.exists()]  # killed before a picture: not drawn again
    words = ["python", "phase2_optimization/benchmark_inference.py"]
    if run.output.resolve() != paths.MODELS:
        words += ["--model-path", paths.display(saved[0])]
    if args.data_path is not None:
        words += ["--data-path", paths.display(args.data_path)]
    cli.finished(saved, shlex.join(words))


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: _run(args), args)


if __name__ == "__main__":
    raise SystemExit(main())
