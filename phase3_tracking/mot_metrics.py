"""How good tracks are: HOTA, CLEAR MOT and identity metrics.

    counts = count_matches(ground_truth, tracks)  # one sequence
    scores(counts)["hota"], scores(sum_counts([counts, other]))["idf1"]

Sources: HOTA, DetA, AssA – Luiten et al., IJCV 2021; MOTA, MOTP – Bernardin and Stiefelhagen 2008;
IDF1 – Ristani et al. 2016. The details the papers leave open (which match wins a tie, what counts
as a switch after a gap, how sequences are combined) follow TrackEval, the evaluation code of the
MOTChallenge, so the figures equal its own.
"""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from phase3_tracking.mot_files import MotBoxes

MATCH_IOU = 0.5  # a match for MOTA, MOTP, IDF1 and the removal of distractors
HOTA_THRESHOLDS = np.arange(0.05, 0.99, 0.05)  # the 19 IoU thresholds HOTA averages over
EPSILON = np.finfo(float).eps
PEDESTRIAN = 1
# person on vehicle, static person, distractor, reflection: finding one is neither right nor wrong
MOT17_DISTRACTORS = (2, 7, 8, 12)


@dataclass(frozen=True)
class MatchCounts:
    """Sums from which every score follows; those of several sequences or classes simply add up.

    Attributes:
        gt_boxes, predicted_boxes: boxes evaluated.
        matches: CLEAR true positives, pairs with IoU >= 0.5.
        iou_sum: total IoU of these pairs.
        id_switches, fragments: as CLEAR MOT defines them.
        id_matches: identity true positives, under the best one-to-one mapping of ids.
        hota_matches: (19,) true positives at each HOTA threshold.
        association_sum: (19,) sum over these true positives of their association score.
    """

    gt_boxes: int
    predicted_boxes: int
    matches: int
    iou_sum: float
    id_switches: int
    fragments: int
    id_matches: int
    hota_matches: np.ndarray
    association_sum: np.ndarray


def sum_counts(counts: Iterable[MatchCounts]) -> MatchCounts:
    """Pools sequences or classes: every box weighs the same, wherever it comes from."""
    total = MatchCounts(0, 0, 0, 0.0, 0, 0, 0, *np.zeros((2, len(HOTA_THRESHOLDS))))
    for one in counts:
        total = MatchCounts(*map(operator.add, astuple(total), astuple(one)))
    return total


def scores(counts: MatchCounts) -> dict[str, float | int]:
    """The scores as fractions (1 is perfect; MOTA can be negative) and the raw counts.

    Divisors are at least 1, as in TrackEval, so scores of nothing are 0. (Where one side is empty,
    TrackEval shows MOTA 0 for the sequence alone; its combined figure is the one given here.)
    """
    gt, predicted = counts.gt_boxes, counts.predicted_boxes
    hota_matches = counts.hota_matches
    detection = hota_matches / np.maximum(1, gt + predicted - hota_matches)
    association = counts.association_sum / np.maximum(1, hota_matches)
    fp, fn = predicted - counts.matches, gt - counts.matches
    return {
        "hota": float(np.sqrt(detection * association).mean()),
        "deta": float(detection.mean()),
        "assa": float(association.mean()),
        "mota": (counts.matches - fp - counts.id_switches) / max(1, gt),
        "motp": counts.iou_sum / max(1, counts.matches),
        "idf1": counts.id_matches / max(1.0, (gt + predicted) / 2),
        "id_switches": counts.id_switches,
        "fragments": counts.fragments,
        "fp": fp,
        "fn": fn,
        "gt_boxes": gt,
        "predicted_boxes": predicted,
    }


@dataclass(frozen=True)
class _Frame:
    """One frame with boxes on at least one side; ids are numbered from 0 without gaps."""

    gt: np.ndarray  # (g,) ids
    predicted: np.ndarray  # (p,) ids
    iou: np.ndarray  # (g, p)


def count_matches(ground_truth: MotBoxes, tracks: MotBoxes) -> MatchCounts:
    """Compares the tracks of one sequence, and one class, with its ground truth.

    Ground truth boxes with confidence 0 are left out; classes are not looked at.
    """
    ground_truth = ground_truth.select(ground_truth.confidences != 0)
    gt_names, gt = np.unique(ground_truth.ids, return_inverse=True)
    predicted_names, predicted = np.unique(tracks.ids, return_inverse=True)
    frames = [
        _Frame(gt[gt_rows], predicted[rows], iou)
        for gt_rows, rows, iou in _frames(ground_truth, tracks)
    ]
    shape = (len(gt_names), len(predicted_names))
    matches, iou_sum, id_switches, fragments = _clear(frames, len(gt_names))
    hota_matches, association_sum = _hota(frames, shape)
    return MatchCounts(
        gt_boxes=len(gt),
        predicted_boxes=len(predicted),
        matches=matches,
        iou_sum=iou_sum,
        id_switches=id_switches,
        fragments=fragments,
        id_matches=_identity(frames, shape),
        hota_matches=hota_matches,
        association_sum=association_sum,
    )


def without_distractors(ground_truth: MotBoxes, tracks: MotBoxes) -> tuple[MotBoxes, MotBoxes]:
    """The preprocessing of MOT16 and MOT17, after which only pedestrians are left.

    Tracked boxes that match a ground truth box of a distractor class are removed. Then every ground
    truth box that is not a pedestrian, or has confidence 0, is removed.
    """
    is_distractor = np.isin(ground_truth.classes, MOT17_DISTRACTORS)
    kept = np.ones(len(tracks), bool)
    for gt_rows, rows, iou in _frames(ground_truth, tracks):
        gain = np.where(iou < MATCH_IOU - EPSILON, 0, iou)
        gt_index, index = linear_sum_assignment(gain, maximize=True)
        matched = gain[gt_index, index] > EPSILON
        kept[rows][index[matched & is_distractor[gt_rows][gt_index]]] = False
    is_evaluated = (ground_truth.classes == PEDESTRIAN) & (ground_truth.confidences != 0)
    return ground_truth.select(is_evaluated), tracks.select(kept)


