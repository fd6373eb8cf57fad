"""The detectors: building them, saving and loading them, and running the stock forward pass.

Every model is a plain torchvision FasterRCNN (Ren et al. 2015, https://arxiv.org/abs/1506.01497)
with a feature pyramid (Lin et al. 2017, https://arxiv.org/abs/1612.03144): a checkpoint's
`model_state_dict` loads into torchvision itself. The one difference is the resize: the resized
size follows one integer rule, the same in training, inference and every exported format.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common import anchors, artifacts, paths
from common.checkpoint_values import check_values
from common.cli import UserError, log
from common.hidden_channels import load_weights

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torchvision.models.detection import FasterRCNN

DEMO = "demo"
SIZES = {  # architecture -> (min_size, max_size): short side aimed at, long side never exceeded
    DEMO: (288, 512),
    "fasterrcnn_resnet50_fpn": (800, 1333),
    "fasterrcnn_resnet50_fpn_v2": (800, 1333),
    "fasterrcnn_mobilenet_v3_large_fpn": (800, 1333),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (320, 640),
}
ARCHITECTURES = tuple(SIZES)
WEIGHTS = ("coco", "imagenet", "none")


class Detections(NamedTuple):
    """Boxes of one image: float32 (N, 4) xyxy in pixels of the original image, scores float32
    (N,) in [0, 1], labels int64 (N,) from 1."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


Predictor = Callable[[Sequence[np.ndarray]], list[Detections]]
"""Takes uint8 RGB images (H, W, 3) of any sizes, returns one Detections for each."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, with what a checkpoint knows of it."""

    model: "FasterRCNN"
    architecture: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    path: Path


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The size an image is resized to: short side `min_size`, unless the long side would exceed
    `max_size`.

    torchvision computes this in floating point, and its eager, scripted and traced models then
    disagree by a pixel for many sizes. Integer arithmetic is equal everywhere; it differs from
    torchvision's eager rule for about 2% of sizes, by one pixel.
    """
    short, long = min(height, width), max(height, width)
    return (
        max(1, min(height * min_size // short, height * max_size // long)),
        max(1, min(width * min_size // short, width * max_size // long)),
    )


def input_size(architecture: str, min_size: int | None, max_size: int | None) -> tuple[int, int]:
    """`min_size` and `max_size` of the resize, with the architecture's own in place of None."""
    default_min, default_max = SIZES[architecture]
    min_size = min_size or default_min
    max_size = max_size or max(default_max, min_size)
    if max_size < min_size:
        raise UserError(f"--max-size {max_size}", f"below --min-size {min_size}", "raise it")
    return min_size, max_size


# --- building ---------------------------------------------------------------------------------


def build_model(
    architecture: str,
    num_classes: int,
    *,
    weights: str = "none",
    min_size: int | None = None,
    max_size: int | None = None,
    anchor_sizes: Sequence[int] | None = None,
) -> "FasterRCNN":
    """Builds a detector on the CPU, in training mode.

    Args:
        architecture: one of ARCHITECTURES.
        num_classes: classes including the background.
        weights: "coco" (detector trained on COCO; its box predictor is replaced), "imagenet"
            (backbone only) or "none" (random).
        min_size: short side after the resize in pixels; by default the architecture's own.
        max_size: longest side after the resize in pixels.
        anchor_sizes: as many as the architecture has, in pixels after the resize.

    Raises:
        UserError: no such architecture, or weights that do not exist or cannot be fetched.
    """
    if architecture not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise UserError(f"--architecture {architecture}", "unknown", f"use one of {allowed}")
    min_size, max_size = input_size(architecture, min_size, max_size)
    if architecture == DEMO:
        if weights != "none":
            raise UserError(f"--weights {weights}", "the demo model has none", "use --weights none")
        model = _build_demo(num_classes)
    else:
        model = _build_torchvision(architecture, num_classes, weights)
    model.transform = exact_resize_transform(model, min_size, max_size)
    if anchor_sizes is not None:
        levels = anchors.arrange_sizes(anchor_sizes, model.rpn.anchor_generator.sizes)
        anchors.set_anchor_sizes(model, levels)
    return model


