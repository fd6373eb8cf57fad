"""Trains a Faster R-CNN on COCO-format data.

    python phase1_training/train.py                                # the demo, minutes on a CPU
    python phase1_training/train.py --data-path /path/to/coco --epochs 10 --batch-size 4 --lr 0.005
    python phase1_training/train.py --data-path /path/to/coco --resume
    torchrun --nproc_per_node=2 phase1_training/train.py --data-path /path/to/coco   # two GPUs

The data is examined first, see check_data.py. Writes last.pth (every epoch, every ten minutes and
when it is stopped), best_model.pth (best mAP on the validation images) and trained_model.pth (the
end) into --output, and training.json, training_log.csv and pictures into outputs/metrics, or into
--output when that is not the default folder. Curves for TensorBoard are in --output/tensorboard.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase1_training/train.py` finds common/

from common import cli, coco, environment, models, paths
from common.cli import UserError, log
from phase1_training.run_files import Run

if TYPE_CHECKING:
    from phase1_training.distributed import Ranks
    from phase1_training.recipe import Recipe

EPOCHS = {True: 8, False: 10}  # by "is it the demo model?"
BATCH_SIZE = 4
WORKERS = min(4, max(1, (os.cpu_count() or 1) // 2))  # the others compute
LEARNING_RATE = {"sgd": 0.005, "adamw": 0.001}  # of SGD: for BATCH_SIZE images per step
WEIGHT_DECAY = {"sgd": 0.0005, "adamw": 0.01}
COLOR_JITTER = 0.2
CROP_PROBABILITY = {True: 0.5, False: 0.0}


# --- command line -----------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    data = parser.add_argument_group("data and model")
    data.add_argument(
        "--data-path", type=Path, help="COCO-format folder; the demo data if not given"
    )
    data.add_argument(
        "--architecture",
        choices=models.ARCHITECTURES,
        help="default: demo on the demo data, else fasterrcnn_resnet50_fpn",
    )
    data.add_argument("--weights", choices=models.WEIGHTS, help="default: coco (demo: none)")
    data.add_argument("--model-path", type=Path, help="start from the weights of this checkpoint")
    data.add_argument("--min-size", type=cli.positive_int, help="short side after the resize, px")
    data.add_argument("--max-size", type=cli.positive_int, help="longest side after it, px")
    data.add_argument(
        "--multi-scale",
        type=cli.positive_int_list,
        metavar="PX,PX,...",
        help="train on these short sides in turn, one for each batch (default: --min-size alone)",
    )
    data.add_argument(
        "--trainable-stages",
        type=cli.non_negative_int,
        help="stages of the backbone to train, from its end; 0: the heads alone (default: all, or "
        "all but the first ones of pretrained weights)",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=cli.positive_int, help="default: 10 (demo: 8)")
    recipe.add_argument(
        "--batch-size",
        type=_batch_size,
        default=BATCH_SIZE,
        help="images per step and GPU; auto: as many as the memory holds",
    )
    recipe.add_argument(
        "--accumulate",
        type=cli.positive_int,
        default=1,
        help="compute each batch in so many parts: less memory, the same gradient",
    )
    recipe.add_argument("--optimizer", choices=("sgd", "adamw"), help="default: sgd (demo: adamw)")
    recipe.add_argument(
        "--lr", type=cli.positive_float, help="default: 0.005 for 4 images per step (adamw: 0.001)"
    )
    recipe.add_argument("--momentum", type=cli.fraction, default=0.9, help="of SGD")
    recipe.add_argument(
        "--weight-decay", type=cli.non_negative_float, help="default: 0.0005 (adamw: 0.01)"
    )
    recipe.add_argument(
        "--schedule", choices=("step", "cosine"), help="default: step (demo: cosine)"
    )
    recipe.add_argument("--step-size", type=cli.positive_int, default=3, help="epochs per step")
    recipe.add_argument("--gamma", type=cli.positive_float, default=0.1, help="factor per step")
    recipe.add_argument(
        "--warmup-steps",
        type=cli.non_negative_int,
        default=100,
        help="steps of linear warm-up, at most one epoch",
    )
    recipe.add_argument(
        "--clip-norm",
        type=cli.non_negative_float,
        default=0.0,
        help="largest norm of the gradient; 0: unlimited",
    )
    recipe.add_argument(
        "--ema-decay",
        type=cli.fraction,
        default=0.0,
        help="validate and keep a moving average of the weights, for instance 0.999; 0: none",
    )
    recipe.add_argument(
        "--patience",
        type=cli.non_negative_int,
        default=0,
        help="end after so many epochs without a better map; 0: never",
    )
    recipe.add_argument(
        "--amp",
        choices=("off", "bf16", "fp16", "auto"),
        help="half precision of the heavy layers, boxes and losses staying FP32; auto: the one the "
        "device computes natively, if any (default: off; demo: auto)",
    )
    recipe.add_argument(
        "--crop-probability",
        type=cli.fraction,
        help="how often a random part of an image is trained on (default: 0; demo: 0.5)",
    )
    recipe.add_argument(
        "--color-jitter",
        type=cli.fraction,
        default=COLOR_JITTER,
        help="largest relative change of brightness, contrast and saturation",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--workers", type=cli.non_negative_int, default=WORKERS, help="loader processes"
    )
    run.add_argument("--resume", action="store_true", help="continue the run in --output")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --output")
    cli.add_common_arguments(parser, output=paths.MODELS, output_help="folder of the checkpoints")
    return parser


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else cli.positive_int(text)


def _prepare(args: argparse.Namespace, ranks: "Ranks") -> Run:
    """Everything that can be wrong with the arguments and the data, before anything is written."""
    if args.resume and args.overwrite:
        raise UserError("--resume", "contradicts --overwrite", "give one of them")
    if (args.output / "last.pth").exists() and not (args.resume or args.overwrite):
        remedy = "choose another --output, continue it with --resume or replace it with --overwrite"
        raise UserError(args.output, "holds another run", remedy)
    data_path = args.data_path or paths.DEMO
    train_split, val_split = coco.load_train_and_val(data_path)
    start_from = _load_start(args, train_split)
    if start_from is not None:
        architecture = start_from.architecture
        transform = start_from.model.transform
        min_size, max_size = transform.min_size[-1], transform.max_size
    else:
        is_demo = data_path.resolve() == paths.DEMO
        default = models.DEMO if is_demo else "fasterrcnn_resnet50_fpn"
        architecture = args.architecture or default
        min_size, max_size = models.input_size(architecture, args.min_size, args.max_size)
    if args.multi_scale and max(args.multi_scale) > max_size:
        what = f"above the longest side, {max_size} px"
        raise UserError(f"--multi-scale {max(args.multi_scale)}", what, "raise --max-size")
    _examine(args, data_path, architecture, (min_size, max_size), ranks)
    is_default_output = args.output.resolve() == paths.MODELS
    return Run(
        architecture=architecture,
        weights=args.weights or ("none" if architecture == models.DEMO else "coco"),
        min_size=min_size,
        max_size=max_size,
        train=train_split,
        val=val_split,
        output=args.output,
        metrics=paths.METRICS if is_default_output else args.output,
        workers=args.workers,
        seed=args.seed,
        start_from=start_from,
    )


def _load_start(args: argparse.Namespace, train_split: coco.CocoSplit) -> models.LoadedModel | None:
    """The checkpoint to start from, which settles architecture and sizes and knows the classes."""
    if args.model_path is None:
        return None
    for flag in ("architecture", "weights", "min_size", "max_size"):
        if getattr(args, flag) is not None:
            name = f"--{flag.replace('_', '-')}"
            raise UserError(name, "is settled by --model-path", "leave one of them out")
    import torch

    loaded = models.load_model(args.model_path, torch.device("cpu"))
    if loaded.class_names != train_split.class_names:
        found, wanted = ", ".join(loaded.class_names), ", ".join(train_split.class_names)
        what = f"knows the classes {found:.80}, the data has {wanted:.80}"
        raise UserError(args.model_path, what, "give a model of the same classes")
    return loaded


def _recipe(args: argparse.Namespace, run: Run, ranks: "Ranks") -> "Recipe":
    from common.fastpath import native_amp
    from phase1_training.recipe import Recipe

    is_demo = run.architecture == models.DEMO
    amp = args.amp or ("auto" if is_demo else "off")
    optimizer = args.optimizer or ("adamw" if is_demo else "sgd")
    batch_size = args.batch_size or BATCH_SIZE
    steps_per_epoch = -(-len(run.train.records) // (batch_size * ranks.size))
    return Recipe(
        epochs=args.epochs or EPOCHS[is_demo],
        batch_size=batch_size,
        accumulate=args.accumulate,
        optimizer=optimizer,
        learning_rate=args.lr or _default_learning_rate(optimizer, batch_size * ranks.size),
        momentum=args.momentum,
        weight_decay=(WEIGHT_DECAY[optimizer] if args.weight_decay is None else args.weight_decay),
        schedule=args.schedule or ("cosine" if is_demo else "step"),
        step_size=args.step_size,
        gamma=args.gamma,
        warmup_steps=min(args.warmup_steps, steps_per_epoch),
        clip_norm=args.clip_norm,
        ema_decay=args.ema_decay,
        trainable_stages=args.trainable_stages,
        patience=args.patience,
        amp=native_amp(ranks.device) if amp == "auto" else amp,
        min_sizes=tuple(args.multi_scale or (run.min_size,)),
        color_jitter=args.color_jitter,
        crop_probability=(
            CROP_PROBABILITY[is_demo] if args.crop_probability is None else args.crop_probability
        ),
    )


def _default_learning_rate(optimizer: str, images_per_step: int) -> float:
    """Of SGD in proportion to the images per step (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677)."""
    scale = images_per_step / BATCH_SIZE if optimizer == "sgd" else 1.0
    return LEARNING_RATE[optimizer] * scale


def _require_writable(folder: Path) -> None:
    """A folder that cannot be written to is told before an epoch is spent, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        what = f"cannot be written to ({error.strerror})"
        raise UserError(folder, what, "choose another --output") from None


