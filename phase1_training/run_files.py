"""What a training writes (checkpoints, report, log) and what it can be continued from."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import artifacts, coco, models, paths
from common.cli import UserError

if TYPE_CHECKING:
    import torch
    from torchvision.models.detection import FasterRCNN

    from phase1_training.distributed import Ranks
    from phase1_training.engine import Trainer
    from phase1_training.recipe import Recipe

TRAIN_DIGEST, VAL_DIGEST = "train annotations (sha256)", "val annotations (sha256)"
LOG_COLUMNS = ("epoch", "train_loss", "val_loss", "map", "map_50", "map_75", "learning_rate")


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and where to."""

    architecture: str
    weights: str
    min_size: int
    max_size: int
    anchor_sizes: tuple[int, ...] | None  # in place of the architecture's own
    train: coco.CocoSplit
    val: coco.CocoSplit
    output: Path
    metrics: Path
    workers: int
    seed: int
    start_from: models.LoadedModel | None
    pictures: dict[str, str]  # a digest of the pixels of each split, once they have been examined
    save_every_s: float  # within an epoch


def report(
    run: Run, settings: dict[str, Any], trainer: "Trainer", history: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of training.json after the epochs of `history`."""
    from common.timing import resident_peak_mib

    peak_memory_mib = resident_peak_mib()
    if trainer.device.type == "cuda":
        import torch

        peak_memory_mib = torch.cuda.max_memory_allocated(trainer.device) / 2**20
    best = max(history, key=lambda row: row["val"]["map"], default=None)
    seconds = sum(row["seconds"] for row in history)
    images = sum(row["seconds"] * row["images_per_s"] for row in history)
    return {
        **artifacts.provenance("training", str(trainer.device)),
        "inputs": {
            paths.display(run.train.annotation_file): settings[TRAIN_DIGEST],
            paths.display(run.val.annotation_file): settings[VAL_DIGEST],
        },
        "architecture": run.architecture,
        "class_names": run.train.class_names,
        "images": {"train": len(run.train.records), "val": len(run.val.records)},
        "recipe": asdict(trainer.recipe),
        "seed": run.seed,
        "epochs": history,
        "best": best and {"epoch": best["epoch"], **best["val"]},
        "complete": len(history) == trainer.recipe.epochs
        or stopped_early(history, trainer.recipe.patience),
        "stopped_early": stopped_early(history, trainer.recipe.patience),
        "ranks": trainer.ranks.size,
        "launches": list(trainer.ranks.launches),
        "training_s": seconds,
        "images_per_s": images / seconds if seconds else None,
        "peak_memory_mib": peak_memory_mib,
    }


def evaluation_head(run: Run, settings: dict[str, Any], device: "torch.device") -> dict[str, Any]:
    """The first keys of evaluation.json: of best_model.pth, which has just been written."""
    best = run.output / "best_model.pth"
    return {
        **artifacts.provenance("evaluation", str(device)),
        "inputs": {
            paths.display(best): artifacts.read_json(artifacts.sidecar(best))["sha256"],
            paths.display(run.val.annotation_file): settings[VAL_DIGEST],
        },
        "architecture": run.architecture,
        "split": "val",
    }


def stopped_early(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` epochs brought no better map (never with a patience of 0)."""
    scores = [row["val"]["map"] for row in history]
    return (
        bool(patience)
        and len(scores) > patience
        and max(scores[-patience:]) <= max(scores[:-patience])
    )


def is_finished(run: Run, recipe: "Recipe", history: list[dict[str, Any]]) -> bool:
    """Whether no epoch is left and trained_model.pth, the last file written, fits last.pth."""
    if len(history) < recipe.epochs and not stopped_early(history, recipe.patience):
        return False
    last, trained = run.output / "last.pth", run.output / "trained_model.pth"
    others = (run.output / "best_model.pth", run.metrics / "training.json")
    return (
        trained.exists()
        and trained.stat().st_mtime_ns >= last.stat().st_mtime_ns
        and all(path.exists() for path in others)
    )


def write_metrics(run: Run, report: dict[str, Any]) -> None:
    """training.json, and training_log.csv: a row an epoch, the same for the same run."""
    artifacts.write_json(run.metrics / "training.json", report)
    rows = [",".join(LOG_COLUMNS)]
    for epoch in report["epochs"]:
        flat = {**epoch, **epoch["val"], "val_loss": epoch["val"]["loss"]}
        rows.append(",".join(f"{flat[column]:.9g}" for column in LOG_COLUMNS))
    artifacts.write_text(run.metrics / "training_log.csv", "\n".join(rows) + "\n")


def save(
    run: Run,
    name: str,
    model: "FasterRCNN",
    settings: dict[str, Any],
    report: dict[str, Any],
    *,
    keep_previous: bool = False,
    **extra: Any,
) -> None:
    """Writes one checkpoint into the run's folder with a summary of the report beside it."""
    epochs = report["epochs"]
    models.save_model(
        run.output / name,
        model,
        architecture=run.architecture,
        class_names=run.train.class_names,
        category_ids=run.train.category_ids,
        summary={key: value for key, value in report.items() if key != "epochs"}
        | {"epoch": len(epochs), "val": epochs[-1]["val"] if epochs else None},
        keep_previous=keep_previous,
        history=epochs,
        settings=settings,
        **extra,
    )


def settings(run: Run, recipe: "Recipe", ranks: "Ranks") -> dict[str, Any]:
    """What a continued run must have in common with its beginning. Reads the annotations: once,
    when they have just been parsed."""
    return {
        "processes": ranks.size,
        "architecture": run.architecture,
        "weights": run.weights,
        "min_size": run.min_size,
        "max_size": run.max_size,
        "anchor_sizes": run.anchor_sizes,
        "seed": run.seed,
        **asdict(recipe),
        TRAIN_DIGEST: artifacts.sha256(run.train.annotation_file),
        VAL_DIGEST: artifacts.sha256(run.val.annotation_file),
        "train images": len(run.train.records),
        "pictures (sha256 of pixels)": ", ".join(f"{k} {v}" for k, v in run.pictures.items()),
        "classes": list(run.train.class_names),
    }


def load_last(run: Run) -> dict[str, Any]:
    """The content of last.pth.

    Raises:
        UserError: there is nothing to continue.
    """
    path = run.output / "last.pth"
    if not path.is_file() and not artifacts.previous_checkpoint(path).is_file():
        raise UserError(path, "nothing to continue", "start without --resume")
    checkpoint = artifacts.load_checkpoint(path)
    if not {"settings", "state", "history"} <= checkpoint.keys():
        raise UserError(path, "holds no training to continue", "start without --resume")
    return checkpoint


def checkpoint_to_continue(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    """`load_last`, when the run is the one that wrote it.

    Raises:
        UserError: nothing to continue, or the run was another one; the difference is named.
    """
    path, checkpoint = run.output / "last.pth", load_last(run)
    saved = {"keep_zeros": False} | checkpoint["settings"]  # older checkpoints do not say
    for key, value in settings.items():
        if saved.get(key) != value:
            shown = 12 if "sha256" in key else 80
            what = f"was trained with {key} {saved.get(key)!s:.{shown}}, not {value!s:.{shown}}"
            same = "give the same"
            if key == "processes":
                same += " (to torchrun one --nnodes, no MIN:MAX)"
            raise UserError(path, what, f"{same}, or start anew in another --output")
    return checkpoint
