"""Which layers of a detector to leave in float so that INT8 costs no more mAP than allowed."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.cli import log
from common.coco import CocoSplit, ImageRecord, read_image
from common.evaluation import coco_map
from common.models import Detections, Predictor
from phase4_deployment.formats import onnx_fp32
from phase4_deployment.formats.base import OK, Format, Ingredients

CONFIDENT = 0.5  # FP32 detections from here on count as what an INT8 model should find


class Quantiser(Protocol):
    """Makes INT8 of one FP32 .onnx, for one runtime.

    Attributes:
        source: the .onnx.
        calibration: training images that fix the ranges.
        suffix: of the files it writes.
    """

    @property
    def source(self) -> Path: ...

    @property
    def calibration(self) -> Sequence[ImageRecord]: ...

    @property
    def suffix(self) -> str: ...

    def groups(self) -> dict[str, list[str]]:
        """Parts of the network -> names of those of their nodes that it puts into INT8."""

    def write(self, target: Path, float_nodes: Sequence[str]) -> None:
        """Quantises all but these nodes of the source."""

    def predictor(self, file: Path) -> Predictor:
        """Of a file it wrote."""

    def count_int8_layers(self, file: Path) -> tuple[int, int]:
        """(quantised, all) convolutions and matrix products of a file it wrote."""


@dataclass(frozen=True)
class StaticResult:
    """What `quantize_within_budget` made.

    Attributes:
        map_drop: mAP of FP32 minus mAP of INT8 on the validation images.
        float_groups: parts of the network left in float to hold the budget.
        accepted: whether the budget holds.
        int8_layers, layers: quantised and quantisable Conv, Gemm and MatMul nodes.
        trials: every attempt as {"float_groups", "map", "map_drop"}.
    """

    map_drop: float
    float_groups: tuple[str, ...]
    accepted: bool
    int8_layers: int
    layers: int
    trials: tuple[dict[str, Any], ...]


def quantize_within_budget(
    quantiser: Quantiser,
    target: Path,
    measure_map: Callable[[Predictor], float],
    fp32_map: float,
    max_map_drop: float,
) -> StaticResult:
    """Quantises into `target`, leaving in float as little as holds the mAP budget.

    When quantising everything costs too much, the parts of the network are ordered by the damage
    that each does alone on the calibration images, and the fewest of the worst that must stay in
    float are found by bisection.

    Args:
        measure_map: mAP of a Predictor on the validation images.
        fp32_map: mAP of the source on them.
        max_map_drop: the budget; when no choice holds it the result is not `accepted`.
    """
    groups = quantiser.groups()
    trials: list[dict[str, Any]] = []
    kept_drop: dict[int, float] = {}

    def attempt(float_groups: Sequence[str]) -> bool:
        nodes = [node for group in float_groups for node in groups[group]]
        quantiser.write(target, nodes)
        value = measure_map(quantiser.predictor(target))
        drop = kept_drop[len(float_groups)] = fp32_map - value
        trials.append({"float_groups": list(float_groups), "map": value, "map_drop": drop})
        log.info("INT8 with %s in float: mAP drop %.4f", ", ".join(float_groups) or "nothing", drop)
        return drop <= max_map_drop

    worst: list[str] = []
    count = 0
    accepted = attempt(())
    if not accepted:
        worst = rank_by_damage(quantiser, groups)[:-1]  # all in float is not INT8
        low, count = 0, len(worst)
        accepted = attempt(worst)
        while accepted and count - low > 1:
            middle = (low + count) // 2
            low, count = (low, middle) if attempt(worst[:middle]) else (middle, count)
        if len(trials[-1]["float_groups"]) != count:
            accepted = attempt(worst[:count])
    int8_layers, layers = quantiser.count_int8_layers(target)
    return StaticResult(
        kept_drop[count], tuple(worst[:count]), accepted, int8_layers, layers, tuple(trials)
    )


def rank_by_damage(quantiser: Quantiser, groups: dict[str, list[str]]) -> list[str]:
    """Names of the groups, first the one whose quantisation alone changes the detections most.

    The change is measured on calibration images, as mAP with FP32's confident detections as the
    truth, so that the validation images do not choose.
    """
    calibration = quantiser.calibration
    images = [read_image(record.path, (record.width, record.height)) for record in calibration]
    predict = onnx_fp32.predictor(quantiser.source)
    expected = [predict([image])[0] for image in images]
    classes = max((int(found.labels.max()) for found in expected if len(found.labels)), default=1)
    truth = _as_truth(calibration, expected, classes)
    agreement = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"part{quantiser.suffix}"
        for name in groups:
            others = [node for other in groups if other != name for node in groups[other]]
            quantiser.write(target, others)
            predict = quantiser.predictor(target)
            value = coco_map(truth, [predict([image])[0] for image in images])["map"]
            agreement[name] = 1.0 if value is None else value
            log.info("  %s alone in INT8: agreement %.3f", name, agreement[name])
    return sorted(agreement, key=lambda name: agreement[name])


def _as_truth(
    records: Sequence[ImageRecord], detections: Sequence[Detections], classes: int
) -> CocoSplit:
    """A split whose ground truth is a detector's confident output."""
    replaced = []
    for record, found in zip(records, detections, strict=True):
        sure = found.scores >= CONFIDENT
        boxes = found.boxes_xyxy[sure]
        sides = boxes[:, 2:] - boxes[:, :2]
        replaced.append(
            replace(
                record,
                boxes_xyxy=boxes,
                labels=found.labels[sure],
                is_crowd=np.zeros(len(boxes), bool),
                areas=sides.prod(axis=1),
            )
        )
    names = tuple(str(label) for label in range(1, classes + 1))
    return CocoSplit(Path("detections"), tuple(replaced), names, tuple(range(1, classes + 1)))


def format_within_budget(
    name: str,
    runtime: str,
    same_runtime: str,
    ingredients: Ingredients,
    file: Path,
    quantiser: Quantiser,
) -> Format:
    """Quantises into `file` within the mAP budget, if that can be; the row says what it took."""
    val, budget = ingredients.val, ingredients.max_map_drop
    log.info("Quantising %s", file.name)
    fp32_map = val.map_of(onnx_fp32.predictor(quantiser.source))
    result = quantize_within_budget(quantiser, file, val.map_of, fp32_map, budget)
    log.info(
        "%s: %d of %d layers became INT8; left in float by the search: %s",
        file.name,
        result.int8_layers,
        result.layers,
        ", ".join(result.float_groups) or "none",
    )
    drop = f"mAP drop {result.map_drop:.4f} over the budget of {budget}"
    return Format(
        name,
        file,
        runtime,
        quantiser.predictor(file),
        same_runtime=same_runtime,
        max_map_drop=budget,
        status=OK if result.accepted else f"rejected: {drop}",
        extra={
            "quantized": {"int8": result.int8_layers, "all": result.layers},
            "float_groups": list(result.float_groups),
            "search": list(result.trials),
        },
    )