def _frames(gt: MotBoxes, tracks: MotBoxes) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """(rows of gt, rows of tracks, IoU matrix) of every frame, in order."""
    numbers = np.union1d(gt.frames, tracks.frames)
    bounds = np.stack(
        [
            np.searchsorted(boxes.frames, numbers, side)
            for boxes in (gt, tracks)
            for side in ("left", "right")
        ],
        axis=1,
    )
    for gt_begin, gt_end, begin, end in bounds.tolist():
        gt_rows, rows = slice(gt_begin, gt_end), slice(begin, end)
        yield gt_rows, rows, iou_matrix(gt.boxes_xyxy[gt_rows], tracks.boxes_xyxy[rows])


def iou_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """IoU (A, B) of (A, 4) and (B, 4) xyxy boxes; a box without area overlaps nothing."""
    a, b = boxes_a[:, None], boxes_b[None]
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    union = area_a + area_b - intersection
    has_area = (area_a > EPSILON) & (area_b > EPSILON) & (union > EPSILON)
    return np.where(has_area, intersection, 0) / np.where(has_area, union, 1)


def _clear(frames: list[_Frame], gt_count: int) -> tuple[int, float, int, int]:
    """CLEAR MOT: matches, their total IoU, id switches, fragments.

    A frame first keeps the matches of the frame before and then maximises IoU. A switch is a change
    of id against the last match, however long ago. Frames that have boxes on one side only change
    nothing, also not what "the frame before" means.
    """
    matches, iou_sum, id_switches = 0, 0.0, 0
    last_id = np.full(gt_count, -1)  # the id of the last match, -1 before the first
    previous_id = np.full(gt_count, -1)  # the same, of the frame before only
    begun = np.zeros(gt_count, np.int64)  # stretches of frames in which the object is matched
    for frame in frames:
        if not frame.iou.size:
            continue
        continues = frame.predicted[None] == previous_id[frame.gt][:, None]
        gain = np.where(frame.iou < MATCH_IOU - EPSILON, 0, 1000.0 * continues + frame.iou)
        row, column = linear_sum_assignment(gain, maximize=True)
        matched = gain[row, column] > EPSILON
        row, column = row[matched], column[matched]
        gt, predicted = frame.gt[row], frame.predicted[column]
        id_switches += int(((last_id[gt] >= 0) & (last_id[gt] != predicted)).sum())
        begun[gt] += previous_id[gt] < 0
        last_id[gt] = predicted
        previous_id[:] = -1
        previous_id[gt] = predicted
        matches += len(row)
        iou_sum += float(frame.iou[row, column].sum())
    return matches, iou_sum, id_switches, int(np.maximum(begun - 1, 0).sum())


def _identity(frames: list[_Frame], shape: tuple[int, int]) -> int:
    """Boxes explained by the one-to-one mapping of ids that explains most of them."""
    overlaps = np.zeros(shape, np.int64)
    for frame in frames:
        row, column = np.nonzero(frame.iou >= MATCH_IOU)
        overlaps[frame.gt[row], frame.predicted[column]] += 1
    return int(overlaps[linear_sum_assignment(overlaps, maximize=True)].sum())


def _hota(frames: list[_Frame], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """True positives and the sum of their association scores at each of the 19 thresholds."""
    alignment, gt_length, length = _alignment(frames, shape)
    pair_ids, ious = [np.empty(0, np.int64)], [np.empty(0)]
    for frame in frames:
        ids = np.ix_(frame.gt, frame.predicted)
        row, column = linear_sum_assignment(alignment[ids] * frame.iou, maximize=True)
        pair_ids.append(frame.gt[row] * shape[1] + frame.predicted[column])
        ious.append(frame.iou[row, column])
    pairs, pair = np.unique(np.concatenate(pair_ids), return_inverse=True)
    iou = np.concatenate(ious)
    gt_of_pair, predicted_of_pair = np.divmod(pairs, max(1, shape[1]))
    lengths = gt_length[gt_of_pair] + length[predicted_of_pair]

    association_sum = np.zeros(len(HOTA_THRESHOLDS))
    hota_matches = np.zeros(len(HOTA_THRESHOLDS))
    for index, threshold in enumerate(HOTA_THRESHOLDS):
        count = np.bincount(pair[iou >= threshold - EPSILON], minlength=len(pairs))
        hota_matches[index] = count.sum()
        association_sum[index] = (count * count / np.maximum(1, lengths - count)).sum()
    return hota_matches, association_sum


def _alignment(
    frames: list[_Frame], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How well each pair of ids agrees over the whole sequence, and how long each id lives."""
    overlap = np.zeros(shape)
    gt_length, length = np.zeros(shape[0]), np.zeros(shape[1])
    for frame in frames:
        gt_length[frame.gt] += 1
        length[frame.predicted] += 1
        competing = frame.iou.sum(axis=0) + frame.iou.sum(axis=1, keepdims=True) - frame.iou
        share = np.zeros_like(frame.iou)
        np.divide(frame.iou, competing, out=share, where=competing > EPSILON)
        overlap[np.ix_(frame.gt, frame.predicted)] += share
    return overlap / (gt_length[:, None] + length - overlap), gt_length, length
