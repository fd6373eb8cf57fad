"""A whole run: epochs, validation, checkpoints, and how it is stopped and continued.

The order of the files makes every moment safe to be killed in: last.pth tells of an epoch only
after best_model.pth has been written for it, and the report only of what last.pth can continue.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import FasterRCNN

from common import artifacts, cli, environment, models, timing
from common.cli import UserError, log
from common.coco import CocoSplit
from common.stop_signal import StopSignal
from phase1_training import evaluation_files, memory, nonfinite, plots, run_files, run_folder
from phase1_training.batch import Batch
from phase1_training.batch_plan import distinct_shapes
from phase1_training.distributed import Ranks
from phase1_training.engine import EpochResult, Trainer
from phase1_training.loading import TrainingLoader
from phase1_training.recipe import Recipe, set_trainable_stages
from phase1_training.run_files import Run
from phase1_training.tensorboard_log import TensorBoardLog
from phase1_training.validation import Validation, validate

STOPPING = "Stopping after this step, and saving; a second time ends at once"
DIVERGED = 5.0  # times the lowest validation loss so far
PICTURES_EVERY_S = 20  # epochs of a few seconds do not each wait for theirs


def train(
    run: Run, recipe: Recipe, device: torch.device, ranks: Ranks, *, resume: bool
) -> dict[str, Any]:
    """Trains from the start or from last.pth and returns the content of training.json.

    Raises:
        UserError: see `Trainer.train_epoch` and `run_files.checkpoint_to_continue`.
        KeyboardInterrupt, Terminated: stopped by a signal; the run is saved before.
    """
    environment.seed_everything(run.seed)
    settings = run_files.settings(run, recipe, ranks)  # of the data as they are now
    checkpoint = run_files.checkpoint_to_continue(run, settings) if resume else None
    model = _build(run, recipe) if checkpoint is None else models.rebuild_model(checkpoint)
    loader = build_loader(
        run.train, recipe, ranks, max_size=run.max_size, seed=run.seed, workers=run.workers
    )
    trainer = Trainer(
        model.to(device),
        recipe,
        device,
        loader.batches_per_epoch,
        ranks=ranks,
        folder=run.metrics,
    )
    history: list[dict[str, Any]] = []
    is_new = checkpoint is None
    if checkpoint is not None:
        trainer.load_state_dict(checkpoint["state"])
        history = checkpoint["history"]
        checkpoint = None  # no second copy of the weights for the rest of the run
        if run_files.is_finished(run, recipe, history):
            log.info("The run is finished: nothing is changed")
            return artifacts.read_json(run.metrics / "training.json")
        restarted = f"Restarted by torchrun ({ranks.restarts} of --max-restarts used): continuing"
        how = restarted if ranks.restarts else "Continuing"
        log.info("%s after %s", how, _position(trainer, history))
    if is_new and ranks.is_main:
        run_folder.clear(run)  # whatever can be wrong has been found right
    shapes = ", ".join(f"{width}x{height}" for height, width in loader.shapes())
    log.info("Batches are padded to one of: %s px", shapes)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal(STOPPING))
        stack.callback(loader.close)
        folder = run.output / "tensorboard" if ranks.is_main else None
        board = stack.enter_context(TensorBoardLog(folder, steps_done=trainer.steps_done))
        if is_new:
            board.settings(asdict(recipe))
        try:
            return _Session(run, settings, trainer, loader, history, stop, board).go_on()
        except UserError:
            stop.raise_received()  # a signal to every process ended the loaders, too
            raise
        except RuntimeError as error:
            told = _told(error, device)
            if told is None:
                raise
            raise told from error


def _told(error: RuntimeError, device: torch.device) -> UserError | None:
    """What a person can do about a device that is full or has failed; None of a bug."""
    reason = f"({str(error).partition(chr(10))[0]:.100})"
    if timing.is_out_of_memory(error):
        remedy = "lower --batch-size or --max-size, or use --optimizer sgd, then --resume"
        return UserError(
            f"--device {device}", f"out of memory between two batches {reason}", remedy
        )
    if "CUDA error" in str(error):  # a GPU that was lost, or an assertion on it
        remedy = "continue with --resume; where it fails again, CUDA_LAUNCH_BLOCKING=1 tells where"
        return UserError(f"--device {device}", f"has failed {reason}", remedy)
    return None


def fitting_batch_size(run: Run, recipe: Recipe, ranks: Ranks, *, resume: bool) -> int:
    """For --batch-size auto: as many images as the memory of every rank holds; a continued run
    keeps what its beginning had."""
    if resume:
        return run_files.load_last(run)["settings"]["batch_size"]
    shapes = distinct_shapes(
        run.train, batch_size=1, min_sizes=recipe.min_sizes, max_size=run.max_size
    )
    # A batch that holds images of two shapes is padded to the sides of both.
    height, width = max(h for h, _ in shapes), max(w for _, w in shapes)
    boxes = max(len(record.labels) for record in run.train.records)
    model = _build(run, recipe)
    fitting = memory.largest_batch_size(model, recipe, ranks, (height, width), boxes)
    fitting = min(fitting for (fitting,) in ranks.gather([fitting]))
    log.info("--batch-size auto: %d images of %dx%d px fit", fitting, width, height)
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)  # the report tells of the training
    return fitting


def _build(run: Run, recipe: Recipe) -> FasterRCNN:
    """A new model, or the one of `start_from`."""
    if run.start_from is not None:
        model = run.start_from.model
    else:
        model = models.build_model(
            run.architecture,
            len(run.train.class_names) + 1,
            weights=run.weights,
            min_size=run.min_size,
            max_size=run.max_size,
            anchor_sizes=run.anchor_sizes,
        )
    if recipe.trainable_stages is not None:
        set_trainable_stages(model, recipe.trainable_stages)
    return model


def build_loader(
    split: CocoSplit, recipe: Recipe, ranks: Ranks, *, max_size: int, seed: int, workers: int
) -> TrainingLoader:
    """The batches that a recipe asks for, of one rank."""
    return TrainingLoader(
        split,
        batch_size=recipe.batch_size,
        min_sizes=recipe.min_sizes,
        max_size=max_size,
        crop_probability=recipe.crop_probability,
        color_jitter=recipe.color_jitter,
        seed=seed,
        workers=workers,
        pin_memory=ranks.device.type == "cuda",
        rank=ranks.rank,
        world_size=ranks.size,
    )


def _position(trainer: Trainer, history: list[dict[str, Any]]) -> str:
    totals = trainer.totals
    if totals.epoch == len(history) + 1 and totals.step:
        return f"step {totals.step} of {trainer.steps_per_epoch} of epoch {totals.epoch}"
    return f"epoch {len(history)}"


class _Session:
    """The loop over the epochs, with the state it shares with the signal and the checkpoints."""

    def __init__(
        self,
        run: Run,
        settings: dict[str, Any],
        trainer: Trainer,
        loader: TrainingLoader,
        history: list[dict[str, Any]],
        stop: StopSignal,
        board: TensorBoardLog,
    ):
        self.run, self.settings, self.trainer, self.loader = run, settings, trainer, loader
        self.history, self.stop = history, stop
        self.ranks, self.recipe = trainer.ranks, trainer.recipe
        self.saved_at = time.monotonic()
        self.board = board
        self.drawn_at = time.monotonic()
        self.undrawn: dict[str, Callable[[], None]] = {}

    def go_on(self) -> dict[str, Any]:
        report = run_files.report(self.run, self.settings, self.trainer, self.history)
        if self.history and self.ranks.is_main:
            run_files.write_metrics(self.run, report)
        for epoch in range(len(self.history) + 1, self.recipe.epochs + 1):
            if run_files.stopped_early(self.history, self.recipe.patience):
                log.info("No better map for %d epochs: the run ends", self.recipe.patience)
                break
            report = self._epoch(epoch)
        self._draw()
        if self.ranks.is_main:
            run_files.save(
                self.run, "trained_model.pth", self.trainer.evaluated_model(), self.settings, report
            )
        self.ranks.barrier()
        return report

    def _epoch(self, epoch: int) -> dict[str, Any]:
        trainer, recipe = self.trainer, self.recipe
        if trainer.totals.epoch != epoch:
            trainer.start_epoch(epoch)
        batches = self.loader.epoch(epoch, first_batch=trainer.totals.step)
        left = trainer.steps_per_epoch - trainer.totals.step
        label = f"epoch {epoch}/{recipe.epochs}"
        if self.ranks.is_main and self.trainer.steps_done == 0:
            batches = self._with_picture(batches)
        shown = cli.progress(batches, total=left, label=label, status=trainer.status)
        trainer.train_epoch(shown, self._after_step)
        result = trainer.finish_epoch()
        if not trainer.monitor.in_a_row:
            self._save_last()  # a run killed while it validates has lost nothing
        model = trainer.evaluated_model()
        val = self._validate(model)
        if not math.isfinite(val.losses["loss"]):
            what = "the loss on the validation images is no finite number: the model has diverged"
            raise UserError(label, what, nonfinite.REMEDY)
        row = _epoch_row(epoch, result, val)
        report = run_files.report(self.run, self.settings, trainer, [*self.history, row])
        if self.ranks.is_main and report["best"]["epoch"] == epoch:
            run_files.save(self.run, "best_model.pth", model, self.settings, report)
        self.history.append(row)
        self._save_last()
        if self.ranks.is_main:
            self._tell(report, row, val)
        self._stop_if_asked()
        return report

    def _validate(self, model: FasterRCNN) -> Validation:
        batch_size = self.recipe.batch_size
        while True:
            try:
                return validate(
                    model,
                    self.run.val,
                    self.trainer.device,
                    ranks=self.ranks,
                    workers=self.run.workers,
                    batch_size=batch_size,
                    after_batch=self._stop_if_alone,
                )
            except RuntimeError as error:  # before anything is shared with the other ranks
                if batch_size == 1 or not timing.is_out_of_memory(error):
                    raise
            batch_size //= 2

    def _with_picture(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Draws the first batch: a person sees wrong boxes before the first epoch is over."""
        for index, batch in enumerate(batches):
            if index == 0:
                path = self.run.metrics / "training_batch.png"
                names = [Path(name).name for name in batch.paths]
                classes = self.run.train.class_names
                plots.training_batch(
                    batch.images, batch.sizes, batch.targets, classes, path, titles=names
                )
                self.board.picture("training batch", path, 0)
            yield batch

    def _tell(self, report: dict[str, Any], row: dict[str, Any], val: Validation) -> None:
        run_files.write_metrics(self.run, report)
        log.info(
            "epoch %d/%d: loss %.3f, val loss %.3f, map %.3f, map_50 %.3f (%.1f images/s, %.0f s)",
            *(row["epoch"], self.recipe.epochs, row["train_loss"], row["val"]["loss"]),
            *(row["val"]["map"], row["val"]["map_50"], row["images_per_s"], row["seconds"]),
        )
        losses = [epoch["val"]["loss"] for epoch in report["epochs"]]
        if losses[-1] > DIVERGED * min(losses):
            log.warning("The validation loss rises: the run diverges. Lower --lr")
        steps, metrics = self.trainer.steps_done, self.run.metrics
        self.board.epoch(steps, row, peak_memory_mib=report["peak_memory_mib"])

        def draw_curves() -> None:
            plots.training_curves(report["epochs"], metrics / "training_curves.png")

        def draw_best() -> None:
            path = metrics / "val_predictions.png"
            plots.predictions_grid(self.run.val, val.detections, path)
            self.board.picture("validation predictions", path, steps)
            plots.per_class_ap(self.run.val, val.scores["per_class"], metrics / "per_class_ap.png")

        self.undrawn["curves"] = draw_curves
        if report["best"]["epoch"] == row["epoch"]:
            self.undrawn["best"] = draw_best
            head = run_files.evaluation_head(self.run, self.settings, self.trainer.device)
            evaluation_files.write(metrics, head, self.run.val, val.scores, val.detections)
        if time.monotonic() - self.drawn_at > PICTURES_EVERY_S:
            self._draw()

    def _draw(self) -> None:
        """Draws what the last epochs have left to draw."""
        for draw in self.undrawn.values():
            draw()
        self.undrawn, self.drawn_at = {}, time.monotonic()

    def _after_step(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Saves when it is time or a signal asks for it; all ranks do so after the same step."""
        rate = self.trainer.optimizer.param_groups[0]["lr"]
        self.board.step(self.trainer.steps_done, losses, rate)
        due = time.monotonic() - self.saved_at > self.run.save_every_s
        if self.ranks.any(due or self.stop.received is not None):
            self._save_last()
            self._stop_if_asked()

    def _stop_if_alone(self) -> None:
        """Within a validation, which is repeated when the run goes on; among several processes
        each has its own number of batches, and they stop after it."""
        if self.ranks.size == 1:
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.ranks.any(self.stop.received is not None):
            if self.ranks.is_main:
                log.warning("Stopped. Continue with: %s", self._resume_command())
            self._draw()
            self.stop.raise_received()
            raise cli.Terminated  # another rank was asked

    def _resume_command(self) -> str:
        launcher = ["python"]
        if self.ranks.size > 1:
            per_node = int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks.size))
            launcher = ["torchrun", f"--nproc_per_node={per_node}"]
            if per_node < self.ranks.size:
                launcher += [f"--nnodes={self.ranks.size // per_node}", "--rdzv-backend=c10d"]
                launcher += ["--rdzv-endpoint=HOST:PORT"]
        flags = ("--overwrite", "--resume")
        return f"{environment.command_line(without=flags, launcher=launcher)} --resume"

    def _save_last(self) -> None:
        state = self.trainer.state_dict()
        if self.ranks.is_main:
            report = run_files.report(self.run, self.settings, self.trainer, self.history)
            run_files.save(
                self.run,
                "last.pth",
                self.trainer.model,
                self.settings,
                report,
                keep_previous=True,
                state=state,
            )
        self.saved_at = time.monotonic()


def _epoch_row(epoch: int, result: EpochResult, val: Validation) -> dict[str, Any]:
    scores = {key: val.scores[key] for key in ("map", "map_50", "map_75", "per_class")}
    return {
        "epoch": epoch,
        "train_loss": result.train_loss,
        "losses": result.losses,
        "val": {**scores, "loss": val.losses["loss"], "losses": val.losses},
        "learning_rate": result.learning_rate,
        "skipped_steps": result.skipped_steps,
        "parts": result.parts,
        "seconds": result.seconds,
        "images_per_s": result.images / result.seconds,
    }
