"""Speed-ups composed onto a stock torchvision detector, without forking it."""

import contextlib
import functools
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torchvision.models.detection import FasterRCNN
    from torchvision.ops.misc import FrozenBatchNorm2d

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # x86-64, and the last one on Arm


@contextlib.contextmanager
def precision_safe_autocast(
    model: "FasterRCNN", dtype: "torch.dtype", device_type: str
) -> Iterator[None]:
    """Runs the heavy modules of a detector under autocast and keeps the box arithmetic in FP32.

    Autocast around the whole model rounds anchors, proposals and ground-truth boxes to the low
    precision: bfloat16 has 8 bits of mantissa, so a coordinate above 256 px moves by pixels. Here
    only the backbone, the RPN head, the box head and the box predictor compute in `dtype`
    (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740); their outputs return as FP32, so
    anchors, box coding, matching, losses and NMS are those of an FP32 run.

    Args:
        model: changed inside the `with` block only.
        dtype: torch.bfloat16 or torch.float16.
        device_type: "cuda" or "cpu".
    """
    import torch

    roi_heads = model.roi_heads
    heavy = (model.backbone, model.rpn.head, roi_heads.box_head, roi_heads.box_predictor)

    def wrapped(module: "nn.Module") -> Any:
        forward = module.forward

        def forward_in_low_precision(*args: Any) -> Any:
            with torch.autocast(device_type, dtype=dtype):
                return to_float32(forward(*args))

        return forward_in_low_precision

    for module in heavy:
        module.forward = wrapped(module)
    try:
        yield
    finally:
        for module in heavy:
            del module.forward  # the class's own forward shows again


@contextlib.contextmanager
def fast_training(
    model: "FasterRCNN",
    *,
    cached_anchors: bool = True,
    survivors_decoded: bool = True,
    lean_matching: bool = True,
    folded_norms: bool = True,
    fast_roi_pool: bool = True,
) -> Iterator[None]:
    """Makes the training forward of a stock detector faster; its losses stay the same.

    Methods of this one model are replaced inside the `with` block only. Its parameters and the
    keys and values of its state_dict are untouched, so it can be saved at any time; a copy made
    inside the block would share the replaced methods, so copy before.

    Args:
        model: a torchvision FasterRCNN; `model(images, targets)` and
            `common.training_losses.training_losses` both profit.
        cached_anchors: compute the anchors of an image size once, in FP32 also under autocast.
        survivors_decoded: decode only those proposals that go into non-maximum suppression.
        lean_matching: match anchors with the ground truth in fewer passes over less memory.
        folded_norms: multiply frozen normalisation into the weights of the convolution before.
        fast_roi_pool: on a CPU pool regions as weighted sums of vectors, on a GPU with one wait.
    """
    from common import fastpath_boxes, fastpath_layers

    parts = (
        (cached_anchors, fastpath_boxes.cached_anchors, model.rpn.anchor_generator),
        (survivors_decoded, fastpath_boxes.survivors_decoded, model.rpn),
        (lean_matching, fastpath_boxes.lean_matching, model.rpn),
        (folded_norms, fastpath_layers.folded_norms, model),
        (fast_roi_pool, fastpath_layers.fast_roi_pool, model.roi_heads.box_roi_pool),
    )
    with contextlib.ExitStack() as stack:
        for is_wanted, part, module in parts:
            if is_wanted:
                stack.enter_context(part(module))
        yield


def normalise_batch(
    model: "FasterRCNN", images: "Tensor", sizes: Sequence[tuple[int, int]]
) -> "Tensor":
    """Pixels as the backbone takes them, with the mean and deviation of the model's transform.

    Args:
        images: uint8 [B, 3, H, W] RGB, best in channels_last memory.
        sizes: (height, width) of each image inside the padding.

    Returns:
        float32 [B, 3, H, W] in channels_last memory, zero outside the images.
    """
    import torch

    batch, channels, height, width = images.shape
    mean, std = tuple(model.transform.image_mean), tuple(model.transform.image_std)
    scale, shift = _row_constants(mean, std, width, images.device)
    rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    pixels = torch.addcmul(shift, rows.to(torch.float32), scale)
    pixels = pixels.reshape(batch, height, width, channels)
    for image, (image_height, image_width) in zip(pixels, sizes, strict=True):
        image[image_height:].zero_()
        image[:, image_width:].zero_()
    return pixels.permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)  # training sees a handful of widths
def _row_constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: "torch.device"
) -> "tuple[Tensor, Tensor]":
    """(x / 255 - mean) / std as x * scale + shift, for a row of interleaved channels [W * 3].

    A whole row at once is one long vector operation; channel by channel would be runs of three.
    """
    import torch

    deviation = torch.tensor(std, dtype=torch.float64)
    scale = 1 / (255 * deviation)
    shift = -torch.tensor(mean, dtype=torch.float64) / deviation
    return (
        scale.to(torch.float32).repeat(width).to(device),
        shift.to(torch.float32).repeat(width).to(device),
    )


def native_amp(device: "torch.device") -> str:
    """The half precision the device computes natively: "bf16", "fp16" or, with neither, "off".

    Without instructions of its own a CPU emulates bfloat16 more slowly than it computes FP32.
    """
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu":
        # Older releases of torch do not tell what the processor can do.
        capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if any(capabilities.get(name) for name in BF16_INSTRUCTIONS) else "off"
    return "off"


def to_float32(value: Any) -> Any:
    """Tensors, or dicts and lists of them, in FP32."""
    if isinstance(value, dict):  # the pyramid levels, in their order
        return OrderedDict((key, to_float32(entry)) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(to_float32(entry) for entry in value)
    return value.float()


def fold_batchnorm(model: "nn.Module") -> int:
    """Folds every batch normalisation that follows a convolution into it; exact up to rounding.

    In evaluation a normalisation multiplies and adds constants. torchvision's pretrained ResNets
    do it in 53 separate layers of 11 small operations each. The change is in place and for
    inference only: save weights before, never after.

    Returns:
        The number of layers folded.
    """
    import torch
    from torch import nn
    from torchvision.ops.misc import FrozenBatchNorm2d

    folded = 0
    norms = (FrozenBatchNorm2d, nn.BatchNorm2d)
    for parent, name, conv, norm in list(_norms_after_convolutions(model, norms)):
        if norm.training and isinstance(norm, nn.BatchNorm2d):
            raise ValueError("batch normalisation can be folded in evaluation mode only")
        with torch.no_grad():
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            bias = 0 if conv.bias is None else conv.bias
            conv.weight.mul_(scale[:, None, None, None])
            conv.bias = nn.Parameter(norm.bias + (bias - norm.running_mean) * scale)
        setattr(parent, name, nn.Identity())
        folded += 1
    return folded


def frozen_norms_after_convolutions(
    model: "nn.Module",
) -> "Iterator[tuple[nn.Module, str, nn.Conv2d, FrozenBatchNorm2d]]":
    """Every FrozenBatchNorm2d that follows a convolution: its parent, its name there, the
    convolution and itself."""
    from torchvision.ops.misc import FrozenBatchNorm2d

    yield from _norms_after_convolutions(model, (FrozenBatchNorm2d,))


def _norms_after_convolutions(model: "nn.Module", norms: tuple[type, ...]) -> Iterator[Any]:
    from torch import nn

    for parent in model.modules():
        children = list(parent.named_children())
        for (_, conv), (name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, norms):
                yield parent, name, conv, norm