def _build_torchvision(architecture: str, num_classes: int, weights: str) -> "FasterRCNN":
    from torchvision.models import detection, get_model_weights
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    builder = getattr(detection, architecture)
    backbone = "resnet50" if "resnet50" in architecture else "mobilenet_v3_large"
    if weights == "none":
        return builder(weights=None, weights_backbone=None, num_classes=num_classes)
    if weights == "imagenet":
        source = get_model_weights(backbone).IMAGENET1K_V1
        return _fetch(
            source,
            lambda: builder(weights=None, weights_backbone=source, num_classes=num_classes),
        )
    source = get_model_weights(architecture).DEFAULT
    model = _fetch(source, lambda: builder(weights=source))
    features = model.roi_heads.box_predictor.cls_score.in_features
    model.roi_heads.box_predictor = FastRCNNPredictor(features, num_classes)
    return model


def _fetch(source: Any, build: Callable[[], "FasterRCNN"]) -> "FasterRCNN":
    """Builds with pretrained weights; offline, one line says where to put the file.

    A file that lies there already is checked against the sha256 in its name: torch.hub checks
    what it downloads only, and would execute code pickled into the file.
    """
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / source.url.rsplit("/", 1)[1]
    if file.is_file() and not artifacts.sha256(file).startswith(file.stem.rsplit("-", 1)[1]):
        what = "is damaged: its sha256 is not the one in its name"
        raise UserError(file, what, "delete it and fetch it again")
    try:
        return build()
    except OSError as error:  # URLError is one
        remedy = f"put {file.name} into {file.parent}, or use --weights none"
        raise UserError(f"--weights: {source}", f"cannot be fetched ({error})", remedy) from None
    except RuntimeError as error:  # the sha256 of the download is wrong
        raise UserError(f"--weights: {source}", f"damaged ({error})", "try again") from None


def _build_demo(num_classes: int) -> "FasterRCNN":
    """A Faster R-CNN that trains from scratch in minutes on two CPU cores.

    Plain 3x3 convolutions (depthwise ones train slowly on CPUs) in four residual stages, pyramid
    levels of stride 8, 16 and 32, and fewer proposals through a narrower box head.
    """
    from torch import nn
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    channels, head_width, roi_size = 64, 256, 5
    stages = OrderedDict(
        stem=nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=True),
        ),
        layer1=_stage(24, 32, blocks=1),
        layer2=_stage(32, 64, blocks=2),
        layer3=_stage(64, 128, blocks=2),
        layer4=_stage(128, 192, blocks=1),
    )
    backbone = BackboneWithFPN(
        nn.Sequential(stages),
        return_layers={"layer2": "0", "layer3": "1", "layer4": "2"},
        in_channels_list=[64, 128, 192],
        out_channels=channels,
    )
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            sizes=((16, 24), (40, 64), (96, 144), (200, 280)), aspect_ratios=((0.5, 1.0, 2.0),) * 4
        ),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=roi_size, sampling_ratio=2),
        box_head=TwoMLPHead(channels * roi_size**2, head_width),
        box_predictor=FastRCNNPredictor(head_width, num_classes),
        rpn_pre_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=150,
        rpn_batch_size_per_image=128,
        box_batch_size_per_image=64,
        box_detections_per_img=50,
    )


