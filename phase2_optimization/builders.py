"""How the PyTorch rungs of the ladder are put together from the shared speed-ups."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from common import inference_ops
from common.cuda_graphs import CudaGraphedInference
from common.fast_inference import fast_graph
from common.fastpath import fold_batchnorm
from common.fastpath_boxes import cached_anchors, thresholded_first
from common.fastpath_layers import fast_roi_pool
from common.inference_graph import InferenceGraph, graph_predictor
from common.low_precision import replace_heavy_modules
from common.models import (
    Detections,
    Predictor,
    limit_proposals,
    proposals_of,
    resized_size,
    stock_predictor,
)
from common.predictors import batch_predictor

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

# Of one piece of code, in all variants and sizes of input together; beyond, it would run uncompiled
RECOMPILE_LIMIT = 256
COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"

# In the order in which the ladder adds them to the stock model
STOCK_RUNGS = (
    "tf32",
    "channels_last",
    "folded_norms",
    "cached_anchors",
    "roi_pool",
    "selected_first",
    "batched_transform",
)


class VariantUnavailableError(Exception):
    """The variant cannot run on this machine; the text says why."""


@dataclass(frozen=True)
class Workshop:
    """What building a variant may need besides the model.

    Attributes:
        folder: for exported files, which variants share.
        calibration: uint8 RGB images (H, W, 3) that quantisation may look at.
        threads: of the CPU, for runtimes that would take their own number.
        allows_tf32: in every variant but the baseline, on CUDA.
    """

    device: torch.device
    folder: Path
    calibration: Sequence[np.ndarray]
    threads: int
    allows_tf32: bool = True


@contextlib.contextmanager
def compiler_cache(folder: Path) -> Iterator[None]:
    """Lets torch.compile keep its libraries in this folder, unless the user has chosen another.

    Interrupted compilers leave half a library behind, which breaks the next run from a cache that
    is shared.
    """
    if COMPILER_CACHE in os.environ:
        yield
        return
    os.environ[COMPILER_CACHE] = str(folder)
    try:
        yield
    finally:
        del os.environ[COMPILER_CACHE]


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Allows TF32 in matrix products and convolutions, or forbids it, inside the block."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _with_tf32(predict: Predictor, workshop: Workshop) -> Predictor:
    """On CUDA every rung above the baseline may use TF32."""
    if workshop.device.type != "cuda" or not workshop.allows_tf32:
        return predict

    def predict_with_tf32(images: Sequence[np.ndarray]) -> list[Detections]:
        with tf32(True):
            return predict(images)

    return predict_with_tf32


def stock(top: str) -> Callable[["FasterRCNN", Workshop], Predictor]:
    """The stock model with the speed-ups of STOCK_RUNGS up to and including `top`."""
    wanted = STOCK_RUNGS[: STOCK_RUNGS.index(top) + 1]

    def build(model: "FasterRCNN", workshop: Workshop) -> Predictor:
        device = workshop.device
        if top == "tf32" and torch.cuda.get_device_capability(device) < (8, 0):
            raise VariantUnavailableError("this GPU has no TF32: it came with Ampere")
        replacements = {
            "cached_anchors": lambda: cached_anchors(model.rpn.anchor_generator),
            "roi_pool": lambda: fast_roi_pool(model.roi_heads.box_roi_pool),
            "selected_first": lambda: thresholded_first(model.roi_heads),
        }
        if "channels_last" in wanted:
            model.to(memory_format=torch.channels_last)
        if "folded_norms" in wanted:
            fold_batchnorm(model)
        stack = contextlib.ExitStack()
        for name in wanted:
            if name in replacements:
                stack.enter_context(replacements[name]())
        model.replacements = stack  # the model is this variant's own: they stay as long as it does
        is_batched = "batched_transform" in wanted
        predict = _batched(model, device) if is_batched else stock_predictor(model, device)
        return _with_tf32(predict, workshop)

    return build


def _batched(model: "FasterRCNN", device: torch.device) -> Predictor:
    """torchvision's RPN and RoI heads behind a transform of the whole batch at once."""
    transform = model.transform
    mean, std = (
        torch.tensor(values, device=device)
        for values in (transform.image_mean, transform.image_std)
    )
    min_size, max_size = int(transform.min_size[-1]), int(transform.max_size)
    divisor = int(transform.size_divisible)

    @torch.inference_mode()
    def run(batch: np.ndarray) -> Sequence[Any]:
        images = torch.from_numpy(batch).to(device)
        pixels, _, scale = inference_ops.preprocess(images, mean, std, min_size, max_size, divisor)
        height, width = batch.shape[1:3]
        resized = resized_size(height, width, min_size, max_size)
        image_list = ImageList(pixels, [resized] * len(batch))
        features = model.backbone(pixels)
        proposals, _ = model.rpn(image_list, features)
        found, _ = model.roi_heads(features, proposals, image_list.image_sizes)
        return (
            [(one["boxes"] * scale).cpu().numpy() for one in found],
            *([one[key].cpu().numpy() for one in found] for key in ("scores", "labels")),
            [len(one["scores"]) for one in found],
        )

    return batch_predictor(run)


