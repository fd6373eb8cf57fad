"""Which layers of a detector to leave in float so that INT8 costs no more mAP than allowed."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
        estimators: names of the ways it has to choose the range of an activation.
    """

    @property
    def source(self) -> Path: ...

    @property
    def calibration(self) -> Sequence[ImageRecord]: ...

    @property
    def suffix(self) -> str: ...

    @property
    def estimators(self) -> tuple[str, ...]: ...

    def groups(self) -> dict[str, list[str]]:
        """Parts of the network -> names of those of their nodes that it puts into INT8."""

    def write(self, target: Path, float_nodes: Sequence[str], estimator: str) -> None:
        """Quantises all but these nodes of the source, with ranges by one of `estimators`."""

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
        estimator: of the ranges of activations.
        accepted: whether the budget holds.
        int8_layers, layers: quantised and quantisable Conv, Gemm and MatMul nodes.
        trials: every attempt as {"float_groups", "map", "map_drop"}.
    """

    map_drop: float
    float_groups: tuple[str, ...]
    estimator: str
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

    The ranges of the activations are chosen first, by what all in INT8 finds on the calibration
    images. When quantising everything still costs too much, the parts of the network are ordered by
    the damage that each does alone on these images, and the fewest of the worst that must stay in
    float are found by bisection. The validation images judge, and choose nothing else.

    Args:
        measure_map: mAP of a Predictor on the validation images.
        fp32_map: mAP that the budget counts from.
        max_map_drop: the budget; when no choice holds it, the result is the one that costs least,
            and not `accepted`.
    """
    groups = quantiser.groups()
    agreement = Agreement(quantiser)
    estimator = best_estimator(quantiser, agreement)
    trials: list[dict[str, Any]] = []
    drops: dict[int, float] = {}  # parts in float -> mAP drop

    def attempt(float_groups: Sequence[str]) -> bool:
        nodes = [node for group in float_groups for node in groups[group]]
        quantiser.write(target, nodes, estimator)
        value = measure_map(quantiser.predictor(target))
        drop = drops[len(float_groups)] = fp32_map - value
        trials.append({"float_groups": list(float_groups), "map": value, "map_drop": drop})
        log.info("INT8 with %s in float: mAP drop %.4f", ", ".join(float_groups) or "nothing", drop)
        return drop <= max_map_drop

    if not attempt(()):
        worst = rank_by_damage(quantiser, groups, estimator, agreement)
        del worst[-1]  # all in float is not INT8
        low, high = 0, len(worst)
        holds = attempt(worst)
        while holds and high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if attempt(worst[:middle]) else (middle, high)
        chosen = high if holds else min(drops, key=lambda count: drops[count])
        if len(trials[-1]["float_groups"]) != chosen:
            attempt(worst[:chosen])
    last = trials[-1]
    return StaticResult(
        last["map_drop"],
        tuple(last["float_groups"]),
        estimator,
        last["map_drop"] <= max_map_drop,
        *quantiser.count_int8_layers(target),
        tuple(trials),
    )


class Agreement:
    """How much of what FP32 finds on the calibration images a quantised file finds there: mAP with
    FP32's confident detections as the truth, 1.0 where there are none."""

    def __init__(self, quantiser: Quantiser):
        self._quantiser = quantiser

    @cached_property
    def _images(self) -> list[np.ndarray]:
        records = self._quantiser.calibration
        return [read_image(record.path, (record.width, record.height)) for record in records]

    @cached_property
    def _truth(self) -> CocoSplit:
        predict = onnx_fp32.predictor(self._quantiser.source)
        expected = [predict([image])[0] for image in self._images]
        classes = max(
            (int(found.labels.max()) for found in expected if len(found.labels)), default=1
        )
        return _as_truth(self._quantiser.calibration, expected, classes)

    def of(self, float_nodes: Sequence[str], estimator: str) -> float:
        """Of the file with these nodes in float and the others in INT8."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"part{self._quantiser.suffix}"
            self._quantiser.write(file, float_nodes, estimator)
            predict = self._quantiser.predictor(file)
            found = [predict([image])[0] for image in self._images]
        value = coco_map(self._truth, found)["map"]
        return 1.0 if value is None else value


def best_estimator(quantiser: Quantiser, agreement: Agreement) -> str:
    """The first of the quantiser's ways to choose ranges with which all in INT8 finds most."""
    if len(quantiser.estimators) == 1:
        return quantiser.estimators[0]
    found = {name: agreement.of((), name) for name in quantiser.estimators}
    for name, value in found.items():
        log.info("  all in INT8, ranges %s: agreement %.3f", name, value)
    return max(found, key=lambda name: found[name])


def rank_by_damage(
    quantiser: Quantiser, groups: dict[str, list[str]], estimator: str, agreement: Agreement
) -> list[str]:
    """Names of the groups, first the one whose quantisation alone changes the detections most."""
    found = {}
    for name in groups:
        others = [node for other in groups if other != name for node in groups[other]]
        found[name] = agreement.of(others, estimator)
        log.info("  %s alone in INT8: agreement %.3f", name, found[name])
    return sorted(found, key=lambda name: found[name])


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
    measure, budget = ingredients.val.map_of, ingredients.max_map_drop
    log.info("Quantising %s", file.name)
    result = quantize_within_budget(quantiser, file, measure, ingredients.baseline_map, budget)
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
            "ranges": result.estimator,
            "search": list(result.trials),
        },
    )
