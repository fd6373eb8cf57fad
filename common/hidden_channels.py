"""Channels that can be taken out of a detector without a trace: those that one layer writes and
only the next one reads.

Whoever reads a channel that is always zero adds nothing for it, so the filter that writes it and
the weights that read it can go together, and every output stays. That needs channels no shortcut
adds to others: the inside of residual blocks (He et al. 2015), expansions of inverted residuals
with their depthwise and squeeze-and-excitation layers (Howard et al. 2019), the convolutions of
the RPN's head and the layers of the box head.

A checkpoint needs no entry for it. The shapes of its tensors say how many channels there are, and
`load_weights` makes a freshly built model as narrow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchvision.models.detection import FasterRCNN

BACKBONE, RPN, BOX_HEAD = "backbone", "rpn", "box_head"
Writers = tuple[str, ...]


@dataclass(frozen=True)
class HiddenChannels:
    """Some channels, as the names of the layers that hold one row or one column for each.

    Attributes:
        part: BACKBONE, RPN or BOX_HEAD.
        writers: the layer whose filters make the channels, then what works on each channel alone
            (normalisation, depthwise convolution) or scales it (squeeze-and-excitation): the first
            dimension of their tensors is the channel.
        readers: layers whose weights have the channels along the second dimension; a Linear layer
            behind a flattened map has several columns for each.
    """

    part: str
    writers: Writers
    readers: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.writers[0]

    def count(self, model: "nn.Module") -> int:
        return len(model.get_parameter(f"{self.name}.weight"))


def find_hidden_channels(model: "FasterRCNN") -> list[HiddenChannels]:
    """All of a torchvision Faster R-CNN, from input to output."""
    return [*_of_backbone(model), *_of_rpn(model), *_of_box_head(model)]


def keep_channels(model: "nn.Module", channels: HiddenChannels, kept: "Tensor") -> None:
    """Leaves the channels int64 `kept` and makes all layers that hold them as narrow, in place.

    Parameters that change are new ones: make an optimizer afterwards.
    """
    count = channels.count(model)
    for name in channels.writers:
        _keep_rows(model.get_submodule(name), kept, count)
    for name in channels.readers:
        _keep_columns(model.get_submodule(name), kept, count)


def load_weights(model: "FasterRCNN", state_dict: Mapping[str, Any]) -> None:
    """Makes hidden layers of `model` as narrow as those of `state_dict` and loads it, in place.

    Raises:
        RuntimeError: something else differs, or a layer of `state_dict` is wider.
    """
    import torch

    for channels in find_hidden_channels(model):
        stored = state_dict.get(f"{channels.name}.weight")
        if stored is not None and 0 < len(stored) < channels.count(model):
            keep_channels(model, channels, torch.arange(len(stored)))
    model.load_state_dict(state_dict)


def is_norm(layer: "nn.Module") -> bool:
    """Whether a layer normalises channels with stored statistics, frozen or not."""
    return hasattr(layer, "running_mean")


# --- where they are ---------------------------------------------------------------------------


def _of_backbone(model: "FasterRCNN") -> Iterator[HiddenChannels]:
    from torchvision.models.mobilenetv3 import InvertedResidual
    from torchvision.models.resnet import BasicBlock, Bottleneck

    for name, block in model.backbone.body.named_modules(prefix="backbone.body"):
        if isinstance(block, BasicBlock | Bottleneck):
            depth = 3 if isinstance(block, Bottleneck) else 2
            inner = [(f"{name}.conv{i}", f"{name}.bn{i}") for i in range(1, depth)]
            yield from _chain(BACKBONE, inner, (f"{name}.conv{depth}",))
        elif isinstance(block, InvertedResidual):
            yield from _of_expansion(name, block)


def _of_expansion(name: str, block: Any) -> Iterator[HiddenChannels]:
    """The wide inside of an inverted residual; one that does not expand works on its input's own
    channels, which a shortcut may add to."""
    from torchvision.ops.misc import SqueezeExcitation

    layers = dict(block.block.named_children())
    places = list(layers)
    if layers[places[0]][0].groups > 1:  # the depthwise convolution comes first
        return
    writers = [f"{name}.block.{place}.{i}" for place in places[:2] for i in (0, 1)]
    readers = [f"{name}.block.{places[-1]}.0"]
    for place in places[2:-1]:
        assert isinstance(layers[place], SqueezeExcitation)
        writers.append(f"{name}.block.{place}.fc2")
        readers.append(f"{name}.block.{place}.fc1")
    yield HiddenChannels(BACKBONE, tuple(writers), tuple(readers))


def _of_rpn(model: "FasterRCNN") -> Iterator[HiddenChannels]:
    convolutions = model.rpn.head.conv.named_children()
    stages = [_conv_and_norm(f"rpn.head.conv.{name}", block) for name, block in convolutions]
    yield from _chain(RPN, stages, ("rpn.head.cls_logits", "rpn.head.bbox_pred"))


def _of_box_head(model: "FasterRCNN") -> Iterator[HiddenChannels]:
    from torch import nn

    stages: list[Writers] = []
    for name, layer in model.roi_heads.box_head.named_children():
        path = f"roi_heads.box_head.{name}"
        if isinstance(layer, nn.Linear):
            stages.append((path,))
        elif isinstance(layer, nn.Sequential):
            stages.append(_conv_and_norm(path, layer))
    predictor = "roi_heads.box_predictor"
    yield from _chain(BOX_HEAD, stages, (f"{predictor}.cls_score", f"{predictor}.bbox_pred"))


def _conv_and_norm(path: str, block: "nn.Module") -> Writers:
    """The layers of torchvision's Conv2dNormActivation that have weights."""
    from torch import nn

    layers = dict(block.named_children())
    return tuple(
        f"{path}.{name}"
        for name, layer in layers.items()
        if isinstance(layer, nn.Conv2d) or is_norm(layer)
    )


