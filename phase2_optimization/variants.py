"""The ladder of ways to run one detector that are compared. A new one is an entry of VARIANTS.

Each rung adds one technique to the rung it `adds_to`, so the step from one to the other is what
the technique buys. Every entry starts from its own copy of the model and ends as a Predictor:
uint8 RGB images in host memory in, boxes in original pixels in host memory out. So all of them do
the same work.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from common.fastpath import native_amp
from common.models import Predictor, stock_predictor
from phase2_optimization import builders, runtimes
from phase2_optimization.builders import Rung, VariantUnavailableError, Workshop

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

BASELINE = "eager_fp32"
CALIBRATED = "openvino_int8"  # looks at training images


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
# 8 (bf16) or 11 (fp16, TF32) significant bits move a 16 px box by parts of a pixel, which is
# already IoU < 0.99, so only the accuracy is held.
LOW_PRECISION = Tolerance(min_matched=0.0, max_box_error_px=float("inf"), max_map_change=0.002)
# What 8 bits or fewer proposals may cost.
LOSSY = Tolerance(min_matched=0.0, max_box_error_px=float("inf"), max_map_change=0.01)

ANY, CPU_OR_CUDA = ("cpu", "cuda", "mps"), ("cpu", "cuda")
CPU, CUDA = ("cpu",), ("cuda",)


@dataclass(frozen=True)
class Variant:
    """One way of running the detector.

    Attributes:
        description: what it is and what it changes against the rung below.
        build: makes its Predictor from a model of its own, on the device and in evaluation mode.
        adds_to: the rung below; None for what stands beside the ladder.
        tolerance: how far its results may be from the baseline's. On CUDA, where the ladder's
            second rung is TF32, what is EXACT is so without TF32, and with it a LOW_PRECISION.
        devices: the torch device types it is meant for.
        needs: "" runs by default; "compile" with --compile only; "bf16" where the processor has
            instructions for bfloat16, or when asked for by name.
    """

    description: str
    build: Callable[["FasterRCNN", Workshop], Predictor]
    adds_to: str | None = None
    tolerance: Tolerance = EXACT
    devices: tuple[str, ...] = ANY
    needs: str = ""

    def predictor(self, model: "FasterRCNN", workshop: Workshop) -> Predictor:
        """Builds the Predictor on a copy of `model`, which stays as it is.

        Raises:
            VariantUnavailableError: it cannot run on this device.
        """
        device = workshop.device
        if device.type not in self.devices:
            raise VariantUnavailableError(
                f"made for {' and '.join(self.devices)}, not {device.type}"
            )
        return self.build(copy.deepcopy(model).to(device).eval(), workshop)

    def tolerance_on(self, device: torch.device) -> Tolerance:
        is_loosened = device.type == "cuda" and self.tolerance is EXACT
        return LOW_PRECISION if is_loosened else self.tolerance

    def reason_to_skip(self, device: torch.device, compiles: bool) -> str | None:
        """Why it does not run unless asked for by name, None when it does."""
        if self.needs == "compile" and not compiles:
            return "not run: compiling takes minutes; add --compile"
        if self.needs == "bf16" and device.type == "cpu" and native_amp(device) != "bf16":
            return "not run: this processor has no bfloat16 instructions and would imitate them"
        return None


BF16, FP16 = torch.bfloat16, torch.float16

VARIANTS: dict[str, Variant] = {
    BASELINE: Variant(
        "stock torchvision model, eager, FP32 without TF32",
        lambda m, w: stock_predictor(m, w.device),
    ),
    "tf32": Variant(
        "the tensor cores' TF32 in place of FP32: 10 of 23 bits of mantissa",
        builders.stock("tf32"),
        BASELINE,
        LOW_PRECISION,
        CUDA,
    ),
    "channels_last": Variant(
        "NHWC memory layout, which convolutions prefer",
        builders.stock("channels_last"),
        "tf32",
    ),
    "folded_norms": Variant(
        "batch normalisation multiplied into the convolutions",
        builders.stock("folded_norms"),
        "channels_last",
    ),
    "cached_anchors": Variant(
        "the anchors of an image size computed once",
        builders.stock("cached_anchors"),
        "folded_norms",
    ),
    "roi_pool": Variant(
        "regions pooled as sums of feature vectors (CPU), or sorted by level (GPU)",
        builders.stock("roi_pool"),
        "cached_anchors",
        devices=CPU_OR_CUDA,
    ),
    "selected_first": Variant(
        "scores thresholded before boxes are decoded, one NMS for all classes and images",
        builders.stock("selected_first"),
        "roi_pool",
        devices=CPU_OR_CUDA,
    ),
    "batched_transform": Variant(
        "uint8 images resized and normalised as one batch",
        builders.stock("batched_transform"),
        "selected_first",
        devices=CPU_OR_CUDA,
    ),
    "inference_graph": Variant(
        "one graph of fixed-size tensors: no lists, no loops over images",
        builders.graph(Rung()),
        "batched_transform",
    ),
    "winograd": Variant(
        "3x3 convolutions with a quarter of the multiplications (Winograd)",
        builders.graph(Rung(winograd=True)),
        "inference_graph",
        devices=CPU,
    ),
    "compiled": Variant(
        "backbone, RPN head and box head through torch.compile",
        builders.graph(Rung(winograd=True, compiled=True)),
        "winograd",
        devices=CPU,
        needs="compile",
    ),
    "bf16": Variant(
        "backbone and heads in bfloat16, boxes in FP32",
        builders.graph(Rung(BF16)),
        "inference_graph",
        LOW_PRECISION,
        CPU_OR_CUDA,
        needs="bf16",
    ),
    "bf16_compiled": Variant(
        "the same through torch.compile",
        builders.graph(Rung(BF16, compiled=True)),
        "bf16",
        LOW_PRECISION,
        CPU,
        needs="compile",
    ),
    "bf16_300_proposals": Variant(
        "the box head looks at the 300 best proposals",
        builders.with_proposals(300, builders.graph(Rung(BF16))),
        "bf16",
        LOSSY,
        CPU_OR_CUDA,
        needs="bf16",
    ),
    "fp16": Variant(
        "backbone and heads in float16, boxes in FP32",
        builders.graph(Rung(FP16)),
        "inference_graph",
        LOW_PRECISION,
        CUDA,
    ),
    "fp16_compiled": Variant(
        "the same through torch.compile",
        builders.graph(Rung(FP16, compiled=True)),
        "fp16",
        LOW_PRECISION,
        CUDA,
        needs="compile",
    ),
    "cuda_graphs": Variant(
        "float16, each size of input recorded once as CUDA graphs and replayed",
        builders.graph(Rung(FP16, recorded=True)),
        "fp16",
        LOW_PRECISION,
        CUDA,
    ),
    "cuda_graphs_compiled": Variant(
        "CUDA graphs of the compiled network",
        builders.graph(Rung(FP16, compiled=True, recorded=True)),
        "cuda_graphs",
        LOW_PRECISION,
        CUDA,
        needs="compile",
    ),
    "stock_autocast_fp16": Variant(
        "stock model, plain autocast around everything, boxes included",
        builders.stock_autocast(FP16),
        None,
        LOW_PRECISION,
        CUDA,
    ),
    "stock_autocast_bf16": Variant(
        "stock model, plain autocast around everything, boxes included",
        builders.stock_autocast(BF16),
        None,
        LOW_PRECISION,
        CPU,
        needs="bf16",
    ),
    "onnxruntime": Variant(
        "the graph exported to ONNX, in ONNX Runtime, FP32",
        runtimes.onnxruntime,
        "inference_graph",
        devices=CPU_OR_CUDA,
    ),
    "openvino": Variant(
        "the same ONNX file in OpenVINO, FP32",
        runtimes.openvino("f32"),
        "inference_graph",
        devices=CPU,
    ),
    "openvino_bf16": Variant(
        "its networks in bfloat16, boxes in FP32",
        runtimes.openvino("bf16"),
        "openvino",
        LOW_PRECISION,
        CPU,
        needs="bf16",
    ),
    "openvino_bf16_300_proposals": Variant(
        "the box head looks at the 300 best proposals",
        builders.with_proposals(300, runtimes.openvino("bf16")),
        "openvino_bf16",
        LOSSY,
        CPU,
        needs="bf16",
    ),
    "openvino_bf16_100_proposals": Variant(
        "the box head looks at the 100 best proposals",
        builders.with_proposals(100, runtimes.openvino("bf16")),
        "openvino_bf16_300_proposals",
        LOSSY,
        CPU,
        needs="bf16",
    ),
    CALIBRATED: Variant(
        "OpenVINO, quantised to INT8 by NNCF on images of the training split",
        runtimes.openvino_int8,
        "openvino",
        LOSSY,
        CPU,
    ),
}


def rungs_below(name: str) -> list[str]:
    """The rungs under a variant, the next one first and the baseline last."""
    below = []
    rung = VARIANTS[name].adds_to
    while rung is not None:
        below.append(rung)
        rung = VARIANTS[rung].adds_to
    return below
