"""A torchvision FasterRCNN (Ren et al. 2015) re-expressed for inference as one batched graph.

The stock model takes and returns Python lists, loops over images and filters by value, so it can
be neither compiled whole nor exported with a dynamic batch. Here the same modules and weights are
wired with fixed-size tensors: what the stock model would drop keeps its place with score ABSENT.
torch.compile, torch.export and ONNX all start from this graph; in eager mode it is the detector
of the benchmarks and of the video pipeline. Detections equal torchvision's.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from common import inference_ops
from common.box_arithmetic import ABSENT, by_class, clip, decode, has_sides, take_best
from common.models import Predictor, proposals_of
from common.predictors import batch_predictor
from common.roi_align import gathered_roi_align, gathers

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

MIN_DETECTION_SIDE = 1e-2  # pixels; torchvision drops smaller detections
PROBE_SIZE = 128  # an image side that every pyramid level divides


class InferenceGraph(nn.Module):
    """Inference of a FasterRCNN with preprocessing and NMS inside, sharing the model's weights.

    The model is put into evaluation mode. `backbone`, `rpn_head`, `box_head` and `box_predictor`
    are the model's own modules; replacing one (by a compiled version, say) leaves the model alone.
    Their outputs are taken as float32, so they may run under autocast.

    Traced by torch.export or torch.compile it refuses images so long that their short side is
    resized to 64 pixels or less: tracing treats sizes of 1, here of the coarsest pyramid level,
    as special. Eager mode and ONNX take every size.

    Args:
        model: a torchvision FasterRCNN with a feature pyramid; its resize must follow
            `common.models.resized_size`, as `build_model` makes it, for results to be equal.
    """

    cell_anchors: Tensor  # [levels, anchors per cell, 4], around the cell's corner
    mean: Tensor
    std: Tensor

    def __init__(self, model: "FasterRCNN"):
        super().__init__()
        model.eval()
        transform, rpn, roi = model.transform, model.rpn, model.roi_heads
        self.backbone = model.backbone
        self.rpn_head = rpn.head
        self.box_head = roi.box_head
        self.box_predictor = roi.box_predictor

        self.min_size = int(transform.min_size[-1])
        self.max_size = int(transform.max_size)
        self.size_divisor = int(transform.size_divisible)
        self.pre_nms_top_n = int(rpn._pre_nms_top_n["testing"])
        self.post_nms_top_n = proposals_of(model)
        self.rpn_iou_threshold = float(rpn.nms_thresh)
        self.rpn_score_threshold = float(rpn.score_thresh)
        self.rpn_min_side = float(rpn.min_size)
        self.rpn_coder_weights = tuple(rpn.box_coder.weights)
        self.score_threshold = float(roi.score_thresh)
        self.iou_threshold = float(roi.nms_thresh)
        self.max_detections = int(roi.detections_per_img)
        self.box_coder_weights = tuple(roi.box_coder.weights)
        self.roi_size = tuple(roi.box_roi_pool.output_size)
        self.roi_sampling_ratio = int(roi.box_roi_pool.sampling_ratio)
        self.canonical_scale = int(roi.box_roi_pool.canonical_scale)
        self.canonical_level = int(roi.box_roi_pool.canonical_level)

        device = next(model.parameters()).device
        cell_anchors = torch.stack([cell.float() for cell in rpn.anchor_generator.cell_anchors])
        self.register_buffer("cell_anchors", cell_anchors.to(device), persistent=False)
        mean, std = torch.tensor(transform.image_mean), torch.tensor(transform.image_std)
        self.register_buffer("mean", mean.to(device), persistent=False)
        self.register_buffer("std", std.to(device), persistent=False)
        self.roi_levels, self.roi_strides = self._probe_pyramid(roi.box_roi_pool.featmap_names)

    @torch.no_grad()
    def _probe_pyramid(self, pooled_names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Indices and strides of the pyramid levels that RoIs are pooled from."""
        features = self.backbone(self.mean.new_zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
        levels = [index for index, name in enumerate(features) if name in pooled_names]
        widths = [feature.shape[-1] for feature in features.values()]
        return levels, [PROBE_SIZE // widths[level] for level in levels]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detects objects in a batch of images of one size.

        Args:
            images: uint8 [B, H, W, 3] RGB.

        Returns:
            boxes float32 [B, D, 4] xyxy in pixels of the given images, scores float32 [B, D]
            descending, labels int64 [B, D] from 1, num int64 [B]: how many of the D rows of an
            image are detections; the rest are zero.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 [B, H, W, 3], not {images.dtype}")
        pixels, limits, scale = inference_ops.preprocess(
            images, self.mean, self.std, self.min_size, self.max_size, self.size_divisor
        )
        features, boxes, scores, candidates = self.candidates(pixels, limits)
        kept = self.suppress_candidates(boxes, candidates)
        proposals, proposal_scores = self.proposals(boxes, scores, kept)
        rois, roi_scores = proposals.reshape(-1, 4), proposal_scores.reshape(-1)
        pooled, place = self._pool(features, rois, roi_scores >= 0, proposals.shape[1])
        class_boxes, class_scores = self._scatter(
            *self.classify(pooled, rois[place], roi_scores[place], limits), place, proposals.shape
        )
        kept = self.suppress_classes(class_boxes, class_scores)
        return self.select(class_boxes, class_scores, kept, scale)

    def suppress_candidates(self, boxes: Tensor, by_level: Tensor) -> Tensor:
        """Non-maximum suppression within each pyramid level; shapes of `candidates`."""
        return inference_ops.nms_mask(boxes, by_level, self.rpn_iou_threshold, ABSENT / 2)

    def suppress_classes(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Non-maximum suppression within each class; shapes of `select`."""
        boxes, scores = boxes.flatten(0, 1), scores.flatten(0, 1)[:, None]
        return inference_ops.nms_mask(boxes, scores, self.iou_threshold, self.score_threshold)

    # The steps below never wait for the device, and a fixed input gives them fixed shapes:
    # common/cuda_graphs.py records them. Suppression, which waits, stands between them.

    def candidates(
        self, pixels: Tensor, limits: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """The features, and the best anchors of every pyramid level.

        Args:
            pixels: float32 [B, 3, H', W'] and limits: float32 [4], of `inference_ops.preprocess`.

        Returns:
            features, boxes [B, K, 4], scores [B, K], and the scores by level [B, L, K] with ABSENT
            for boxes of other levels or too small.
        """
        features = [feature.float() for feature in self.backbone(pixels).values()]
        objectness, deltas = self.rpn_head(features)
        per_level = [
            self._level_candidates(level, logits.float(), delta.float(), pixels.shape[-2:])
            for level, (logits, delta) in enumerate(zip(objectness, deltas, strict=True))
        ]
        logits, anchors, deltas = (
            torch.cat(parts, dim=1) for parts in zip(*per_level, strict=True)
        )
        boxes = clip(decode(deltas, anchors, self.rpn_coder_weights), limits)
        scores = logits.sigmoid()
        usable = has_sides(boxes, self.rpn_min_side) & (scores >= self.rpn_score_threshold)
        level_of = torch.cat(
            [torch.full_like(logits[0], level) for level, (logits, *_) in enumerate(per_level)]
        )
        levels = torch.arange(len(per_level), device=boxes.device)[:, None]
        by_level = torch.where(usable[:, None] & (level_of == levels), scores[:, None], ABSENT)
        return features, boxes, scores, by_level

    def proposals(self, boxes: Tensor, scores: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Region proposals [B, P, 4] and their scores [B, P], best first, ABSENT at the end.

        Args:
            boxes, scores: of `candidates`.
            kept: bool [B, L, K], what suppression left.
        """
        return take_best(torch.where(kept.any(1), scores, ABSENT), boxes, self.post_nms_top_n)[:2]

    def _level_candidates(
        self, level: int, logits: Tensor, deltas: Tensor, padded_size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The most object-like anchors of a pyramid level: logits [B, K], anchors [B, K, 4] and
        their deltas [B, K, 4].

        Only these anchors are computed. An anchor's stride is padded size // grid size, as in
        torchvision: on an odd grid that is less than the level's true stride.
        """
        batch, anchors_per_cell, height, width = logits.shape
        logits = logits.permute(0, 2, 3, 1).reshape(batch, -1)  # torchvision's order, for ties
        count = torch.sym_min(self.pre_nms_top_n, height * width * anchors_per_cell)
        best, index = logits.topk(count, dim=1)
        cell = torch.div(index, anchors_per_cell, rounding_mode="floor")
        kind = index - cell * anchors_per_cell
        row = torch.div(cell, width, rounding_mode="floor")
        x = (cell - row * width) * (padded_size[1] // width)
        y = row * (padded_size[0] // height)
        anchors = torch.stack((x, y, x, y), dim=-1) + self.cell_anchors[level][kind]

        coordinate = torch.arange(4, device=index.device)
        place = ((kind * 4)[..., None] + coordinate) * (height * width) + cell[..., None]
        picked = deltas.reshape(batch, -1).gather(1, place.reshape(batch, -1))
        return best, anchors, picked.reshape(batch, -1, 4)

    def classify(
        self, pooled: Tensor, rois: Tensor, roi_scores: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class-specific boxes [N, C, 4] and scores [N, C], without the background class.

        Args:
            pooled: [N, channels, size, size] of rois [N, 4]; ABSENT ones get no score.
        """
        logits, deltas = self.box_predictor(self.box_head(pooled))
        scores = logits.float().softmax(-1)[:, 1:]
        deltas = deltas.float().reshape(-1, scores.shape[1] + 1, 4)[:, 1:]
        boxes = clip(decode(deltas, rois[:, None], self.box_coder_weights), limits)
        usable = has_sides(boxes, MIN_DETECTION_SIDE) & (roi_scores >= 0)[:, None]
        return boxes, torch.where(usable, scores, ABSENT)

    def _scatter(
        self, boxes: Tensor, scores: Tensor, place: Tensor, proposals_shape: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Puts results of N rois at their places: boxes [B, C, P, 4] and scores [B, C, P]."""
        batch, count = proposals_shape[:2]
        absent = scores.new_full((batch * count, scores.shape[1]), ABSENT)
        nowhere = boxes.new_zeros((batch * count, scores.shape[1], 4))
        return by_class(
            nowhere.index_put((place,), boxes), absent.index_put((place,), scores), batch
        )

    def _pool(
        self, features: list[Tensor], rois: Tensor, present: Tensor, per_image: int
    ) -> tuple[Tensor, Tensor]:
        """RoIAlign of the present rois, each from the pyramid level that fits its size.

        The first roi is pooled even if absent: not every layer, nor every runtime, takes an empty
        batch.

        Args:
            rois: [B * P, 4], present: bool [B * P], per_image: P.

        Returns:
            pooled [N, channels, size, size] and the places int64 [N] of those N rois among B * P.
        """
        numbered, level_of, maps, scales = self._pooling_plan(features, rois, per_image)
        present = present | (torch.arange(rois.shape[0], device=rois.device) == 0)
        if not torch.compiler.is_compiling() and gathers(maps, self.roi_sampling_ratio):
            place = torch.nonzero(present)[:, 0]
            levels = level_of[place].nan_to_num().long()  # a region may be no number
            sizes = (self.roi_size, self.roi_sampling_ratio)
            return gathered_roi_align(maps, numbered[place], levels, scales, *sizes), place
        pooled, places = [], []
        for level, (feature, scale) in enumerate(zip(maps, scales, strict=True)):
            place = torch.nonzero(present & (level_of == level))[:, 0]
            places.append(place)
            pooled.append(self._align(feature, numbered[place], scale))
        pooled_rois = torch.cat(pooled)
        if torch.compiler.is_compiling():
            torch._check(pooled_rois.numel() != 0)  # lets layers like BatchNorm be traced
        return pooled_rois, torch.cat(places)

    def pool_all(self, features: list[Tensor], rois: Tensor, per_image: int) -> Tensor:
        """RoIAlign of all B * P rois, absent or not: from every level, and then the right one.

        More work than `_pool`, but nothing that depends on the values.
        """
        numbered, level_of, maps, scales = self._pooling_plan(features, rois, per_image)
        pooled = self._align(maps[0], numbered, scales[0])
        for level in range(1, len(maps)):
            is_level = (level_of == level)[:, None, None, None]
            pooled = torch.where(
                is_level, self._align(maps[level], numbered, scales[level]), pooled
            )
        return pooled

    def _pooling_plan(
        self, features: list[Tensor], rois: Tensor, per_image: int
    ) -> tuple[Tensor, Tensor, list[Tensor], list[float]]:
        """Rois with their image's number [B * P, 5], their levels [B * P], maps and scales of the
        levels. The level rule is equation 1 of Lin et al. 2017 (feature pyramid networks)."""
        images = torch.arange(rois.shape[0] // per_image, device=rois.device, dtype=rois.dtype)
        image = images[:, None].expand(-1, per_image).reshape(-1)
        lowest, highest = (int(math.log2(self.roi_strides[end])) for end in (0, -1))
        side = ((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])).sqrt()
        level_of = self.canonical_level + torch.log2(side / self.canonical_scale) + 1e-6
        count = highest - lowest + 1  # levels of equal stride: the first serves all
        return (
            torch.cat((image[:, None], rois), dim=1),
            level_of.floor().clamp(lowest, highest) - lowest,
            [features[level] for level in self.roi_levels[:count]],
            [1 / stride for stride in self.roi_strides[:count]],
        )

    def _align(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        ratio = self.roi_sampling_ratio
        return torch.ops.torchvision.roi_align(feature, rois, scale, *self.roi_size, ratio, False)

    def select(
        self, boxes: Tensor, scores: Tensor, kept: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best D of an image in original pixels; returns what `forward` does.

        Args:
            boxes: [B, C, P, 4], scores: [B, C, P].
            kept: bool [B * C, 1, P], what suppression within each class left.
        """
        batch, _, count = scores.shape
        scores = torch.where(kept.reshape(scores.shape), scores, ABSENT).reshape(batch, -1)
        boxes, scores, index = take_best(scores, boxes.reshape(batch, -1, 4), self.max_detections)
        present = scores >= 0
        labels = torch.div(index, count, rounding_mode="floor") + 1
        return (
            torch.where(present[..., None], boxes * scale, 0.0),
            torch.where(present, scores, 0.0),
            torch.where(present, labels, 0),
            present.sum(1),
        )


def graph_predictor(graph: Callable[[Tensor], Sequence[Tensor]], device: torch.device) -> Predictor:
    """A Predictor over an InferenceGraph, or anything called like one, that is on `device`."""

    @torch.inference_mode()
    def run(batch: np.ndarray) -> list[np.ndarray]:
        images = torch.from_numpy(batch)
        if device.type == "cuda":  # from pinned memory the copy does not stop the host
            images = images.pin_memory()
        outputs = graph(images.to(device, non_blocking=True))
        return [output.cpu().numpy() for output in outputs]

    return batch_predictor(run)
