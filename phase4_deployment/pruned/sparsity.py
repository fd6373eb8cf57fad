"""Unstructured pruning: single weights of smallest magnitude become zero (Han et al. 2015,
https://arxiv.org/abs/1506.02626), wherever in their tensors they are."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils import prune

from common.hidden_channels import BACKBONE, BOX_HEAD, RPN

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

PLACES = {BACKBONE: "backbone", RPN: "rpn", BOX_HEAD: "roi_heads"}  # where a part's layers are
SCOPES = ("global", "layer")


def zero_weights(
    model: "FasterRCNN", amount: float, parts: Collection[str], scope: str = "global"
) -> None:
    """Zeroes the weights of smallest magnitude in convolutions and Linear layers, in place.

    Args:
        amount: share of the weights, in (0, 1).
        parts: of common.hidden_channels: BACKBONE, RPN and BOX_HEAD.
        scope: "global" compares all weights of the parts with each other, so that wide layers lose
            more; "layer" takes the same share from each layer.
    """
    layers = list(_weighted_layers(model, parts))
    if scope == "global":
        weights = [(layer, "weight") for layer in layers]
        prune.global_unstructured(weights, prune.L1Unstructured, amount=amount)
    else:
        for layer in layers:
            prune.l1_unstructured(layer, "weight", amount=amount)
    for layer in layers:
        prune.remove(layer, "weight")  # the zeros stay, as plain weights
        layer.weight.data += 0.0  # -0.0 becomes 0.0: random signs cannot be compressed


def zero_share(model: "FasterRCNN", parts: Collection[str] = tuple(PLACES)) -> float:
    """Share of zeros among the weights of convolutions and Linear layers."""
    weights = [layer.weight for layer in _weighted_layers(model, parts)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def _weighted_layers(
    model: "FasterRCNN", parts: Collection[str]
) -> Iterator[nn.Conv2d | nn.Linear]:
    for part, place in PLACES.items():
        if part in parts:
            for layer in model.get_submodule(place).modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    yield layer