def _chain(part: str, stages: Sequence[Writers], ends: tuple[str, ...]) -> Iterator[HiddenChannels]:
    """Stages of which each is read by the next one alone, and the last one by `ends`."""
    for index, writers in enumerate(stages):
        is_last = index == len(stages) - 1
        yield HiddenChannels(part, writers, ends if is_last else stages[index + 1][:1])


# --- making layers narrower -------------------------------------------------------------------


def _keep_rows(layer: "nn.Module", kept: "Tensor", count: int) -> None:
    from torch import nn

    for name, values in _tensors(layer):
        if values.ndim and len(values) == count:
            _replace(layer, name, values.index_select(0, kept.to(values.device)))
    left = len(kept)
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1:  # depthwise: as many come in
            layer.groups = layer.in_channels = left
        layer.out_channels = left
    elif isinstance(layer, nn.Linear):
        layer.out_features = left
    elif isinstance(layer, nn.BatchNorm2d):
        layer.num_features = left


def _keep_columns(layer: Any, kept: "Tensor", count: int) -> None:
    from torch import nn

    weight = layer.weight
    by_channel = weight.reshape(len(weight), count, -1)  # a kernel, or places of a flattened map
    narrow = by_channel.index_select(1, kept.to(weight.device))
    if isinstance(layer, nn.Linear):
        narrow = narrow.flatten(1)
        layer.in_features = narrow.shape[1]
    else:
        narrow = narrow.reshape(len(weight), len(kept), *weight.shape[2:])
        layer.in_channels = len(kept)
    _replace(layer, "weight", narrow)


def _tensors(layer: "nn.Module") -> "list[tuple[str, Tensor]]":
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _replace(layer: "nn.Module", name: str, values: "Tensor") -> None:
    from torch import nn

    old = getattr(layer, name)
    values = values.detach().contiguous()
    is_parameter = isinstance(old, nn.Parameter)
    setattr(layer, name, nn.Parameter(values, old.requires_grad) if is_parameter else values)
