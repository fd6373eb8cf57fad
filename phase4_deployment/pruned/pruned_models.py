"""The pruned versions of a detector that are compared: made, fine-tuned, saved, read back."""

import copy
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.cli import log
from common.models import LoadedModel, load_model, save_model
from phase4_deployment.pruned import channel_removal, sparsity
from phase4_deployment.pruned.finetuning import finetune

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

UNPRUNED = "unpruned"
ZERO_WEIGHTS, ZERO_CHANNELS, REMOVED_CHANNELS = "zero_weights", "zero_channels", "removed_channels"
KINDS = {  # of --method
    "unstructured": (ZERO_WEIGHTS,),
    "structured": (ZERO_CHANNELS, REMOVED_CHANNELS),
    "both": (ZERO_WEIGHTS, ZERO_CHANNELS, REMOVED_CHANNELS),
}
REMOVAL_TOLERANCE = 1e-3  # of the largest output; float32 sums in another order differ by 1e-5
COMPRESSION_BLOCK = 1 << 20
CPU = torch.device("cpu")


@dataclass(frozen=True)
class PruningPlan:
    """What is pruned how far, and trained afterwards.

    Attributes:
        amounts: shares in (0, 1), of the weights or of the channels of a layer.
        parts: of common.hidden_channels.
        scope: of `sparsity.zero_weights`.
        multiple: of `channel_removal.zero_channels`.
        finetune_epochs: 0 for none.
        finetune_lr: None for the one that train.py chooses.
    """

    kinds: tuple[str, ...]
    amounts: tuple[float, ...]
    parts: tuple[str, ...]
    scope: str
    multiple: int
    finetune_epochs: int
    finetune_lr: float | None


@dataclass
class PrunedModel:
    """One version of the detector, as its file has it.

    Attributes:
        kind: UNPRUNED, ZERO_WEIGHTS, ZERO_CHANNELS or REMOVED_CHANNELS.
        amount: what was asked for.
        file: its checkpoint; the model is read back from there.
        before_finetuning: the model as pruned, where it was trained afterwards.
        facts: further keys of the row.
        fault: what is wrong with it, or "".
    """

    kind: str
    amount: float
    model: "FasterRCNN"
    file: Path
    before_finetuning: "FasterRCNN | None" = None
    facts: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def name(self) -> str:
        return self.kind if self.kind == UNPRUNED else f"{self.kind}_{self.amount:g}"


def make_all(
    loaded: LoadedModel,
    plan: PruningPlan,
    folder: Path,
    *,
    data_path: Path | None,
    device_name: str,
    seed: int,
) -> list[PrunedModel]:
    """The unpruned model and all versions that the plan asks for, on the CPU.

    Args:
        folder: for the checkpoints and trainings.
        data_path: data set to fine-tune on; None for the demo data.
    """
    made = [_saved(loaded, UNPRUNED, 0.0, loaded.model, folder)]
    for version in _prune_all(loaded, plan, folder):
        if plan.finetune_epochs and version.kind != ZERO_CHANNELS:  # removed ones are the same
            log.info("Fine-tuning %s, epochs: %d", version.name, plan.finetune_epochs)
            best = finetune(
                version.file,
                folder / version.name,
                data_path=data_path,
                epochs=plan.finetune_epochs,
                learning_rate=plan.finetune_lr,
                keep_zeros=version.kind == ZERO_WEIGHTS,
                device_name=device_name,
                seed=seed,
            )
            version = _finetuned(loaded, version, best, folder)
        made.append(version)
    return made


def _prune_all(loaded: LoadedModel, plan: PruningPlan, folder: Path) -> Iterator[PrunedModel]:
    if ZERO_WEIGHTS in plan.kinds:
        for amount in plan.amounts:
            model = copy.deepcopy(loaded.model)
            sparsity.zero_weights(model, amount, plan.parts, plan.scope)
            yield _saved(loaded, ZERO_WEIGHTS, amount, model, folder)
    if REMOVED_CHANNELS in plan.kinds:
        for amount in plan.amounts:
            yield from _without_channels(loaded, plan, amount, folder)


def _without_channels(
    loaded: LoadedModel, plan: PruningPlan, amount: float, folder: Path
) -> Iterator[PrunedModel]:
    """The same channels zeroed, and removed."""
    zeroed = copy.deepcopy(loaded.model)
    kept = channel_removal.zero_channels(zeroed, amount, plan.parts, plan.multiple)
    removed = copy.deepcopy(zeroed)
    channel_removal.remove_channels(removed, kept)
    difference = channel_removal.largest_difference(zeroed, removed)
    facts = {"layers_pruned": len(kept), "difference_to_zeroed": difference}
    yield _saved(loaded, ZERO_CHANNELS, amount, zeroed, folder, layers_pruned=len(kept))
    version = _saved(loaded, REMOVED_CHANNELS, amount, removed, folder, **facts)
    if not difference <= REMOVAL_TOLERANCE:  # not a number is no proof, either
        version.fault = f"removal changed the outputs by {difference:.2g}"
    yield version


def _finetuned(loaded: LoadedModel, pruned: PrunedModel, best: Path, folder: Path) -> PrunedModel:
    """The version in the place of `pruned`; the training's own entries of `best` are not kept."""
    model = load_model(best, CPU).model
    version = _saved(loaded, pruned.kind, pruned.amount, model, folder, **pruned.facts)
    version.before_finetuning, version.fault = pruned.model, pruned.fault
    if pruned.kind == ZERO_WEIGHTS:
        zeros = [sparsity.zero_share(each) for each in (pruned.model, model)]
        if zeros[1] < zeros[0]:
            version.fault = f"training filled zeros: {zeros[1]:.4f} of {zeros[0]:.4f} are left"
    return version


def _saved(
    loaded: LoadedModel,
    kind: str,
    amount: float,
    model: "FasterRCNN",
    folder: Path,
    **facts: Any,
) -> PrunedModel:
    """Saves a model and takes the one that is read back: what is measured is what is shipped."""
    version = PrunedModel(kind, amount, model, folder / f"{kind}_{amount:g}.pth", facts=facts)
    save(version, version.file, loaded, {})
    version.model = load_model(version.file, CPU).model
    return version


def save(version: PrunedModel, path: Path, loaded: LoadedModel, summary: dict[str, Any]) -> None:
    """Writes a checkpoint that `common.models.load_model` reads, as narrow as the model is."""
    save_model(
        path,
        version.model.cpu(),
        architecture=loaded.architecture,
        class_names=loaded.class_names,
        category_ids=loaded.category_ids,
        summary=summary,
    )


def compressed_bytes(path: Path) -> int:
    """How large a .zip makes a file (deflate at its usual level)."""
    packer = zlib.compressobj()
    with open(path, "rb") as file:
        size = sum(len(packer.compress(block)) for block in _blocks(file))
    return size + len(packer.flush())


def _blocks(file: Any) -> Iterable[bytes]:
    return iter(lambda: file.read(COMPRESSION_BLOCK), b"")


def parameter_count(model: "FasterRCNN") -> int:
    """Numbers in all weights, those of frozen normalisation (buffers) included."""
    return sum(values.numel() for values in model.state_dict().values())
