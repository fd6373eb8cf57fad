"""Structured pruning: the weakest channels of hidden layers are zeroed, then taken out for good.

Zeroing alone (torch.nn.utils.prune.ln_structured) leaves every tensor its shape, so nothing gets
faster. What makes it faster is to take out the filters, and the weights that read what they made.
That changes no output, as long as what is taken out really was zero all the way: a filter of
zeros still makes a constant where a normalisation with a shift follows it, so the shift goes, too.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from common.hidden_channels import (
    HiddenChannels,
    find_hidden_channels,
    is_norm,
    keep_channels,
)

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

PROBE_SIZE = 128  # side of the input that two models are compared on, in pixels
PROBE_REGIONS = 8
NOT_REMOVED = (
    "the stem and the outputs of residual blocks: shortcuts add other channels to them",
    "the feature pyramid: its levels are added to one another and share both heads",
    "the outputs of the predictors: they are the classes and the boxes",
)


def zero_channels(
    model: "FasterRCNN", amount: float, parts: Collection[str], multiple: int = 1
) -> dict[str, Tensor]:
    """Zeroes the weakest hidden channels of each layer, in place.

    Args:
        amount: share of a layer's channels to zero, in (0, 1).
        parts: of common.hidden_channels: BACKBONE, RPN and BOX_HEAD.
        multiple: the number of channels left is rounded up to one of its multiples, as far as
            there are so many: kernels work on blocks of channels.

    Returns:
        The int64 channels left, by `HiddenChannels.name`; layers that stay whole are not in it.
    """
    kept = {}
    for channels in find_hidden_channels(model):
        count = channels.count(model)
        left = channels_left(count, amount, multiple)
        if channels.part in parts and left < count:
            kept[channels.name] = _zero_weakest(model, channels, count - left)
    return kept


def channels_left(count: int, amount: float, multiple: int = 1) -> int:
    """How many of `count` channels stay, see `zero_channels`; at least one."""
    left = max(1, count - round(amount * count))
    return min(count, -(-left // multiple) * multiple)


def remove_channels(model: "FasterRCNN", kept: Mapping[str, Tensor]) -> None:
    """Takes all channels out, in place, but those that `zero_channels` left."""
    for channels in find_hidden_channels(model):
        if channels.name in kept:
            keep_channels(model, channels, kept[channels.name])


def _zero_weakest(model: nn.Module, channels: HiddenChannels, number: int) -> Tensor:
    """Zeroes `number` channels; returns the others, ascending."""
    writers: list[Any] = [model.get_submodule(name) for name in channels.writers]
    layer = writers[0]
    prune.ln_structured(
        layer, "weight", amount=number, n=2, dim=0, importance_scores=_effective_weight(writers)
    )
    is_kept = layer.weight_mask.flatten(1)[:, 0]
    prune.remove(layer, "weight")
    for writer in writers:
        for name in ("weight", "bias"):
            _zero_rows(writer, name, is_kept)
    return is_kept.nonzero()[:, 0].cpu()


def _effective_weight(writers: list[Any]) -> Tensor:
    """The first layer's weight as the normalisation behind it scales it: with weight decay a small
    filter and a large scale are the same as the reverse."""
    weight = writers[0].weight.detach()
    if len(writers) == 1 or not is_norm(writers[1]):
        return weight
    norm = writers[1]
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


def _zero_rows(layer: nn.Module, name: str, is_kept: Tensor) -> None:
    values = getattr(layer, name, None)
    if values is None:
        return
    mask = is_kept.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
    if isinstance(values, nn.Parameter):
        prune.custom_from_mask(layer, name, mask)
        prune.remove(layer, name)  # the zeros stay, as plain weights
    else:  # frozen normalisation has buffers, which prune does not take
        values.mul_(mask)
    getattr(layer, name).data += 0.0  # -0.0 becomes 0.0: random signs cannot be compressed


@torch.inference_mode()
def largest_difference(first: "FasterRCNN", second: "FasterRCNN", seed: int = 0) -> float:
    """How far the dense outputs of two models in evaluation mode are apart, on random pixels.

    Features, objectness, deltas, class logits and boxes are compared before anything is selected:
    a selection would hide differences, or blow up one in the last bit.

    Returns:
        The largest difference, as a share of the largest value of that output.
    """
    outputs = [_dense_outputs(model.eval(), seed) for model in (first, second)]
    differences = [
        float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
        for a, b in zip(*outputs, strict=True)
    ]
    return max(differences)


def _dense_outputs(model: "FasterRCNN", seed: int) -> list[Tensor]:
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, 3, PROBE_SIZE, PROBE_SIZE, generator=random).to(device)
    features = list(model.backbone(pixels).values())
    objectness, deltas = model.rpn.head(features)
    heads = model.roi_heads
    shape = (PROBE_REGIONS, features[0].shape[1], *heads.box_roi_pool.output_size)
    pooled = torch.randn(shape, generator=random).to(device) * features[0].std()
    return [*features, *objectness, *deltas, *heads.box_predictor(heads.box_head(pooled))]
