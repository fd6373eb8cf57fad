"""The training losses of a stock torchvision FasterRCNN, as sums over any part of a batch.

torchvision's own training forward takes lists of images, draws its samples from the global random
state and divides each loss by the number of samples in the batch, so a batch computed in parts
(several GPUs, or parts that fit into memory) has other losses than the whole. Here one padded
tensor goes in, every image draws from a seed of its own, and sums come out beside their counts:
the parts' sums divided by the counts of all are the losses of the whole batch (Ren et al. 2015,
https://arxiv.org/abs/1506.01497, equation 1).

The model is unchanged and its own modules do the work, so whatever is installed on them, for
instance by `common.fastpath.fast_training`, takes effect here too.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection._utils import encode_boxes
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork

LOSS_NAMES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
SMOOTH_L1_BETA = 1 / 9  # torchvision's, in both stages
ABSENT = -1.0  # sampling key of what is no candidate; real keys lie in [0, 1)

Target = Mapping[str, Tensor]
"""{"boxes": float32 [M, 4] xyxy in pixels of the padded batch, "labels": int64 [M] from 1}."""


@dataclass(frozen=True)
class LossSums:
    """Losses of a batch, or of a part of one, before they are averaged.

    Attributes:
        sums: 0-dim tensors under torchvision's names.
        counts: float32 [2], the sampled anchors and the sampled regions (RoIs).
    """

    sums: dict[str, Tensor]
    counts: Tensor

    def losses(self, counts: Tensor | None = None) -> dict[str, Tensor]:
        """The losses: means over the samples.

        Args:
            counts: float32 [2], by default its own. For one part of a batch give the counts of
                the whole batch; the losses (and gradients) of the parts then add up to its own.
        """
        anchors, rois = (self.counts if counts is None else counts).clamp(min=1).unbind()
        divisors = {
            "loss_classifier": rois,
            "loss_box_reg": rois,
            "loss_objectness": anchors,
            "loss_rpn_box_reg": anchors,
        }
        return {name: value / divisors[name] for name, value in self.sums.items()}


def training_losses(
    model: "FasterRCNN",
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    targets: Sequence[Target],
    seeds: Sequence[int],
    *,
    features: Mapping[str, Tensor] | None = None,
) -> LossSums:
    """The losses torchvision's training forward computes, on a batch that is ready made.

    Boxes are taken as they are: zero-sized ones would make the losses infinite. How many
    proposals are kept, and how normalisation layers behave, follows the modules' training mode.

    Args:
        model: a torchvision FasterRCNN.
        images: float32 [B, 3, H, W], normalised, zero outside each image.
        sizes: (height, width) of each image inside the padding.
        targets: one per image; images without boxes have tensors of length 0.
        seeds: one per image, decides which anchors and proposals are sampled.
        features: the backbone's pyramid levels for `images`, where they are known already.
    """
    generators = _generators(seeds, images.device)
    if features is None:
        features = model.backbone(images)
    rpn = _run_rpn(model.rpn, images, sizes, features)
    anchors = _sample_anchors(model.rpn, rpn, targets, generators)
    rpn_sums = _rpn_sums(model.rpn, rpn, anchors)  # queued on a GPU before NMS waits for it
    proposals = _propose(model.rpn, rpn, sizes)
    rois = _sample_rois(model.roi_heads, proposals, targets, generators)

    pooled = model.roi_heads.box_roi_pool(features, rois.boxes, list(sizes))
    logits, deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    sums = {**_roi_sums(logits, deltas, rois), **rpn_sums}
    return LossSums(sums, torch.stack((anchors.count, rois.count)))


@torch.no_grad()
def count_samples(
    model: "FasterRCNN",
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    targets: Sequence[Target],
    seeds: Sequence[int],
) -> Tensor:
    """The `counts` that `training_losses` would give, float32 [2], without gradients or box head.

    Arguments are those of `training_losses`. The running statistics of batch normalisation stay
    as they are.
    """
    generators = _generators(seeds, images.device)
    with _untracked_statistics(model.backbone):
        features = model.backbone(images)
    rpn = _run_rpn(model.rpn, images, sizes, features)
    anchors = _sample_anchors(model.rpn, rpn, targets, generators)
    proposals = _propose(model.rpn, rpn, sizes)
    rois = _sample_rois(model.roi_heads, proposals, targets, generators)
    return torch.stack((anchors.count, rois.count))


def set_training_mode(model: nn.Module) -> None:
    """`model.train()`, but normalisation of a frozen stage goes on with its running statistics."""
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and not layer.weight.requires_grad:
            layer.eval()


# --- region proposals -------------------------------------------------------------------------


@dataclass(frozen=True)
class _RpnOutput:
    objectness: Tensor  # [B, N] logits
    deltas: Tensor  # [B, N, 4]
    anchors: list[Tensor]  # per image [N, 4]; equal, as the images share their padding
    anchors_per_level: list[int]


@dataclass(frozen=True)
class _AnchorSamples:
    index: Tensor  # [B, K] into the N anchors, positive ones first
    chosen: Tensor  # bool [B, K], False where an image has fewer than K candidates
    positive: Tensor  # bool [B, K]
    truth: Tensor  # [B, K, 4], the box matched to each positive anchor
    count: Tensor  # 0-dim float32


def _run_rpn(
    rpn: "RegionProposalNetwork",
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    features: Mapping[str, Tensor],
) -> _RpnOutput:
    levels = list(features.values())
    objectness_maps, delta_maps = rpn.head(levels)
    anchors = rpn.anchor_generator(ImageList(images, list(sizes)), levels)
    anchors_per_level = [level[0].numel() for level in objectness_maps]
    objectness, deltas = concat_box_prediction_layers(objectness_maps, delta_maps)
    return _RpnOutput(
        objectness.view(len(images), -1),
        deltas.view(len(images), -1, 4),
        anchors,
        anchors_per_level,
    )


@torch.no_grad()
def _propose(
    rpn: "RegionProposalNetwork", output: _RpnOutput, sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Regions that may hold an object, per image [P, 4]."""
    batch = len(output.anchors)
    boxes = rpn.box_coder.decode(output.deltas.detach().flatten(0, 1), output.anchors)
    proposals, _ = rpn.filter_proposals(
        boxes.view(batch, -1, 4), output.objectness.detach(), list(sizes), output.anchors_per_level
    )
    return proposals


