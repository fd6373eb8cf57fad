"""The options of train.py, and the recipe they make."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli, environment, models, paths

if TYPE_CHECKING:
    from phase1_training.distributed import Ranks
    from phase1_training.recipe import Recipe
    from phase1_training.run_files import Run

EPOCHS = {True: 8, False: 10}  # by "is it the demo model?"
BATCH_SIZE = 4
WORKERS = environment.loader_processes()
SAVE_EVERY_S = 600.0
LEARNING_RATE = {"sgd": 0.005, "adamw": 0.001}  # of SGD: for BATCH_SIZE images per step
WEIGHT_DECAY = {"sgd": 0.0005, "adamw": 0.01}
COLOR_JITTER = 0.2
CROP_PROBABILITY = {True: 0.5, False: 0.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_data(parser.add_argument_group("data and model"))
    recipe = parser.add_argument_group("recipe")
    _add_steps(recipe)
    _add_optimisation(recipe)
    _add_regularisation(recipe)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--workers", type=cli.non_negative_int, default=WORKERS, help="loader processes"
    )
    run.add_argument(
        "--save-every-s",
        type=cli.positive_float,
        default=SAVE_EVERY_S,
        help="seconds between saves within an epoch; a run that is killed loses no more than this",
    )
    run.add_argument("--resume", action="store_true", help="continue the run in --output")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --output")
    cli.add_common_arguments(parser, output=paths.MODELS, output_help="folder of the checkpoints")


def _add_data(data: argparse._ArgumentGroup) -> None:
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
        "--anchor-sizes",
        type=cli.positive_int_list,
        metavar="PX,PX,...",
        help="in place of the architecture's own; check_data.py suggests some",
    )
    data.add_argument(
        "--trainable-stages",
        type=cli.non_negative_int,
        help="stages of the backbone to train, from its end; 0: the heads alone (default: all, or "
        "all but the first ones of pretrained weights)",
    )


def _add_steps(recipe: argparse._ArgumentGroup) -> None:
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


def _add_optimisation(recipe: argparse._ArgumentGroup) -> None:
    recipe.add_argument("--optimizer", choices=("sgd", "adamw"), help="default: sgd (demo: adamw)")
    recipe.add_argument(
        "--lr", type=cli.positive_float, help="default: 0.005 for 4 images per step (adamw: 0.001)"
    )
    recipe.add_argument("--momentum", type=cli.fraction_below_one, default=0.9, help="of SGD")
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


def _add_regularisation(recipe: argparse._ArgumentGroup) -> None:
    recipe.add_argument(
        "--clip-norm",
        type=cli.non_negative_float,
        default=0.0,
        help="largest norm of the gradient; 0: unlimited",
    )
    recipe.add_argument(
        "--ema-decay",
        type=cli.fraction_below_one,
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
    recipe.add_argument(
        "--keep-zeros",
        action="store_true",
        help="weights that are zero in --model-path stay zero (a pruned model)",
    )


def default_architecture(data_path: Path) -> str:
    """The small one on the demo data only: it is to learn with, not to ship."""
    return models.DEMO if data_path.resolve() == paths.DEMO else "fasterrcnn_resnet50_fpn"


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return cli.positive_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from None


def make_recipe(args: argparse.Namespace, run: "Run", ranks: "Ranks") -> "Recipe":
    """The options, with defaults that depend on the model, the optimizer, the device and the
    number of images per step in place of those not given."""
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
        learning_rate=args.lr
        or _default_learning_rate(optimizer, min(batch_size * ranks.size, len(run.train.records))),
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
        keep_zeros=args.keep_zeros,
    )


def _default_learning_rate(optimizer: str, images_per_step: int) -> float:
    """Of SGD in proportion to the images per step (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677)."""
    scale = images_per_step / BATCH_SIZE if optimizer == "sgd" else 1.0
    return LEARNING_RATE[optimizer] * scale
