"""A training for TensorBoard.

    tensorboard --logdir outputs/models/tensorboard

Everything is placed at the number of optimizer steps done, the values of an epoch at its last one:
one axis for all, on which a continued run cuts off what was written after its checkpoint.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli import log

if TYPE_CHECKING:
    import torch

STEP_INTERVAL = 20  # reading the losses of a step waits for the GPU
EVENT_FILES = "events.out.tfevents.*"
METRICS = ("val/map", "val/map_50", "val/loss")  # of a run, beside its hyperparameters


class TensorBoardLog:
    """Writes the scalars, pictures and settings of a run; a context manager.

    Without the tensorboard package, and after a file could not be written, the methods do nothing:
    no training is lost for it.

    Args:
        folder: where the event files go; those of a run that is replaced are deleted. None writes
            nothing: of many processes one keeps the log.
        steps_done: 0 at the start; a continued run gives the steps of its checkpoint, and later
            ones that an interrupted run left in the folder are not shown.
    """

    def __init__(self, folder: Path | None, *, steps_done: int = 0):
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            log.info("No TensorBoard log (%s): pip install tensorboard", error)
            return
        try:
            if steps_done == 0:
                for replaced in folder.glob(EVENT_FILES):
                    replaced.unlink()
            self._writer = SummaryWriter(str(folder), purge_step=steps_done + 1)
        except (OSError, UnicodeEncodeError) as error:  # also of a folder whose name is no UTF-8
            log.warning("No TensorBoard log: %s", error)

    def __enter__(self) -> "TensorBoardLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settings(self, recipe: Mapping[str, Any]) -> None:
        """The recipe as text and as hyperparameters; once, at the start of a run."""
        if self._writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        values = {
            name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
            for name, value in recipe.items()
        }
        rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in values.items())

        def write(writer: Any) -> None:
            writer.add_text("recipe", f"| setting | value |\n|---|---|\n{rows}", 0)
            # SummaryWriter.add_hparams would start another run in a folder of its own.
            for summary in hparams(values, dict.fromkeys(METRICS, 0.0)):
                writer.file_writer.add_summary(summary, 0)
            writer.flush()

        self._write(write)

    def step(
        self, steps_done: int, losses: Mapping[str, "torch.Tensor"], learning_rate: float
    ) -> None:
        """The losses (0-dim tensors) of every STEP_INTERVAL-th step; the others are not read."""
        if self._writer is None or steps_done % STEP_INTERVAL:
            return
        import torch

        names = list(losses)
        values = torch.stack([losses[name].detach().float() for name in names]).tolist()
        scalars = {f"step/{name}": value for name, value in zip(names, values, strict=True)}
        scalars |= {"step/loss": sum(values), "step/learning_rate": learning_rate}
        self._write(lambda writer: _add_scalars(writer, scalars, steps_done))

    def epoch(
        self,
        steps_done: int,
        row: Mapping[str, Any],
        *,
        peak_memory_mib: float | None = None,
    ) -> None:
        """A row of training.json: `epoch`, `train_loss`, `losses`, `learning_rate`,
        `images_per_s`, and `val` with the means and its own `losses`."""
        scalars = {
            "epoch": row["epoch"],
            "train/loss": row["train_loss"],
            **{f"train/{name}": value for name, value in row["losses"].items()},
            **{f"val/{name}": row["val"][name] for name in ("map", "map_50", "map_75")},
            **{f"val/{name}": value for name, value in row["val"]["losses"].items()},
            "learning_rate": row["learning_rate"],
            "images_per_s": row["images_per_s"],
        }
        if peak_memory_mib is not None:
            scalars["peak_memory_mib"] = peak_memory_mib

        def write(writer: Any) -> None:
            _add_scalars(writer, scalars, steps_done)
            writer.flush()

        self._write(write)

    def picture(self, name: str, path: Path, steps_done: int) -> None:
        """A picture file, for instance one that `plots` drew."""
        if self._writer is None:
            return
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._write(lambda writer: writer.add_image(name, pixels, steps_done, dataformats="HWC"))

    def close(self) -> None:
        self._write(lambda writer: writer.close())
        self._writer = None

    def _write(self, action: Callable[[Any], None]) -> None:
        if self._writer is None:
            return
        try:
            action(self._writer)
        except OSError as error:  # a full disk, for instance
            log.warning("The TensorBoard log ends here: %s", error)
            self._writer = None


def _add_scalars(writer: Any, scalars: Mapping[str, float], steps_done: int) -> None:
    for name, value in scalars.items():
        writer.add_scalar(name, value, steps_done)


def _cell(value: object) -> str:
    """Text inside a Markdown table."""
    return " ".join(str(value).replace("|", "\\|").split())