@torch.no_grad()
def _sample_anchors(
    rpn: "RegionProposalNetwork",
    output: _RpnOutput,
    targets: Sequence[Target],
    generators: Sequence[torch.Generator],
) -> _AnchorSamples:
    label_rows, truth_rows = rpn.assign_targets_to_anchors(output.anchors, list(targets))
    labels = torch.stack(label_rows)
    keys = torch.stack(
        [
            _random_keys(len(row), generator)
            for row, generator in zip(labels, generators, strict=True)
        ]
    )
    index, chosen = sample_balanced(labels, keys, rpn.fg_bg_sampler)
    positive = chosen & (labels.gather(1, index) > 0)
    truth = torch.stack([matched[row] for matched, row in zip(truth_rows, index, strict=True)])
    return _AnchorSamples(index, chosen, positive, truth, chosen.sum().float())


def _rpn_sums(
    rpn: "RegionProposalNetwork", output: _RpnOutput, samples: _AnchorSamples
) -> dict[str, Tensor]:
    logits = output.objectness.gather(1, samples.index)
    objectness = F.binary_cross_entropy_with_logits(
        logits, samples.positive.float(), weight=samples.chosen.float(), reduction="sum"
    )
    # Positive anchors come first, so the other places need no deltas.
    most = int(rpn.fg_bg_sampler.batch_size_per_image * rpn.fg_bg_sampler.positive_fraction)
    index, positive = samples.index[:, :most], samples.positive[:, :most]
    deltas = output.deltas.gather(1, index[..., None].expand(-1, -1, 4))
    wanted = encode_boxes(
        samples.truth[:, :most].reshape(-1, 4),
        output.anchors[0][index].reshape(-1, 4),
        rpn.box_coder.weights,
    )
    return {
        "loss_objectness": objectness,
        "loss_rpn_box_reg": _regression_sum(deltas, wanted.view_as(deltas), positive),
    }


def _regression_sum(deltas: Tensor, wanted: Tensor, positive: Tensor) -> Tensor:
    """The smooth L1 loss of the positive rows; the others, whose targets mean nothing, weigh 0."""
    wanted = torch.where(positive[..., None], wanted, deltas.detach())
    return F.smooth_l1_loss(deltas, wanted, beta=SMOOTH_L1_BETA, reduction="sum")