def _examine(
    args: argparse.Namespace,
    data_path: Path,
    architecture: str,
    sizes: tuple[int, int],
    ranks: "Ranks",
) -> None:
    """Looks at the data as check_data.py does; what it finds is told, an error ends the run."""
    from phase1_training import data_doctor

    if ranks.is_main:
        report = data_doctor.examine(
            data_path,
            architecture=architecture,
            min_size=sizes[0],
            max_size=sizes[1],
            workers=max(1, args.workers),
            cache=paths.METRICS / "data_cache.json",
        )
        for line in data_doctor.summary_lines(report):
            log.info("%s", line)
    ranks.barrier()


def _run(args: argparse.Namespace) -> None:
    from phase1_training import distributed

    with distributed.join(args.device) as ranks:
        _train(args, ranks)


def _train(args: argparse.Namespace, ranks: "Ranks") -> None:
    if args.amp == "fp16" and ranks.device.type == "cpu":
        raise UserError("--amp fp16", "needs a GPU", "use --amp bf16 or off")
    run = _prepare(args, ranks)
    recipe = _recipe(args, run, ranks)
    for folder in (run.output, run.metrics):
        _require_writable(folder)
    from phase1_training import training_run

    log.info(environment.summary_line(str(ranks.device)))
    if args.batch_size is None:
        args.batch_size = training_run.fitting_batch_size(run, recipe, ranks, resume=args.resume)
        recipe = _recipe(args, run, ranks)
    log.info(
        "%s on %d images of %d classes (%d val images), %d epochs of batch %d, lr %g, amp %s",
        *(run.architecture, len(run.train.records), len(run.train.class_names)),
        *(len(run.val.records), recipe.epochs, recipe.batch_size * ranks.size),
        *(recipe.learning_rate, recipe.amp),
    )
    report = training_run.train(run, recipe, ranks.device, ranks, resume=args.resume)
    if ranks.is_main:
        _tell_result(run, report)


def _tell_result(run: Run, report: dict) -> None:
    best = report["best"]
    log.info(
        "Best: epoch %d, map %.3f, map_50 %.3f (%.0f s of training)",
        *(best["epoch"], best["map"], best["map_50"], report["training_s"]),
    )
    names = ("training.json", "training_curves.png", "val_predictions.png")
    saved = [run.output / "best_model.pth", *(run.metrics / name for name in names)]
    saved = [path for path in saved if path.exists()]  # killed before a picture: not drawn again
    model_flag = "" if run.output.resolve() == paths.MODELS else f" --model-path {saved[0]}"
    cli.finished(saved, f"python phase2_optimization/benchmark_inference.py{model_flag}")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: _run(args), args)


if __name__ == "__main__":
    raise SystemExit(main())
