"""Half precision against FP32 in inference, one image at a time.

Measured are the video pipeline's way, whose weights are converted once, and the textbook's:
torchvision's own forward pass with autocast around every call.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common import timing
from common.fast_inference import shipped_graph
from common.inference_graph import graph_predictor
from common.models import Detections, Predictor, stock_predictor
from phase2_optimization.amp_arm import Precision
from phase2_optimization.memory_use import bounded_host_memory

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

SHIPPED, STOCK = "shipped_graph", "stock_autocast"
WAYS = {
    SHIPPED: "the inference graph of the video pipeline",
    STOCK: "torchvision's own forward pass",
}
WARMUP, BUDGET_S = 2, 3.0


def time_inference(
    model: "FasterRCNN",
    precision: Precision,
    images: Sequence[np.ndarray],
    device: torch.device,
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    """Lets a way of detecting take turns in half precision, in FP32 and in FP32 again.

    Args:
        model: copied.
        precision: its `stock` tells the way, its `dtype` the half precision.
        images: uint8 RGB (H, W, 3), gone through one by one and again and again by every arm.
        seed: of the order in which the arms take turns.

    Returns:
        `name` and `description` of the way, the `precision`, `status` ("ok" or "oom") and, if it
        is "ok", `ms`: "half", "fp32" and "again" -> milliseconds, shape (rounds kept,).
    """
    fp32 = dataclasses.replace(precision, dtype=torch.float32)
    row = describe(precision)
    try:
        with bounded_host_memory(device):
            calls = {
                name: _detecting(predictor(model, of, device), images)
                for name, of in (("fp32", fp32), ("half", precision), ("again", fp32))
            }
            ms = timing.measure_interleaved(
                calls, rounds=rounds, warmup=WARMUP, device=device, seed=seed, budget_s=BUDGET_S
            )
    except Exception as error:
        if not timing.is_out_of_memory(error):
            raise
        return {**row, "status": "oom"}
    return {**row, "ms": ms}


def describe(precision: Precision) -> dict[str, Any]:
    """The keys of a row that are known before it is measured."""
    name = STOCK if precision.stock else SHIPPED
    return {
        "name": name,
        "description": WAYS[name],
        "precision": str(precision.dtype).removeprefix("torch."),
        "emulated": precision.emulated,
        "status": "ok",
    }


def predictor(model: "FasterRCNN", precision: Precision, device: torch.device) -> Predictor:
    """Detects with a copy of the model in the precision's way."""
    dtype = precision.dtype
    if not precision.stock:
        return graph_predictor(shipped_graph(model, device, dtype), device)
    predict = stock_predictor(copy.deepcopy(model).to(device).eval(), device)
    if dtype is torch.float32:
        return predict

    def predict_under_autocast(images: Sequence[np.ndarray]) -> list[Detections]:
        with torch.autocast(device.type, dtype=dtype):
            return predict(images)

    return predict_under_autocast


def _detecting(predict: Predictor, images: Sequence[np.ndarray]) -> Callable[[], object]:
    """What detects in the next image at each call."""
    coming = itertools.cycle(images)
    return lambda: predict([next(coming)])