def stock_autocast(dtype: torch.dtype) -> Callable[["FasterRCNN", Workshop], Predictor]:
    """What most code does: autocast around the whole stock model."""

    def build(model: "FasterRCNN", workshop: Workshop) -> Predictor:
        predict = stock_predictor(model, workshop.device)

        def predict_under_autocast(images: Sequence[np.ndarray]) -> list[Detections]:
            with torch.autocast(workshop.device.type, dtype=dtype):
                return predict(images)

        return predict_under_autocast

    return build


@dataclass(frozen=True)
class Rung:
    """What is added to the inference graph, which has folded norms and channels_last memory."""

    dtype: torch.dtype = torch.float32
    winograd: bool = False
    compiled: bool = False
    recorded: bool = False


def graph(rung: Rung) -> Callable[["FasterRCNN", Workshop], Predictor]:
    """The inference graph with what the rung adds."""

    def build(model: "FasterRCNN", workshop: Workshop) -> Predictor:
        device = workshop.device
        on_cuda = device.type == "cuda"
        if on_cuda and rung.dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
            raise VariantUnavailableError("this GPU has no bfloat16")
        inference = fast_graph(model, rung.dtype, winograd=rung.winograd)
        if rung.compiled:
            _compile(inference)
        run = CudaGraphedInference(inference) if rung.recorded else inference
        predict = _with_tf32(graph_predictor(run, device), workshop)
        return _compiling(predict, freezes=not on_cuda) if rung.compiled else predict

    return build


def with_proposals(
    count: int, build: Callable[["FasterRCNN", Workshop], Predictor]
) -> Callable[["FasterRCNN", Workshop], Predictor]:
    """The same with fewer region proposals for the box head, of which torchvision takes 1000 and
    Ren et al. 2015 took 300: mostly background, but the box head works on each alike."""

    def build_with_fewer(model: "FasterRCNN", workshop: Workshop) -> Predictor:
        has = proposals_of(model)
        if has <= count:
            raise VariantUnavailableError(f"this model looks at {has} proposals anyway")
        limit_proposals(model, count)
        return build(model, workshop)

    return build_with_fewer


def _compile(graph: InferenceGraph) -> None:
    """Compiles the parts without lists and waits. Each size of input is compiled on its own, then
    once for all further ones."""

    def compiled(module: nn.Module) -> Any:
        return torch.compile(module.requires_grad_(False))  # what trains is no constant

    replace_heavy_modules(graph, compiled)


def _compiling(predict: Predictor, *, freezes: bool) -> Predictor:
    """With room for all sizes of input; beyond the limit they would run uncompiled.

    Args:
        freezes: weights become constants of what is compiled at a first call, laid out for the
            processor. As an option of torch.compile it has no effect: the tracer reads the global
            setting.
    """

    def predict_compiled(images: Sequence[np.ndarray]) -> list[Detections]:
        with (
            torch._inductor.config.patch(freezing=freezes),
            torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT),
        ):
            return predict(images)

    return predict_compiled
