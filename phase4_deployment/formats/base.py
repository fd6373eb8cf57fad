"""What a format is, and what one is built from."""

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import environment
from common.cli import log

if TYPE_CHECKING:
    from common.coco import ImageRecord
    from common.models import LoadedModel, Predictor
    from phase4_deployment.measuring import ValImages

OK = "ok"


@dataclass
class Format:
    """One way of running the detector.

    Attributes:
        name: of the row.
        file: what is shipped; None where there is nothing to ship.
        runtime: "pytorch", "onnxruntime" or "openvino".
        predict: None when the format cannot run; `status` says why.
        same_runtime: name of the FP32 format of the same runtime, if this is not it.
        max_map_drop: mAP it may lose; None asks for equality with the baseline (FP32).
        is_shipped: whether its files go into the package, or it is there for comparison only.
        status: "ok", "rejected: …", "failed: …", "unsupported: …" or "unavailable: …".
        extra: further keys of the row.
    """

    name: str
    file: Path | None
    runtime: str
    predict: "Predictor | None"
    same_runtime: str | None = None
    max_map_drop: float | None = None
    is_shipped: bool = True
    status: str = OK
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """What has to be there to load it."""
        if self.file is None:
            return []
        beside = [self.file.with_suffix(".bin")] if self.file.suffix == ".xml" else []
        return [self.file, *beside]


@dataclass
class Ingredients:
    """What formats are built from.

    Attributes:
        loaded: the checkpoint, on the CPU.
        folder: where files that may be shipped are written.
        scratch: where other files are written.
        calibration: images of the train split, for the ranges of INT8.
        val: the images that judge.
        max_map_drop: mAP that a format of fewer bits may lose on them.
        onnx_name: of the FP32 .onnx that other formats start from.
        onnx_parity: of that file with PyTorch, once it is exported.
        max_proposals: that exported graphs look at, while the baseline stays the whole model; None
            leaves its own number.
    """

    loaded: "LoadedModel"
    folder: Path
    scratch: Path
    calibration: "tuple[ImageRecord, ...]"
    val: "ValImages"
    max_map_drop: float
    onnx_name: str = "model.onnx"
    onnx_parity: dict[str, Any] | None = None
    max_proposals: int | None = None

    @property
    def onnx_path(self) -> Path:
        return self.folder / self.onnx_name

    @cached_property
    def exported(self) -> "LoadedModel":
        """What the graphs are made of: the checkpoint, or a copy that looks at fewer proposals."""
        from common.models import limit_proposals

        if not self.has_fewer_proposals:
            if self.max_proposals:
                log.info("This model looks at %(model)d proposals at most", self.proposals)
            return self.loaded
        text = "Exported graphs look at %(exported)d proposals, the baseline at %(model)d"
        log.info(text, self.proposals)
        limited = copy.deepcopy(self.loaded.model)
        limit_proposals(limited, self.proposals["exported"])
        return replace(self.loaded, model=limited)

    @property
    def proposals(self) -> dict[str, int]:
        """How many the `model` looks at and how many the `exported` graphs."""
        from common.models import proposals_of

        own = proposals_of(self.loaded.model)
        return {"model": own, "exported": min(own, self.max_proposals or own)}

    @property
    def has_fewer_proposals(self) -> bool:
        return self.proposals["exported"] < self.proposals["model"]

    @property
    def fp32_map_drop(self) -> float | None:
        """What a graph in FP32 may lose, see `Format`: nothing where it is the whole model."""
        return self.max_map_drop if self.has_fewer_proposals else None

    @cached_property
    def baseline_map(self) -> float:
        """mAP of the checkpoint on the val images, from which the budget counts."""
        import torch

        from common.models import stock_predictor

        return self.val.map_of(stock_predictor(self.loaded.model, torch.device("cpu")))

    def onnx(self) -> Path:
        """The exported graph in FP32, which other formats start from; the first to ask exports."""
        from phase4_deployment.export_onnx import GATE_IMAGES, export_onnx

        exported, path = self.exported, self.onnx_path
        if self.onnx_parity is None:
            log.info("Exporting %s", path.name)
            images = self.val.images[:GATE_IMAGES]
            self.onnx_parity = export_onnx(exported, path, images=images)
        return path


def unavailable(name: str, runtime: str, why: str) -> Format:
    """A row for a format that cannot be made or run here."""
    return Format(name, None, runtime, None, status=f"unavailable: {why}")


def missing(*packages: str) -> str | None:
    """Names the first of the packages that is not installed."""
    return next((name for name in packages if not environment.is_installed(name)), None)
