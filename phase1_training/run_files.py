"""What a training writes (checkpoints, report, log) and what it can be continued from."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import artifacts, coco, models
from common.cli import UserError

if TYPE_CHECKING:
    from phase1_training.engine import Recipe, Trainer

LOG_COLUMNS = ("epoch", "train_loss", "map", "map_50", "map_75", "learning_rate", "images_per_s")


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and where to."""

    architecture: str
    weights: str
    min_size: int
    max_size: int
    train: coco.CocoSplit
    val: coco.CocoSplit
    output: Path
    metrics: Path
    workers: int
    seed: int
    start_from: models.LoadedModel | None


def report(run: Run, trainer: "Trainer", history: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of training.json after the epochs of `history`."""
    from common.timing import resident_peak_mib

    inputs = [run.train.annotation_file, run.val.annotation_file]
    peak_memory_mib = resident_peak_mib()
    if trainer.device.type == "cuda":
        import torch

        peak_memory_mib = torch.cuda.max_memory_allocated(trainer.device) / 2**20
    best = max(history, key=lambda row: row["val"]["map"], default=None)
    seconds = sum(row["seconds"] for row in history)
    images = sum(row["seconds"] * row["images_per_s"] for row in history)
    return {
        **artifacts.provenance("training", str(trainer.device), inputs),
        "architecture": run.architecture,
        "class_names": run.train.class_names,
        "images": {"train": len(run.train.records), "val": len(run.val.records)},
        "recipe": asdict(trainer.recipe),
        "seed": run.seed,
        "epochs": history,
        "best": best and {"epoch": best["epoch"], **best["val"]},
        "complete": len(history) == trainer.recipe.epochs,
        "training_s": seconds,
        "images_per_s": images / seconds if seconds else None,
        "peak_memory_mib": peak_memory_mib,
    }


def is_finished(run: Run) -> bool:
    """Whether trained_model.pth, the last file written, fits last.pth, and no other is gone."""
    last, trained = run.output / "last.pth", run.output / "trained_model.pth"
    others = (run.output / "best_model.pth", run.metrics / "training.json")
    return (
        trained.exists()
        and trained.stat().st_mtime_ns >= last.stat().st_mtime_ns
        and all(path.exists() for path in others)
    )


def save_epoch(run: Run, trainer: "Trainer", report: dict[str, Any]) -> None:
    """last.pth goes first: what the report tells of can always be continued."""
    save(run, run.output / "last.pth", trainer, report, state=trainer.state_dict())
    if report["best"]["epoch"] == len(report["epochs"]):
        save(run, run.output / "best_model.pth", trainer, report)
    artifacts.write_json(run.metrics / "training.json", report)
    rows = [",".join(LOG_COLUMNS)]
    for epoch in report["epochs"]:
        flat = {**epoch, **epoch["val"]}
        rows.append(",".join(f"{flat[column]:.6g}" for column in LOG_COLUMNS))
    artifacts.write_text(run.metrics / "training_log.csv", "\n".join(rows) + "\n")


def save(run: Run, path: Path, trainer: "Trainer", report: dict[str, Any], **extra: Any) -> None:
    """Writes one checkpoint with a summary of the report beside it."""
    epochs = report["epochs"]
    models.save_model(
        path,
        trainer.model,
        architecture=run.architecture,
        class_names=run.train.class_names,
        category_ids=run.train.category_ids,
        summary={key: value for key, value in report.items() if key != "epochs"}
        | {"epoch": len(epochs), "val": epochs[-1]["val"]},
        history=epochs,
        settings=_settings(run, trainer.recipe),
        **extra,
    )


def _settings(run: Run, recipe: "Recipe") -> dict[str, Any]:
    """What a continued run must have in common with its beginning."""
    return {
        "architecture": run.architecture,
        "weights": run.weights,
        "min_size": run.min_size,
        "max_size": run.max_size,
        "seed": run.seed,
        **asdict(recipe),
        "train annotations (sha256)": artifacts.sha256(run.train.annotation_file),
        "val annotations (sha256)": artifacts.sha256(run.val.annotation_file),
        "train_images": len(run.train.records),
        "classes": list(run.train.class_names),
    }


def checkpoint_to_continue(run: Run, recipe: "Recipe") -> dict[str, Any]:
    """The content of last.pth.

    Raises:
        UserError: nothing to continue, or the run was another one; the difference is named.
    """
    path = run.output / "last.pth"
    if not path.is_file():
        raise UserError(path, "nothing to continue", "start without --resume")
    checkpoint = artifacts.load_checkpoint(path)
    if not {"settings", "state", "history"} <= checkpoint.keys():
        raise UserError(path, "holds no training to continue", "start without --resume")
    saved = checkpoint["settings"]
    for key, value in _settings(run, recipe).items():
        if saved.get(key) != value:
            what = f"was trained with {key} {saved.get(key)!s:.80}, not {value!s:.80}"
            raise UserError(path, what, "give the same settings, or start without --resume")
    return checkpoint
