"""Size, speed, accuracy and parity of the formats of one detector, all in one interleaved run."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common import timing
from common.cli import log
from common.coco import CocoSplit, read_image
from common.comparison import MIN_EFFECT, MIN_ROUNDS, compare, interval_text
from common.evaluation import coco_map, compare_detections
from common.models import Detections, Predictor
from phase4_deployment.checks.parity import LOOSEST
from phase4_deployment.formats import pytorch_fp32
from phase4_deployment.formats.base import OK, Format

if TYPE_CHECKING:
    import torch

BASELINE = pytorch_fp32.NAME
MIN_MATCHED, MAX_BOX_ERROR_PX, MAX_MAP_CHANGE = 0.99, 0.5, 0.001  # of a format in FP32
BATCH_ROUNDS = 3  # timed rounds of a batch above the first: throughput needs no percentiles


class ValImages:
    """Decoded validation images and the mAP of predictors on them, one image at a time."""

    def __init__(self, split: CocoSplit, max_images: int):
        self.split = split
        self.images = [read_image(r.path, (r.width, r.height)) for r in split.records[:max_images]]

    def detect(self, predict: Predictor) -> list[Detections]:
        return [predict([image])[0] for image in self.images]

    def map_of(self, predict: Predictor) -> float:
        return coco_map(self.split, self.detect(predict))["map"] or 0.0

    def batch(self, size: int) -> list[np.ndarray]:
        """`size` images of the most common shape, repeated when there are fewer."""
        shapes = Counter(image.shape for image in self.images)
        common = max(shapes, key=lambda shape: (shapes[shape], shape))
        same = [image for image in self.images if image.shape == common]
        return [same[i % len(same)] for i in range(size)]


def measure_formats(
    formats: Sequence[Format],
    val: ValImages,
    *,
    rounds: int,
    batch_sizes: Sequence[int],
    time_budget_s: float,
    device: "torch.device",
    seed: int,
    latency_budget_ms: float | None = None,
) -> tuple[list[dict[str, Any]], list[int]]:
    """Measures every format that runs against the first, the stock model in eager FP32.

    Accuracy and parity come from single images. Times are end to end: uint8 RGB images in host
    memory in, detections in host memory out.

    Args:
        rounds: timed rounds at batch size 1, at most.
        batch_sizes: further ones are timed as long as the time budget is expected to hold.
        time_budget_s: for all timing together, roughly.
        latency_budget_ms: what p90 of a batch may take, for `batch_size_within_budget`.

    Returns:
        one row per format (status "rejected: …" where it is beyond its tolerance), and the batch
        sizes that no longer fitted.
    """
    running = [item for item in formats if item.predict is not None]
    accuracy = _accuracy(running, val)
    times, skipped = _time(running, val, rounds, batch_sizes, time_budget_s, device, seed)
    rows = []
    for item in formats:
        row: dict[str, Any] = {
            "name": item.name,
            "file": None if item.file is None else item.file.name,
            "runtime": item.runtime,
            "size_mib": _size_mib(item),
            "latency_ms": None,
            "throughput_img_s": None,
            "optimal_batch_size": None,
            "batch_size_within_budget": None,
            "batches": [],
            **accuracy.get(item.name, {"map": None, "map_50": None, "parity": None}),
            "speedup": None,
            "speedup_same_runtime": None,
            "peak_memory_mib": None,
            "cold_start": None,
            "status": item.status,
            **item.extra,
        }
        if item.name in accuracy:
            row |= _speed(item, times, seed, latency_budget_ms)
            row["status"] = verdict(item, row, accuracy[formats[0].name]["map"])
        rows.append(row)
        _log_row(row)
    return rows, skipped


def _size_mib(item: Format) -> float | None:
    return sum(file.stat().st_size for file in item.files) / timing.MIB if item.files else None


def _accuracy(formats: Sequence[Format], val: ValImages) -> dict[str, dict[str, Any]]:
    found = {item.name: val.detect(item.predict) for item in formats if item.predict}
    reference = found[formats[0].name]
    result = {}
    for name, detections in found.items():
        score = coco_map(val.split, detections)
        result[name] = {
            "map": score["map"],
            "map_50": score["map_50"],
            "parity": compare_detections(reference, detections),
        }
    return result


def _time(
    formats: Sequence[Format],
    val: ValImages,
    rounds: int,
    batch_sizes: Sequence[int],
    time_budget_s: float,
    device: "torch.device",
    seed: int,
) -> tuple[dict[int, dict[str, np.ndarray]], list[int]]:
    """Milliseconds per call by batch size and name; batch size 1 is always there."""

    def at(size: int, rounds: int, budget_s: float) -> dict[str, np.ndarray]:
        images = val.batch(size)
        arms = {item.name: lambda p=item.predict: p(images) for item in formats}
        return timing.measure_interleaved(
            arms, rounds=rounds, warmup=2 if size == 1 else 1, device=device, seed=seed,
            budget_s=budget_s,
        )  # fmt: skip

    times = {1: at(1, rounds, time_budget_s / 2)}
    left_s = time_budget_s - sum(ms.sum() for ms in times[1].values()) / 1e3
    per_image_s = sum(float(np.median(ms)) for ms in times[1].values()) / 1e3
    skipped = []
    for size in sorted(set(batch_sizes) - {1}):
        expected_s = per_image_s * size * (1 + BATCH_ROUNDS)
        if expected_s > left_s:
            skipped.append(size)
            continue
        times[size] = at(size, BATCH_ROUNDS, expected_s)
        left_s -= expected_s
    if skipped:
        log.warning("Batch sizes %s not timed: over --time-budget-s", skipped)
    if (timed := len(times[1][formats[0].name])) < MIN_ROUNDS:
        text = "Speed-ups carry no interval, shown as [–]: %d timed rounds, %d needed"
        log.warning(text, timed, MIN_ROUNDS)
    return times, skipped


def _speed(
    item: Format,
    times: dict[int, dict[str, np.ndarray]],
    seed: int,
    latency_budget_ms: float | None,
) -> dict[str, Any]:
    own = times[1][item.name]
    batches: list[dict[str, Any]] = [
        {
            "batch_size": size,
            "latency_ms": timing.summarise(by_name[item.name]),
            "throughput_img_s": 1e3 * size / float(np.median(by_name[item.name])),
        }
        for size, by_name in times.items()
    ]
    best = best_batch(batches)
    assert best is not None
    quick = latency_budget_ms and best_batch(batches, latency_budget_ms)
    speed: dict[str, Any] = {
        "latency_ms": timing.summarise(own),
        "throughput_img_s": best["throughput_img_s"],
        "optimal_batch_size": best["batch_size"],
        "batch_size_within_budget": quick["batch_size"] if quick else None,
        "batches": batches,
    }
    if item.name != BASELINE:
        speed["speedup"] = compare(times[1][BASELINE], own, seed=seed).as_json()
    if item.same_runtime in times[1]:
        baseline = times[1][item.same_runtime]
        speed["speedup_same_runtime"] = compare(baseline, own, seed=seed).as_json()
    return speed


def best_batch(
    batches: Sequence[dict[str, Any]], latency_budget_ms: float = math.inf
) -> dict[str, Any] | None:
    """The batch size of the highest throughput, or a smaller one that brings hardly less: a larger
    one only adds latency.

    Args:
        batches: rows with `batch_size`, `throughput_img_s` and `latency_ms`, of one format.
        latency_budget_ms: rows whose p90 is above it do not count; None where no other is left.
    """
    within = [batch for batch in batches if batch["latency_ms"]["p90"] <= latency_budget_ms]
    highest = max((batch["throughput_img_s"] for batch in within), default=0.0)
    enough = [b for b in within if b["throughput_img_s"] >= highest / (1 + MIN_EFFECT)]
    return min(enough, key=lambda batch: batch["batch_size"], default=None)


def verdict(item: Format, row: dict[str, Any], baseline_map: float | None) -> str:
    """ "ok", or "rejected: …" naming the tolerance that a measured format does not hold."""
    if item.status != OK:
        return item.status
    drop = (baseline_map or 0.0) - (row["map"] or 0.0)
    if item.max_map_drop is not None:
        if drop > item.max_map_drop:
            return f"rejected: mAP drop {drop:.4f} over the budget of {item.max_map_drop}"
        return OK
    parity = row["parity"]
    # A tie that rounding decides moves one box: of fewer than 100 that is more than MIN_MATCHED
    least = MIN_MATCHED if parity["unmatched"] > 1 else LOOSEST.matched
    if parity["matched"] < least:
        return f"rejected: {parity['matched']:.3f} of the boxes matched, {least} needed"
    if (parity["max_box_error_px"] or 0.0) > MAX_BOX_ERROR_PX:
        return f"rejected: a box differs by {parity['max_box_error_px']:.2f} px"
    if abs(drop) > MAX_MAP_CHANGE:
        return f"rejected: mAP changed by {-drop:+.4f}"
    return OK


def _log_row(row: dict[str, Any]) -> None:
    if row["latency_ms"] is None:
        log.info("%-22s %s", row["name"], row["status"])
        return
    speedup = row["speedup"]
    ratio = "1 (baseline)"
    if speedup:
        ratio = interval_text(speedup["ratio"], speedup["ci95"])
    log.info(
        "%-22s%8.2f MiB%9.1f ms p50%9.1f img/s (batch %d)  speed-up %-19s map %s  %s",
        row["name"],
        row["size_mib"],
        row["latency_ms"]["p50"],
        row["throughput_img_s"],
        row["optimal_batch_size"],
        ratio,
        "–" if row["map"] is None else f"{row['map']:.4f}",
        row["status"],
    )
