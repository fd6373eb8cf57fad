"""Trains a Faster R-CNN on COCO-format data.

    python phase1_training/train.py                                # the demo, minutes on a CPU
    python phase1_training/train.py --data-path /path/to/coco --epochs 10 --batch-size 4 --lr 0.005
    python phase1_training/train.py --data-path /path/to/coco --resume

Writes last.pth (every epoch), best_model.pth (best mAP on the validation images) and
trained_model.pth (the end) into --output, and training.json, training_log.csv,
training_curves.png and val_predictions.png into outputs/metrics, or into --output when that is
not the default folder.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase1_training/train.py` finds common/

from common import artifacts, cli, coco, environment, models, paths
from common.cli import UserError, log
from phase1_training import run_files
from phase1_training.run_files import Run

if TYPE_CHECKING:
    import torch

    from phase1_training.engine import EpochResult, Recipe, Trainer

EPOCHS = {True: 8, False: 10}  # by "is it the demo model?"
BATCH_SIZE = 4
WORKERS = min(4, max(1, (os.cpu_count() or 1) // 2))  # the others compute
LEARNING_RATE = {"sgd": 0.005, "adamw": 0.001}
WEIGHT_DECAY = {"sgd": 0.0005, "adamw": 0.01}
CROP_PROBABILITY = {True: 0.5, False: 0.0}


def train(run: Run, recipe: "Recipe", device: "torch.device", *, resume: bool) -> dict[str, Any]:
    """Trains from the start or from last.pth and returns the content of training.json."""
    from phase1_training.engine import Trainer

    environment.seed_everything(run.seed)
    checkpoint = run_files.checkpoint_to_continue(run, recipe) if resume else None
    model = _build(run, resume).to(device)
    steps_per_epoch = -(-len(run.train.records) // recipe.batch_size)
    trainer = Trainer(model, recipe, device, steps_per_epoch)
    history: list[dict[str, Any]] = []
    if checkpoint is not None:
        trainer.load_state_dict(checkpoint["state"])
        history = checkpoint["history"]
        log.info("Continuing after epoch %d", len(history))
        if len(history) == recipe.epochs and run_files.is_finished(run):
            log.info("The run is finished: nothing is changed")
            return artifacts.read_json(run.metrics / "training.json")
    report = run_files.report(run, trainer, history)
    if history:  # a run killed between the files of its last epoch is made whole
        run_files.save_epoch(run, trainer, report)
    last = run.output / "last.pth"
    replaced = last.stat().st_mtime_ns if last.exists() and not resume else None
    try:
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            report = _train_and_validate(run, trainer, history, epoch)
    except (KeyboardInterrupt, cli.Terminated):
        if last.exists() and last.stat().st_mtime_ns != replaced:
            command = environment.command_line().replace(" --overwrite", "")
            log.warning("Stopped. Continue with: %s --resume", command.replace(" --resume", ""))
        raise
    run_files.save(run, run.output / "trained_model.pth", trainer, report)
    return report


def _train_and_validate(
    run: Run, trainer: "Trainer", history: list[dict[str, Any]], epoch: int
) -> dict[str, Any]:
    """One epoch, its validation, and their files; adds its row to `history` and returns the content
    of training.json."""
    from phase1_training import plots
    from phase1_training.engine import epoch_loader

    epochs, device = trainer.recipe.epochs, trainer.device
    loader = epoch_loader(
        run.train,
        trainer.model,
        trainer.recipe,
        workers=run.workers,
        seed=run.seed,
        epoch=epoch,
        pin_memory=device.type == "cuda",
    )
    result = trainer.train_epoch(loader, f"epoch {epoch}/{epochs}")
    val, detections = _validate(run, trainer.model, device)
    row = _epoch_row(epoch, result, val)
    report = run_files.report(run, trainer, [*history, row])
    run_files.save_epoch(run, trainer, report)
    history.append(row)
    log.info(
        "epoch %d/%d: loss %.3f, val map %.3f, map_50 %.3f (%.1f images/s, %.0f s)",
        *(epoch, epochs, result.train_loss, val["map"], val["map_50"]),
        *(row["images_per_s"], result.seconds),
    )
    plots.training_curves(report["epochs"], run.metrics / "training_curves.png")
    if report["best"]["epoch"] == epoch:
        plots.predictions_grid(run.val, detections, run.metrics / "val_predictions.png")
    return report


def _build(run: Run, resume: bool) -> Any:
    """A new model, the one of `start_from`, or the one a run is continued with."""
    if resume:
        import torch

        return models.load_model(run.output / "last.pth", torch.device("cpu")).model
    if run.start_from is not None:
        return run.start_from.model
    return models.build_model(
        run.architecture,
        len(run.train.class_names) + 1,
        weights=run.weights,
        min_size=run.min_size,
        max_size=run.max_size,
    )


def _validate(run: Run, model: Any, device: "torch.device") -> tuple[dict[str, Any], list]:
    from common import evaluation

    predict = models.stock_predictor(model.eval(), device)
    detections = []
    for record in cli.progress(run.val.records, total=len(run.val.records), label="validation"):
        detections += predict([coco.read_image(record.path, (record.width, record.height))])
    scores = evaluation.coco_map(run.val, detections)
    # A validation set without any box has no average precision: report 0, not a fault.
    return {key: 0.0 if value is None else value for key, value in scores.items()}, detections


def _epoch_row(epoch: int, result: "EpochResult", val: dict[str, Any]) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train_loss": result.train_loss,
        "losses": result.losses,
        "val": {key: val[key] for key in ("map", "map_50", "map_75", "per_class")},
        "learning_rate": result.learning_rate,
        "seconds": result.seconds,
        "images_per_s": result.images / result.seconds,
    }


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
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=cli.positive_int, help="default: 10 (demo: 8)")
    recipe.add_argument("--batch-size", type=cli.positive_int, default=BATCH_SIZE, help="images")
    recipe.add_argument("--optimizer", choices=("sgd", "adamw"), help="default: sgd (demo: adamw)")
    recipe.add_argument("--lr", type=cli.positive_float, help="default: 0.005 (adamw: 0.001)")
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
    run = parser.add_argument_group("run")
    run.add_argument(
        "--workers", type=cli.non_negative_int, default=WORKERS, help="loader processes"
    )
    run.add_argument("--resume", action="store_true", help="continue the run in --output")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --output")
    cli.add_common_arguments(parser, output=paths.MODELS, output_help="folder of the checkpoints")
    return parser


def _prepare(args: argparse.Namespace) -> Run:
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
    elif args.architecture is not None:
        architecture = args.architecture
    else:
        is_demo = data_path.resolve() == paths.DEMO
        architecture = models.DEMO if is_demo else "fasterrcnn_resnet50_fpn"
    if start_from is not None:
        transform = start_from.model.transform
        min_size, max_size = transform.min_size[-1], transform.max_size
    else:
        min_size, max_size = models.input_size(architecture, args.min_size, args.max_size)
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


def _recipe(args: argparse.Namespace, run: Run, device: "torch.device") -> "Recipe":
    from common.fastpath import native_amp
    from phase1_training.engine import Recipe

    is_demo = run.architecture == models.DEMO
    amp = args.amp or ("auto" if is_demo else "off")
    optimizer = args.optimizer or ("adamw" if is_demo else "sgd")
    steps_per_epoch = -(-len(run.train.records) // args.batch_size)
    return Recipe(
        epochs=args.epochs or EPOCHS[is_demo],
        batch_size=args.batch_size,
        optimizer=optimizer,
        learning_rate=args.lr or LEARNING_RATE[optimizer],
        momentum=args.momentum,
        weight_decay=(WEIGHT_DECAY[optimizer] if args.weight_decay is None else args.weight_decay),
        schedule=args.schedule or ("cosine" if is_demo else "step"),
        step_size=args.step_size,
        gamma=args.gamma,
        warmup_steps=min(args.warmup_steps, steps_per_epoch),
        amp=native_amp(device) if amp == "auto" else amp,
        crop_probability=(
            CROP_PROBABILITY[is_demo] if args.crop_probability is None else args.crop_probability
        ),
    )


def _require_writable(folder: Path) -> None:
    """A folder that cannot be written to is told before an epoch is spent, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        what = f"cannot be written to ({error.strerror})"
        raise UserError(folder, what, "choose another --output") from None


def _run(args: argparse.Namespace) -> None:
    run = _prepare(args)
    device = environment.select_device(args.device)
    if args.amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16", "needs a GPU", "use --amp bf16 or off")
    recipe = _recipe(args, run, device)
    for folder in (run.output, run.metrics):
        _require_writable(folder)
    log.info(environment.summary_line(str(device)))
    log.info(
        "%s on %d images of %d classes (%d val images), %d epochs of batch %d, amp %s",
        *(run.architecture, len(run.train.records), len(run.train.class_names)),
        *(len(run.val.records), recipe.epochs, recipe.batch_size, recipe.amp),
    )
    report = train(run, recipe, device, resume=args.resume)
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
