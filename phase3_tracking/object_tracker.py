"""Tracking by overlap: each detection continues the track it overlaps most, or starts a new one.

    from phase3_tracking.object_tracker import IOUTracker

    tracker = IOUTracker(iou_threshold=0.3, max_age=30, min_hits=1)
    # detections (N, 6) [x1, y1, x2, y2, confidence, class_id]
    # tracks     (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence]
    tracks = tracker.update(detections)  # once for every frame

A track is a box that stays where its last detection was; there is no motion model. Association is
the Hungarian method (Kuhn 1955; scipy's implementation of Crouse 2016) on intersection over union,
as in the tracking half of SORT (Bewley et al. 2016) without its Kalman filter.
"""

from abc import ABC, abstractmethod

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_PAIRS = 1 << 20  # pairs of boxes looked at in one go: bounds the memory of a crowded frame


class Tracker(ABC):
    """What every tracker here shares: checked input, ids, ages, and state in flat arrays.

    Ids are 1, 2, 3, ... in the order in which tracks are first returned, and are never used again.
    The order of the detections in a frame has no influence on the result.

    Attributes:
        dropped_detections: detections refused so far, because a value was not finite or the box
            had no area.
        tracks_started: ids given so far.
    """

    def __init__(self, iou_threshold: float, max_age: int, min_hits: int):
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be above 0 and at most 1, not {iou_threshold}")
        if not max_age >= 0 or max_age % 1:
            raise ValueError(f"max_age must be a whole number of frames from 0, not {max_age}")
        if not min_hits >= 1 or min_hits % 1:
            raise ValueError(f"min_hits must be a whole number from 1, not {min_hits}")
        self.iou_threshold = float(iou_threshold)
        self.max_age = int(max_age)
        self.min_hits = int(min_hits)
        self.dropped_detections = 0
        self.tracks_started = 0
        self._detections = np.empty((0, 6))  # the last detection of each track
        self._ids = np.empty(0, np.int64)  # 0 until the track is first returned
        self._hits = np.empty(0, np.int64)
        self._missed = np.empty(0, np.int64)  # consecutive frames without a detection

    @abstractmethod
    def update(self, detections: np.ndarray) -> np.ndarray:
        """Takes the detections of the next frame and returns the tracks seen in it.

        Args:
            detections: (N, 6) [x1, y1, x2, y2, confidence, class_id] in pixels; an empty frame is
                an empty array, and every frame must be given, empty or not.

        Returns:
            (M, 7) float64 [x1, y1, x2, y2, track_id, class_id, confidence], by ascending track_id:
            the confirmed tracks (see `min_hits`) that were matched in this very frame.

        Raises:
            ValueError: the array has another shape.
        """

    def _checked(self, detections: np.ndarray) -> np.ndarray:
        """Drops unusable rows and sorts the rest, so that ties never depend on the order given."""
        detections = np.asarray(detections, np.float64)
        if detections.size == 0:
            return np.empty((0, 6))
        if detections.ndim != 2 or detections.shape[1] != 6:
            raise ValueError(
                "detections must be (N, 6) [x1, y1, x2, y2, confidence, class_id], "
                f"not of shape {detections.shape}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            width = detections[:, 2] - detections[:, 0]
            height = detections[:, 3] - detections[:, 1]
            usable = np.isfinite(detections).all(axis=1) & np.isfinite(width * height)
            usable &= (width > 0) & (height > 0) & (width * height > 0)
        self.dropped_detections += int(len(detections) - usable.sum())
        detections = detections[usable]
        x1, y1, x2, y2, confidence, class_id = detections.T
        return detections[np.lexsort((y2, x2, y1, x1, class_id, -confidence))]

    def _seen_now(self) -> np.ndarray:
        """Gives ids to tracks that have just been confirmed and collects what update() returns."""
        seen = np.flatnonzero((self._missed == 0) & (self._hits >= self.min_hits))
        unnamed = seen[self._ids[seen] == 0]
        self._ids[unnamed] = self.tracks_started + 1 + np.arange(len(unnamed))
        self.tracks_started += len(unnamed)
        seen = seen[np.argsort(self._ids[seen])]
        rows = self._detections[seen]
        return np.column_stack([rows[:, :4], self._ids[seen], rows[:, 5], rows[:, 4]])

    def _renew(self, alive: np.ndarray, new: np.ndarray) -> None:
        """Keeps the tracks marked in `alive` (K,) and starts one from each row of `new` (N, 6)."""
        nothing, once = np.zeros(len(new), np.int64), np.ones(len(new), np.int64)
        self._detections = np.concatenate([self._detections[alive], new])
        self._ids = np.concatenate([self._ids[alive], nothing])
        self._hits = np.concatenate([self._hits[alive], once])
        self._missed = np.concatenate([self._missed[alive], nothing])


class IOUTracker(Tracker):
    """Class-aware IoU tracker with its state in flat arrays, one row per track.

    A detection may continue a track only when both have the same class and their IoU is at least
    `iou_threshold`; so an id never crosses classes. Among all such pairs, the set with the largest
    total IoU is taken, each detection and each track being used at most once. Every detection left
    over starts a track.

    Args:
        iou_threshold: smallest IoU that continues a track, above 0 and at most 1.
        max_age: how many consecutive frames without a detection a track survives. A track missed
            in `max_age` frames running can still be continued in the next one; one further miss
            removes it. 0 removes a track at its first miss.
        min_hits: how many detections a track must have had in all, the first included, before it is
            returned. 1 returns a track in the frame it starts in. Misses in between do not reset
            the count.

    Raises:
        ValueError: a parameter is outside its range.
    """

    def __init__(self, iou_threshold: float = 0.3, max_age: int = 30, min_hits: int = 1):
        super().__init__(iou_threshold, max_age, min_hits)

    def update(self, detections: np.ndarray) -> np.ndarray:
        detections = self._checked(detections)
        matched, continued = associate(detections, self._detections, self.iou_threshold)
        self._missed += 1
        self._detections[continued] = detections[matched]
        self._hits[continued] += 1
        self._missed[continued] = 0

        is_new = np.ones(len(detections), bool)
        is_new[matched] = False
        self._renew(self._missed <= self.max_age, detections[is_new])
        return self._seen_now()


def associate(
    detections: np.ndarray, tracks: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one pairs of the same class with IoU >= iou_threshold and the largest total IoU.

    Pairs below the threshold are removed first. What is left falls into small groups that do not
    touch each other, so a crowded frame costs many tiny assignments instead of one huge one.

    Args:
        detections, tracks: (N, 6) and (K, 6) [x1, y1, x2, y2, confidence, class_id]; finite, each
            box with an area.

    Returns:
        Indices into `detections` and into `tracks`, of equal length.
    """
    rows_at_once = max(1, MAX_PAIRS // max(1, len(tracks)))
    parts = [
        _overlapping_pairs(detections[start : start + rows_at_once], tracks, iou_threshold, start)
        for start in range(0, len(detections), rows_at_once)
    ]
    if not parts or not sum(len(part[0]) for part in parts):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    detection, track, iou = (np.concatenate(column) for column in zip(*parts, strict=True))

    # A pair whose detection and track occur in no other pair needs no assignment.
    single = (np.bincount(detection)[detection] == 1) & (np.bincount(track)[track] == 1)
    matched, continued = [detection[single]], [track[single]]
    contested = np.flatnonzero(~single)
    for group in _groups(detection[contested], track[contested]):
        pairs = contested[group]
        rows, row = np.unique(detection[pairs], return_inverse=True)
        columns, column = np.unique(track[pairs], return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = iou[pairs]
        best_row, best_column = linear_sum_assignment(gain, maximize=True)
        allowed = gain[best_row, best_column] > 0
        matched.append(rows[best_row[allowed]])
        continued.append(columns[best_column[allowed]])
    return np.concatenate(matched), np.concatenate(continued)


def _overlapping_pairs(
    detections: np.ndarray, tracks: np.ndarray, iou_threshold: float, first_row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(detection index, track index, IoU) of every admissible pair; a sweep along x finds them."""
    by_left = np.argsort(tracks[:, 0], kind="stable")
    left = tracks[by_left, 0]
    widest = (tracks[:, 2] - tracks[:, 0]).max(initial=0)
    begin = np.searchsorted(left, detections[:, 0] - widest)
    end = np.searchsorted(left, detections[:, 2])
    count = np.maximum(end - begin, 0)
    row = np.repeat(np.arange(len(detections)), count)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    track = by_left[np.repeat(begin, count) + offset]

    same_class = detections[row, 5] == tracks[track, 5]
    row, track = row[same_class], track[same_class]
    iou = paired_iou(detections[row, :4], tracks[track, :4])
    enough = iou >= iou_threshold
    return row[enough] + first_row, track[enough], iou[enough]


def paired_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """IoU (P,) of row i of one with row i of the other; both (P, 4) xyxy with positive areas."""
    ax1, ay1, ax2, ay2 = boxes_a.T
    bx1, by1, bx2, by2 = boxes_b.T
    width = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), 0)
    height = np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1), 0)
    intersection = width * height
    return intersection / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection)


def _groups(detection: np.ndarray, track: np.ndarray) -> list[np.ndarray]:
    """Positions of the pairs, split into connected components of the detection-track graph."""
    if not len(detection):
        return []
    first_track = detection.max() + 1
    size = first_track + track.max() + 1
    edges = coo_array(
        (np.ones(len(detection), np.int8), (detection, first_track + track)), shape=(size, size)
    )
    component = connected_components(edges, directed=False)[1][detection]
    order = np.argsort(component, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
