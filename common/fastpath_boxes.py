"""What `common.fastpath.fast_training` puts in place of torchvision's box arithmetic.

Every function is a context manager that replaces methods of one instance, under torchvision's own
signatures, with ones that compute the same.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms, nms

from common.box_arithmetic import decode, has_sides
from common.inference_graph import MIN_DETECTION_SIDE
from common.inference_ops import grouped_nms

SYNCHRONOUS_DEVICES = ("cpu",)  # to wait for a result costs nothing there
ANCHOR_SETS = 32  # image sizes whose anchors are kept: 4 MiB each at 800x1333 px
# Overlaps computed at once: on a CPU they stay in its cache, on a GPU launches are few.
OVERLAPS_AT_ONCE = {"cpu": 2**21, "cuda": 2**25}


@contextlib.contextmanager
def replaced(instance: object, **attributes: Any) -> Iterator[None]:
    """Sets attributes of one instance and takes them back, also from a nested use."""
    own = vars(instance)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(before)


@contextlib.contextmanager
def cached_anchors(generator: AnchorGenerator) -> Iterator[None]:
    """The anchors of an image size are computed once, and in FP32 whatever the features are.

    torchvision computes them anew for every batch, concatenates them once per image, and rounds
    them to the features' precision.
    """
    stock = generator.forward

    @functools.lru_cache(ANCHOR_SETS)
    def anchors(
        image_size: tuple[int, int], grids: tuple[tuple[int, int], ...], device: torch.device
    ) -> Tensor:
        with torch.inference_mode(False):  # usable in training whoever asks for them first
            blank = torch.zeros((), dtype=torch.float32, device=device)
            maps = [blank.expand(1, 1, *grid) for grid in grids]
            return stock(ImageList(blank.expand(1, 3, *image_size), [image_size]), maps)[0]

    def forward(images: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        grids = tuple(tuple(level.shape[-2:]) for level in feature_maps)
        shared = anchors(tuple(images.tensors.shape[-2:]), grids, feature_maps[0].device)
        return [shared] * len(images.image_sizes)

    with replaced(generator, forward=forward):
        yield


# --- proposals --------------------------------------------------------------------------------


@contextlib.contextmanager
def survivors_decoded(rpn: RegionProposalNetwork) -> Iterator[None]:
    """Only the anchors that go into non-maximum suppression are decoded, batch-wide.

    torchvision decodes every anchor and drops most of them at once. Its `box_coder.decode` is
    called a moment before `filter_proposals`, and with that alone in mind: it now hands the deltas
    on, and the selected ones are decoded here.
    """
    anchors: list[Tensor] = []

    def decode_later(deltas: Tensor, batch_anchors: list[Tensor]) -> Tensor:
        anchors[:] = batch_anchors[:1]  # the images share their padding, so all are equal
        return deltas

    def filter_proposals(
        deltas: Tensor,
        objectness: Tensor,
        image_shapes: Sequence[tuple[int, int]],
        anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        logits = objectness.detach().reshape(len(deltas), -1)
        top = rpn._get_top_n_idx(logits, anchors_per_level)
        picked = deltas.gather(1, top[..., None].expand(-1, -1, 4))
        boxes = decode(picked, anchors.pop()[top], rpn.box_coder.weights)
        scores = logits.gather(1, top).sigmoid()
        levels = torch.cat(
            [
                torch.full((min(number, rpn.pre_nms_top_n()),), level, device=top.device)
                for level, number in enumerate(anchors_per_level)
            ]
        )
        for own, (height, width) in zip(boxes, image_shapes, strict=True):
            own[:, 0::2].clamp_(0, width)
            own[:, 1::2].clamp_(0, height)
        usable = has_sides(boxes, rpn.min_size) & (scores >= rpn.score_thresh)
        waits = boxes.device.type in SYNCHRONOUS_DEVICES
        suppress = _dropped_and_suppressed if waits else _suppressed_without_dropping
        kept = suppress(boxes, scores, levels, usable, rpn.nms_thresh)
        kept = [own[: rpn.post_nms_top_n()] for own in kept]
        return (
            [own[place] for own, place in zip(boxes, kept, strict=True)],
            [own[place] for own, place in zip(scores, kept, strict=True)],
        )

    with (
        replaced(rpn.box_coder, decode=decode_later),
        replaced(rpn, filter_proposals=filter_proposals),
    ):
        yield


@contextlib.contextmanager
def thresholded_first(roi_heads: RoIHeads) -> Iterator[None]:
    """Detections are selected by score before their boxes are decoded, and one suppression serves
    all classes of all images.

    torchvision decodes a box of every class for every proposal, image by image, and then drops
    nearly all of them.
    """

    def postprocess_detections(
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        all_scores = class_logits.softmax(-1)
        row, label = (all_scores[:, 1:] > roi_heads.score_thresh).nonzero(as_tuple=True)
        label = label + 1
        sizes = [len(own) for own in proposals]
        numbers = torch.arange(len(sizes), device=row.device)
        lengths = torch.tensor(sizes, device=row.device)
        image = numbers.repeat_interleave(lengths, output_size=sum(sizes))[row]
        deltas = box_regression.reshape(len(all_scores), -1, 4)[row, label]
        boxes = decode(deltas, torch.cat(proposals)[row], roi_heads.box_coder.weights)
        limits = boxes.new_tensor([(width, height) * 2 for height, width in image_shapes])
        boxes = torch.minimum(boxes.clamp(min=0), limits[image])
        usable = has_sides(boxes, MIN_DETECTION_SIDE).nonzero()[:, 0]
        boxes, scores, label, image = (
            part[usable] for part in (boxes, all_scores[row, label], label, image)
        )
        group, order = (image * all_scores.shape[1] + label).sort(stable=True)
        kept = order[grouped_nms(boxes[order], scores[order], group, roi_heads.nms_thresh)]
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        of_image = [kept[image[kept] == number] for number in range(len(sizes))]
        best = [own[: roi_heads.detections_per_img] for own in of_image]
        return (
            [boxes[own] for own in best],
            [scores[own] for own in best],
            [label[own] for own in best],
        )

    with replaced(roi_heads, postprocess_detections=postprocess_detections):
        yield


def _dropped_and_suppressed(
    boxes: Tensor, scores: Tensor, levels: Tensor, usable: Tensor, iou_threshold: float
) -> list[Tensor]:
    """Non-maximum suppression among the usable boxes of each image and level.

    Args:
        boxes: [B, N, 4]; scores: [B, N]; levels: int64 [N]; usable: bool [B, N].

    Returns:
        The places of the kept boxes of each image, best first.
    """
    kept = []
    for own_boxes, own_scores, own_usable in zip(boxes, scores, usable, strict=True):
        place = own_usable.nonzero()[:, 0]
        order = batched_nms(own_boxes[place], own_scores[place], levels[place], iou_threshold)
        kept.append(place[order])
    return kept


def _suppressed_without_dropping(
    boxes: Tensor, scores: Tensor, levels: Tensor, usable: Tensor, iou_threshold: float
) -> list[Tensor]:
    """What `_dropped_and_suppressed` computes, waiting for the device at NMS alone.

    To drop the unusable boxes, the host waits until they are counted. Here they become copies of
    their image's best box with a lower score (in place), and suppression drops them. Of an image
    without a usable box one box stays, with sides of a pixel.
    """
    candidates = torch.where(usable, scores, -1.0)
    best = candidates.argmax(dim=1, keepdim=True)
    spare = boxes.gather(1, best[..., None].expand(-1, -1, 4))
    one_pixel = torch.zeros_like(spare)
    one_pixel[..., 2:] = 1
    spare = torch.where(usable.gather(1, best)[..., None], spare, one_pixel)
    boxes.copy_(torch.where(usable[..., None], boxes, spare))
    own_levels = torch.where(usable, levels, levels[best])
    farthest = boxes.amax(dim=(1, 2))[:, None]
    apart = boxes + (own_levels * (farthest + 1))[..., None]  # as torchvision keeps them apart
    return [nms(*own, iou_threshold) for own in zip(apart, candidates, strict=True)]


# --- matching ---------------------------------------------------------------------------------


@contextlib.contextmanager
def lean_matching(rpn: RegionProposalNetwork) -> Iterator[None]:
    """Matches anchors with the ground truth without waiting for the device, in less memory.

    torchvision's rules (Ren et al. 2015, section 3.1.2): an anchor is positive from the upper
    threshold on, or if no other overlaps a ground-truth box more; negative below the lower one.
    """

    def assign_targets_to_anchors(
        anchors: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [
            _matched(own, target["boxes"], rpn.proposal_matcher)
            for own, target in zip(anchors, targets, strict=True)
        ]
        return [labels for labels, _ in pairs], [boxes for _, boxes in pairs]

    with replaced(rpn, assign_targets_to_anchors=assign_targets_to_anchors):
        yield


def _matched(anchors: Tensor, truth: Tensor, matcher: Any) -> tuple[Tensor, Tensor]:
    """Labels float32 [N] (1 positive, 0 negative, -1 neither), matched ground truth [N, 4]."""
    if len(truth) == 0:
        return anchors.new_zeros(len(anchors)), torch.zeros_like(anchors)
    overlap, index, is_best = _best_matches(anchors, truth)
    labels = (overlap >= matcher.high_threshold).float()
    labels.masked_fill_(
        (overlap >= matcher.low_threshold) & (overlap < matcher.high_threshold), -1.0
    )
    labels.masked_fill_(is_best, 1.0)
    return labels, truth[index]


def _best_matches(anchors: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each anchor: its largest overlap with the truth [N], whose box that is int64 [N], and
    whether it overlaps any ground-truth box the most, ties included, bool [N]."""
    at_once = max(1, OVERLAPS_AT_ONCE.get(anchors.device.type, 2**22) // len(anchors))
    overlap = anchors.new_full((len(anchors),), -1.0)
    index = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    is_best = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    for start in range(0, len(truth), at_once):
        overlaps = _overlaps(truth[start : start + at_once], anchors)
        largest, place = overlaps.max(dim=0)
        is_best |= (overlaps == overlaps.amax(dim=1, keepdim=True)).any(dim=0)
        index = torch.where(largest > overlap, place + start, index)
        overlap = torch.maximum(overlap, largest)
    return overlap, index, is_best


def _overlaps(truth: Tensor, anchors: Tensor) -> Tensor:
    """IoU [M, N] of xyxy boxes, as `torchvision.ops.box_iou` rounds it, with fewer passes."""
    columns = truth[:, :, None].unbind(1)  # x1, y1, x2, y2, each [M, 1]
    rows = anchors.t().contiguous().unbind(0)  # each [N]
    width = torch.minimum(columns[2], rows[2]).sub_(torch.maximum(columns[0], rows[0])).clamp_(0)
    height = torch.minimum(columns[3], rows[3]).sub_(torch.maximum(columns[1], rows[1])).clamp_(0)
    intersection = width.mul_(height)
    area = (columns[2] - columns[0]) * (columns[3] - columns[1])
    union = (area + (rows[2] - rows[0]) * (rows[3] - rows[1])).sub_(intersection)
    return intersection.div_(union)