def _stage(channels_in: int, channels_out: int, blocks: int) -> "torch.nn.Module":
    """Halves the resolution and refines it with residual blocks (He et al. 2015)."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock

    shortcut = nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=2, bias=False), nn.BatchNorm2d(channels_out)
    )
    return nn.Sequential(
        BasicBlock(channels_in, channels_out, stride=2, downsample=shortcut),
        *(BasicBlock(channels_out, channels_out) for _ in range(blocks - 1)),
    )


def exact_resize_transform(model: "FasterRCNN", min_size: int, max_size: int) -> "torch.nn.Module":
    """torchvision's input transform with the integer resize rule of `resized_size`."""
    import torch
    from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

    class ExactResizeTransform(GeneralizedRCNNTransform):
        def resize(
            self, image: torch.Tensor, target: dict[str, torch.Tensor] | None = None
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
            height, width = image.shape[-2:]
            size = resized_size(height, width, self.min_size[-1], self.max_size)
            if size == (height, width):
                return image, target
            image = torch.nn.functional.interpolate(
                image[None], size=size, mode="bilinear", align_corners=False
            )[0]
            if target is not None:
                target["boxes"] = resize_boxes(target["boxes"], [height, width], list(size))
            return image, target

    stock = model.transform
    return ExactResizeTransform(min_size, max_size, stock.image_mean, stock.image_std)


# --- checkpoints ------------------------------------------------------------------------------


def save_model(
    path: Path,
    model: "FasterRCNN",
    *,
    architecture: str,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    summary: Mapping[str, Any],
    keep_previous: bool = False,
    **extra: Any,
) -> None:
    """Writes a checkpoint (tensors and plain values only) and `summary` with its sha256 beside it.

    `extra` goes into the checkpoint as it is, for instance the optimizer's state. With
    `keep_previous` the checkpoint that was there stays as NAME.previous.pth.
    """
    from torchvision.ops.misc import FrozenBatchNorm2d

    frozen_norms = (m for m in model.modules() if isinstance(m, FrozenBatchNorm2d))
    checkpoint = {
        "architecture": architecture,
        "num_classes": len(class_names) + 1,
        "min_size": model.transform.min_size[-1],
        "max_size": model.transform.max_size,
        "anchor_sizes": [list(level) for level in model.rpn.anchor_generator.sizes],
        "frozen_norm_eps": next((norm.eps for norm in frozen_norms), None),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "class_names": list(class_names),
        "category_ids": list(category_ids),
        "model_state_dict": model.state_dict(),
        **extra,
    }
    artifacts.save_checkpoint(path, checkpoint, summary, keep_previous=keep_previous)


def load_model(path: Path | None, device: "torch.device") -> LoadedModel:
    """Loads a checkpoint written by `save_model`, in evaluation mode.

    Args:
        path: the checkpoint; None takes the best model of the last training.

    Raises:
        UserError: no checkpoint, a damaged one, or one that does not fit its architecture.
    """
    if path is None:
        path = paths.BEST_MODEL
        log.info("Model: %s", paths.display(path))
    checkpoint = artifacts.load_checkpoint(path)
    if "quantization" in checkpoint:
        raise UserError(path, "is quantised already", "give the checkpoint it was made from")
    try:
        check_values(checkpoint)
        model = rebuild_model(checkpoint)
    except KeyError as error:
        raise UserError(path, f"lacks the entry {error}", "give one by phase1_training") from error
    except (RuntimeError, TypeError, ValueError, AttributeError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(path, f"does not fit its model ({reason:.160})", "train again") from error
    return LoadedModel(
        model.to(device).eval(),
        checkpoint["architecture"],
        tuple(checkpoint["class_names"]),
        tuple(checkpoint["category_ids"]),
        Path(path),
    )


def rebuild_model(checkpoint: Mapping[str, Any]) -> "FasterRCNN":
    """The model of a checkpoint, on the CPU, also how wide its layers are and which do not train.

    torchvision gives detectors with pretrained weights frozen normalisation layers and untrained
    ones ordinary layers: what a checkpoint needs is known from itself, without fetching weights.
    """
    sizes = {key: checkpoint[key] for key in ("min_size", "max_size")}
    model = build_model(checkpoint["architecture"], checkpoint["num_classes"], **sizes)
    if "anchor_sizes" in checkpoint:
        anchors.set_anchor_sizes(model, checkpoint["anchor_sizes"])
    if checkpoint.get("frozen_norm_eps") is not None:
        freeze_norms(model, checkpoint["frozen_norm_eps"])
    load_weights(model, checkpoint["model_state_dict"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in checkpoint.get("frozen", ()))
    return model


def freeze_norms(model: "nn.Module", eps: float) -> None:
    """Replaces every BatchNorm2d by torchvision's frozen form, as pretrained detectors have it."""
    from torch import nn
    from torchvision.ops.misc import FrozenBatchNorm2d

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child.num_features, eps))


def proposals_of(model: "FasterRCNN") -> int:
    """How many region proposals of an image the box head looks at, in inference."""
    return int(model.rpn._post_nms_top_n["testing"])


def limit_proposals(model: "FasterRCNN", count: int) -> None:
    """Lets the box head look at the `count` best region proposals at most, in inference."""
    model.rpn._post_nms_top_n["testing"] = min(count, proposals_of(model))


# --- running ----------------------------------------------------------------------------------


def stock_predictor(model: "FasterRCNN", device: "torch.device") -> Predictor:
    """torchvision's own forward pass on a list of float images in [0, 1]."""
    import torch

    @torch.inference_mode()
    def predict(images: Sequence[np.ndarray]) -> list[Detections]:
        inputs = [
            torch.from_numpy(image).to(device).permute(2, 0, 1).to(torch.float32) / 255
            for image in images
        ]
        return [
            Detections(
                output["boxes"].float().cpu().numpy(),  # under autocast they are not FP32
                output["scores"].float().cpu().numpy(),
                output["labels"].cpu().numpy(),
            )
            for output in model(inputs)
        ]

    return predict
