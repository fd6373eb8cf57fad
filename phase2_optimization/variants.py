"""The ways of running one detector that are compared. A new one is one entry of VARIANTS.

Every entry starts from its own copy of the model and ends as a Predictor: uint8 RGB images in
host memory in, boxes in original pixels in host memory out. So all of them do the same work.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.fastpath import precision_safe_autocast
from common.inference_graph import InferenceGraph, graph_predictor
from common.models import Detections, Predictor, stock_predictor

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

BASELINE = "eager_fp32"


class VariantUnavailableError(Exception):
    """The variant cannot run on this machine; the text says why."""


@dataclass(frozen=True)
class Tolerance:
    """How far results may be from the baseline's before a speed-up counts as invalid.

    Attributes:
        min_matched: share of the detections that it and the baseline both have at IoU >= 0.99.
        max_box_error_px: of a matched pair, any coordinate.
        max_map_change: of COCO mAP in 0..1, up or down.
    """

    min_matched: float
    max_box_error_px: float
    max_map_change: float


# The same FP32 arithmetic in another order: only ties in NMS and top-k may fall differently.
EXACT = Tolerance(min_matched=0.99, max_box_error_px=0.5, max_map_change=0.001)
# 8 (bf16) or 11 (fp16) significant bits move a 16 px box by parts of a pixel, which is already
# IoU < 0.99, so only the accuracy is held.
LOW_PRECISION = Tolerance(min_matched=0.0, max_box_error_px=float("inf"), max_map_change=0.002)


@dataclass(frozen=True)
class Variant:
    """One way of running the detector.

    Attributes:
        description: what it is and what it changes against the baseline.
        tolerance: how far its results may be from the baseline's.
        devices: the torch device types it is meant for.
        build: makes its Predictor from a model of its own, on the device and in evaluation mode.
        by_default: whether it runs without being asked for.
    """

    description: str
    tolerance: Tolerance
    devices: tuple[str, ...]
    build: Callable[["FasterRCNN", torch.device], Predictor]
    by_default: bool = True

    def predictor(self, model: "FasterRCNN", device: torch.device) -> Predictor:
        """Builds the Predictor on a copy of `model`, which stays as it is.

        Raises:
            VariantUnavailableError: it cannot run on this device.
        """
        if device.type not in self.devices:
            raise VariantUnavailableError(
                f"made for {' and '.join(self.devices)}, not {device.type}"
            )
        return self.build(copy.deepcopy(model).to(device).eval(), device)


def _channels_last(model: "FasterRCNN") -> "FasterRCNN":
    """NHWC weights: convolutions then keep NHWC activations, the layout their kernels prefer."""
    return model.to(memory_format=torch.channels_last)


def _graph(model: "FasterRCNN", device: torch.device) -> Predictor:
    return graph_predictor(InferenceGraph(model), device)


def _autocast(
    model: "FasterRCNN", predict: Predictor, dtype: torch.dtype, device: torch.device
) -> Predictor:
    """Runs a predictor's heavy modules in `dtype` and its box arithmetic in FP32."""
    if (
        dtype is torch.bfloat16
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(False)
    ):
        raise VariantUnavailableError("this GPU has no bfloat16")

    def predict_in_low_precision(images: Sequence[np.ndarray]) -> list[Detections]:
        with precision_safe_autocast(model, dtype, device.type):
            return predict(images)

    return predict_in_low_precision


def _low_precision(
    dtype: torch.dtype, *, graph: bool
) -> Callable[["FasterRCNN", torch.device], Predictor]:
    def build(model: "FasterRCNN", device: torch.device) -> Predictor:
        _channels_last(model)
        predict = _graph(model, device) if graph else stock_predictor(model, device)
        return _autocast(model, predict, dtype, device)

    return build


def _compiled_graph(model: "FasterRCNN", device: torch.device) -> Predictor:
    graph = InferenceGraph(_channels_last(model))
    graph.backbone = torch.compile(graph.backbone, dynamic=True)
    predict = graph_predictor(graph, device)

    def predict_compiled(images: Sequence[np.ndarray]) -> list[Detections]:
        try:
            return predict(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise VariantUnavailableError(f"torch.compile failed ({reason})") from error

    return predict_compiled


ANY, CPU_OR_CUDA, CUDA = ("cpu", "cuda", "mps"), ("cpu", "cuda"), ("cuda",)

VARIANTS: dict[str, Variant] = {
    BASELINE: Variant(
        "stock torchvision model, eager, FP32 without TF32", EXACT, ANY, stock_predictor
    ),
    "channels_last": Variant(
        "stock model, FP32, NHWC memory layout",
        EXACT,
        ANY,
        lambda model, device: stock_predictor(_channels_last(model), device),
    ),
    "inference_graph": Variant(
        "one batched graph (batched transform, no per-image loops), FP32", EXACT, ANY, _graph
    ),
    "inference_graph_channels_last": Variant(
        "the batched graph, FP32, NHWC memory layout",
        EXACT,
        ANY,
        lambda model, device: _graph(_channels_last(model), device),
    ),
    "bf16_channels_last": Variant(
        "stock model, NHWC, bfloat16 autocast of the networks, boxes in FP32",
        LOW_PRECISION,
        CPU_OR_CUDA,
        _low_precision(torch.bfloat16, graph=False),
    ),
    "fp16_channels_last": Variant(
        "stock model, NHWC, float16 autocast of the networks, boxes in FP32",
        LOW_PRECISION,
        CUDA,
        _low_precision(torch.float16, graph=False),
    ),
    "inference_graph_bf16_channels_last": Variant(
        "the batched graph, NHWC, bfloat16 autocast of the networks, boxes in FP32",
        LOW_PRECISION,
        CPU_OR_CUDA,
        _low_precision(torch.bfloat16, graph=True),
    ),
    "inference_graph_fp16_channels_last": Variant(
        "the batched graph, NHWC, float16 autocast of the networks, boxes in FP32",
        LOW_PRECISION,
        CUDA,
        _low_precision(torch.float16, graph=True),
    ),
    "inference_graph_compiled": Variant(
        "the batched graph, FP32, NHWC, backbone through torch.compile",
        EXACT,
        CPU_OR_CUDA,
        _compiled_graph,
        by_default=False,
    ),
}