# --- regions of interest ----------------------------------------------------------------------


@dataclass(frozen=True)
class _RoiSamples:
    boxes: list[Tensor]  # per image [R, 4]
    labels: Tensor  # int64 [all R], 0 is the background
    wanted: Tensor  # [all R, 4], regression targets; arbitrary for the background
    count: Tensor  # 0-dim float32


@torch.no_grad()
def _sample_rois(
    roi_heads: "RoIHeads",
    proposals: Sequence[Tensor],
    targets: Sequence[Target],
    generators: Sequence[torch.Generator],
) -> _RoiSamples:
    truth = [target["boxes"] for target in targets]
    candidates = roi_heads.add_gt_proposals(list(proposals), truth)
    matches, labels = roi_heads.assign_targets_to_proposals(
        candidates, truth, [target["labels"] for target in targets]
    )
    keys = [
        _random_keys(len(row), generator) for row, generator in zip(labels, generators, strict=True)
    ]
    index, chosen = sample_balanced(
        pad_sequence(labels, batch_first=True, padding_value=-1),
        pad_sequence(keys, batch_first=True),
        roi_heads.fg_bg_sampler,
    )
    counts = chosen.sum(1)
    kept = counts.tolist()  # the one wait for the device: the box head takes no empty places
    rows = [row[:number] for row, number in zip(index, kept, strict=True)]
    boxes = [candidate[row] for candidate, row in zip(candidates, rows, strict=True)]
    nowhere = candidates[0].new_zeros(1, 4)  # stands in where an image has no boxes
    matched = [
        (own if len(own) else nowhere)[match[row]]
        for own, match, row in zip(truth, matches, rows, strict=True)
    ]
    return _RoiSamples(
        boxes,
        torch.cat([label[row] for label, row in zip(labels, rows, strict=True)]),
        encode_boxes(torch.cat(matched), torch.cat(boxes), roi_heads.box_coder.weights),
        counts.sum().float(),
    )


def _roi_sums(logits: Tensor, deltas: Tensor, samples: _RoiSamples) -> dict[str, Tensor]:
    places = samples.labels[:, None, None].expand(-1, 1, 4)
    own_class = deltas.reshape(len(deltas), -1, 4).gather(1, places)[:, 0]
    return {
        "loss_classifier": F.cross_entropy(logits, samples.labels, reduction="sum"),
        "loss_box_reg": _regression_sum(own_class, samples.wanted, samples.labels > 0),
    }


# --- sampling ---------------------------------------------------------------------------------


class SamplerSettings(NamedTuple):
    """How many candidates of an image are sampled, and the most positive ones among them.

    torchvision's BalancedPositiveNegativeSampler has the same attributes.
    """

    batch_size_per_image: int
    positive_fraction: float


def sample_balanced(
    labels: Tensor, keys: Tensor, settings: SamplerSettings
) -> tuple[Tensor, Tensor]:
    """Samples positive and negative candidates of each image without waiting for the device.

    torchvision's rule: positives up to their share, then negatives up to the size. The candidates
    with the largest keys are taken, so random keys give a uniform sample.

    Args:
        labels: [B, N], above 0 positive, 0 negative, below 0 no candidate.
        keys: float32 [B, N] in [0, 1).

    Returns:
        index int64 [B, K] of the sampled candidates, positives first, and chosen bool [B, K]:
        False where an image has too few candidates. K is the smaller of the size and N.
    """
    size = min(settings.batch_size_per_image, labels.shape[1])
    most = min(int(settings.batch_size_per_image * settings.positive_fraction), size)
    score = torch.where(labels == 0, keys, ABSENT)
    drawn, place = torch.where(labels > 0, keys, ABSENT).topk(most, dim=1)
    ahead = torch.where(drawn >= 0, drawn + 1, score.gather(1, place))  # above every negative
    best, index = score.scatter(1, place, ahead).topk(size, dim=1)
    return index, best >= 0


def _generators(seeds: Sequence[int], device: torch.device) -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def _random_keys(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


@contextlib.contextmanager
def _untracked_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation computes as before, but its running statistics stay as they are."""
    norms = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.training
        and layer.track_running_stats
    ]
    for layer in norms:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in norms:
            layer.track_running_stats = True
