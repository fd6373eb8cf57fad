"""Untrained detectors that detect something, and pictures to run them on.

A freshly initialised detector scores every box alike, which hides mistakes: ties may be broken
either way, and nothing is suppressed. Here normalisation statistics are taken from data and the
heads are scaled until scores spread widely without saturating.
"""

import contextlib
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.ops.misc import FrozenBatchNorm2d

from common.models import build_model

# The largest absolute outputs of the heads on the calibration scenes, and on any scene for the
# logits: beyond 15 or so, float32 sigmoids and softmaxes reach exactly 1, which means ties.
RPN_LOGIT, RPN_DELTA = 5.0, 0.7
CLASS_LOGIT, BOX_DELTA = 4.0, 2.0


class Bounded(torch.nn.Module):
    """Keeps values within +-limit without making different ones equal."""

    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.limit * torch.tanh(values / self.limit)


def random_scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: blurred coloured patches with noise."""
    patches = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), np.uint8)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    return cv2.addWeighted(cv2.resize(patches, (width, height)), 0.8, noise, 0.2, 0)


@torch.no_grad()
def random_detector(
    architecture: str,
    *,
    num_classes: int = 6,
    min_size: int,
    max_size: int,
    proposals: int | None = None,
    bounded: bool = True,
    seed: int = 0,
    scenes: Sequence[np.ndarray] | None = None,
) -> FasterRCNN:
    """A detector with random weights in evaluation mode whose detections are varied.

    Args:
        proposals: lowers the number of proposals kept before and after NMS.
        bounded: adds a bound on the logits, which makes the model unlike its architecture.
        scenes: pictures that the statistics and scales are taken from; made-up ones by default.
    """
    torch.manual_seed(seed)
    model = build_model(architecture, num_classes, min_size=min_size, max_size=max_size).eval()
    if proposals:
        model.rpn._pre_nms_top_n["testing"] = model.rpn._post_nms_top_n["testing"] = proposals
    rng = np.random.default_rng(seed)
    if scenes is None:
        scenes = [random_scene(rng, 192, 256) for _ in range(2)]
    inputs = [torch.from_numpy(scene).permute(2, 0, 1) / 255 for scene in scenes]
    with _normalisation_from_data(model):
        model(inputs)
    rpn, predictor = model.rpn.head, model.roi_heads.box_predictor
    with _outputs(rpn) as outputs:
        model(inputs)
    logits, deltas = (torch.cat([level.flatten() for level in kind]) for kind in outputs[0])
    _spread(rpn.cls_logits, logits, RPN_LOGIT)
    _spread(rpn.bbox_pred, deltas, RPN_DELTA)
    with _outputs(predictor) as outputs:
        model(inputs)
    _spread(predictor.cls_score, outputs[0][0], CLASS_LOGIT)
    _spread(predictor.bbox_pred, outputs[0][1], BOX_DELTA)
    if bounded:
        rpn.cls_logits = torch.nn.Sequential(rpn.cls_logits, Bounded(2 * RPN_LOGIT))
        predictor.cls_score = torch.nn.Sequential(predictor.cls_score, Bounded(2 * CLASS_LOGIT))
    return model


@contextlib.contextmanager
def _normalisation_from_data(model):
    def measure(module, inputs):
        module.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        module.running_var.copy_(inputs[0].var((0, 2, 3)) + 1e-3)

    kinds = (FrozenBatchNorm2d, torch.nn.BatchNorm2d)
    hooks = [m.register_forward_pre_hook(measure) for m in model.modules() if isinstance(m, kinds)]
    yield
    for hook in hooks:
        hook.remove()


@contextlib.contextmanager
def _outputs(module):
    collected = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: collected.append(output))
    yield collected
    hook.remove()


def _spread(layer: torch.nn.Module, outputs: torch.Tensor, largest: float) -> None:
    """Scales a layer so that outputs like these are centred and at most this far from zero."""
    center = outputs.mean(dim=0)
    gain = largest / (outputs - center).abs().max()
    layer.weight.mul_(gain)
    layer.bias.copy_((layer.bias - center) * gain)
