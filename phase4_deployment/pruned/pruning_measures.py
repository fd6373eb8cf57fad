"""Size, arithmetic, speed and accuracy of pruned models, timed in the same rounds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common import timing
from common.comparison import compare, noise_between
from common.evaluation import coco_map, compare_detections
from common.inference_graph import InferenceGraph, graph_predictor
from common.models import Detections, Predictor
from phase4_deployment.measuring import ValImages
from phase4_deployment.pruned.pruned_models import (
    UNPRUNED,
    PrunedModel,
    compressed_bytes,
    parameter_count,
)
from phase4_deployment.pruned.sparsity import zero_share

AGAIN = "unpruned, again"  # the baseline's second self: how far equal arms seem to be apart


def measure(
    versions: Sequence[PrunedModel],
    val: ValImages,
    *,
    rounds: int,
    time_budget_s: float,
    device: torch.device,
    seed: int,
    max_map_drop: float,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A row for each version, the unpruned one first, and their times by name, with AGAIN's.

    All run as the inference graph in eager FP32, end to end: uint8 RGB images in memory in,
    detections out. mAP and parity come from single images, times from one image per call.
    """
    graphs = [InferenceGraph(version.model.to(device)) for version in versions]
    predictors = {
        version.name: graph_predictor(graph, device)
        for version, graph in zip(versions, graphs, strict=True)
    }
    found = {name: val.detect(predict) for name, predict in predictors.items()}
    times = _time(predictors, val, rounds, time_budget_s, device, seed)
    noise = noise_of(times, seed)
    rows: list[dict[str, Any]] = []
    for version, graph in zip(versions, graphs, strict=True):
        row = {
            "name": version.name,
            "method": version.kind,
            "amount": version.amount,
            **_size(version, versions[0]),
            "gflops": _gflops(graph, val.batch(1)[0], device),
            **_accuracy(version, found, val, device),
            **_speed(version.name, times, noise, seed),
            **version.facts,
        }
        baseline_map = rows[0]["map"] if rows else row["map"]
        row["status"] = verdict(version.fault, row["map"], baseline_map, max_map_drop)
        rows.append(row)
    return rows, times


def noise_of(times: Mapping[str, np.ndarray], seed: int) -> dict[str, Any] | None:
    """What the unpruned model and its second self differ by."""
    return noise_between(times[UNPRUNED], times[AGAIN], seed)


def _time(
    predictors: Mapping[str, Predictor],
    val: ValImages,
    rounds: int,
    time_budget_s: float,
    device: torch.device,
    seed: int,
) -> dict[str, np.ndarray]:
    images = val.batch(1)
    callees = {**predictors, AGAIN: predictors[UNPRUNED]}
    arms = {name: lambda p=predict: p(images) for name, predict in callees.items()}
    return timing.measure_interleaved(
        arms, rounds=rounds, device=device, seed=seed, budget_s=time_budget_s
    )


def _size(version: PrunedModel, unpruned: PrunedModel) -> dict[str, Any]:
    count, before = parameter_count(version.model), parameter_count(unpruned.model)
    return {
        "zero_share": zero_share(version.model),
        "parameters": count,
        "removed_share": 1 - count / before,
        "size_mib": version.file.stat().st_size / timing.MIB,
        "size_zip_mib": compressed_bytes(version.file) / timing.MIB,
    }


def _gflops(graph: InferenceGraph, image: np.ndarray, device: torch.device) -> float:
    """Of one image; a multiplication with its addition counts as two, by zero like any other."""
    from torch.utils.flop_counter import FlopCounterMode

    pixels = torch.from_numpy(image)[None].to(device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        graph(pixels)
    return counter.get_total_flops() / 1e9


def _accuracy(
    version: PrunedModel,
    found: Mapping[str, list[Detections]],
    val: ValImages,
    device: torch.device,
) -> dict[str, Any]:
    score = coco_map(val.split, found[version.name])
    before = None
    if version.before_finetuning is not None:
        graph = InferenceGraph(version.before_finetuning.to(device))
        before = coco_map(val.split, val.detect(graph_predictor(graph, device)))["map"]
        version.before_finetuning.to("cpu")
    return {
        "map": score["map"],
        "map_50": score["map_50"],
        "map_before_finetuning": before,
        "parity": compare_detections(found[UNPRUNED], found[version.name]),
    }


def _speed(
    name: str, times: Mapping[str, np.ndarray], noise: dict[str, Any] | None, seed: int
) -> dict[str, Any]:
    own = times[name]
    speed: dict[str, Any] = {
        "latency_ms": timing.summarise(own),
        "throughput_img_s": 1e3 / float(np.median(own)),
        "speedup": None,
        "verdict": None,
    }
    if name != UNPRUNED:
        against = compare(times[UNPRUNED], own, seed=seed, noise=noise)
        speed["speedup"] = against.as_json()
        speed["verdict"] = against.beyond_noise
    return speed


def verdict(
    fault: str, own_map: float | None, baseline_map: float | None, max_map_drop: float
) -> str:
    """ "ok", or "rejected: …" naming what is wrong."""
    if fault:
        return f"rejected: {fault}"
    drop = (baseline_map or 0.0) - (own_map or 0.0)
    if drop > max_map_drop:
        return f"rejected: mAP drop {drop:.4f} over the budget of {max_map_drop:g}"
    return "ok"
