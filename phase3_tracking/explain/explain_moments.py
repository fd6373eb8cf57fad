"""Chooses the moments of a video that show best what a tracker does.

    finder = AssignmentFinder(iou_threshold=0.3)
    for step in steps:  # explain_trace.Step
        finder.take(step)
    moment = finder.best  # None when the video shows no such thing

Each finder goes through the steps once and keeps the best moment so far, so memory does not grow
with the video. Nothing is computed here that association.py and the trackers have not decided.
"""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from phase3_tracking.explain.explain_trace import Step
from phase3_tracking.object_tracker import BOX, CLASS, DETECTED_CLASS, HITS, ID, SINCE
from phase3_tracking.trackers.association import Pairs, overlapping_pairs, paired_iou

CLEAR_SIDE_PX = 24.0  # boxes with a shorter side show little when they are enlarged
SHOWN_IOU = 0.6  # both the shared and the unshared part are easy to see
LARGEST_TABLE = 6  # rows and columns that can be read at 800 pixels
NEAR = 3.0  # how far away others may be to be shown, too; in longest sides of a group's boxes
WINDOW = 6  # frames over which a prediction is followed
ESTABLISHED_HITS = 4  # detections after which a velocity has been learnt
MOST_MISSES = 2

Moment = TypeVar("Moment")


class Finder(Generic[Moment]):
    """Keeps the moment with the highest score, the first one of equals."""

    def __init__(self) -> None:
        self.best: Moment | None = None
        self._score: tuple[float, ...] = ()

    def offer(self, score: tuple[float, ...], moment: Moment) -> None:
        if self.best is None or score > self._score:
            self.best, self._score = moment, score


def is_clear(box_xyxy: np.ndarray) -> bool:
    """Whether a box is large enough to be looked at."""
    return bool((box_xyxy[2:] - box_xyxy[:2]).min() >= CLEAR_SIDE_PX)


# --- intersection over union ------------------------------------------------------------------


@dataclass(frozen=True)
class OverlapMoment:
    """Two detections of a track in consecutive frames.

    Attributes:
        frames: their numbers, from 1.
        boxes: (4, 2) xyxy, one column for each.
        iou: of the two, by association.paired_iou.
    """

    frames: tuple[int, int]
    track_id: int
    boxes: np.ndarray
    iou: float


class OverlapFinder(Finder[OverlapMoment]):
    """Looks for clear boxes whose IoU is near SHOWN_IOU."""

    def __init__(self) -> None:
        super().__init__()
        self._before: Step | None = None

    def take(self, step: Step) -> None:
        before, self._before = self._before, step
        if before is None or step.number != before.number + 1:
            return
        for row, column in zip(*step.pairs, strict=True):
            track_id = int(step.predicted[ID, column])
            last = before.column(track_id) if track_id else None
            if last is None or before.after[SINCE, last]:
                continue
            boxes = np.column_stack([before.after[BOX, last], step.detections[BOX, row]])
            iou = float(paired_iou(boxes, boxes, np.array([0]), np.array([1]))[0])
            clear = is_clear(boxes[:, 0]) and is_clear(boxes[:, 1])
            moment = OverlapMoment((before.number, step.number), track_id, boxes, iou)
            self.offer((clear, -abs(iou - SHOWN_IOU)), moment)


# --- assignment -------------------------------------------------------------------------------


@dataclass(frozen=True)
class AssignmentMoment:
    """A part of one frame's assignment that nothing outside of it takes part in.

    Attributes:
        number: of the frame, from 1.
        track_ids: (K,).
        track_boxes, detection_boxes: (4, K) predicted and (4, N), xyxy.
        iou: (K, N); NaN where boxes do not overlap or are of different classes.
        iou_threshold: pairs below it are not allowed.
        chosen, greedy: (track, detection) pairs.
    """

    number: int
    track_ids: np.ndarray
    track_boxes: np.ndarray
    detection_boxes: np.ndarray
    iou: np.ndarray
    iou_threshold: float
    chosen: Pairs
    greedy: Pairs

    def total(self, pairs: Pairs) -> float:
        """The sum of IoU over (track, detection) pairs."""
        return float(self.iou[pairs].sum())

    @property
    def greedy_differs(self) -> bool:
        return self.total(self.chosen) - self.total(self.greedy) > 1e-9


def greedy_pairs(row: np.ndarray, column: np.ndarray, gain: np.ndarray) -> Pairs:
    """The best pair first, then the best of those whose row and column are still free."""
    rows: list[int] = []
    columns: list[int] = []
    for index in np.argsort(-gain, kind="stable").tolist():
        if row[index] not in rows and column[index] not in columns:
            rows.append(int(row[index]))
            columns.append(int(column[index]))
    return np.array(rows, np.int64), np.array(columns, np.int64)


class AssignmentFinder(Finder[AssignmentMoment]):
    """Looks for a frame where the best pair first is wrong, else for the most contested one.

    Args:
        iou_threshold: the tracker's.
    """

    def __init__(self, iou_threshold: float) -> None:
        super().__init__()
        self._iou_threshold = iou_threshold

    def take(self, step: Step) -> None:
        detections, tracks = step.detections, step.predicted
        if min(detections.shape[1], tracks.shape[1]) < 2:
            return
        row, column = overlapping_pairs(
            detections[BOX], detections[DETECTED_CLASS], tracks[BOX], tracks[CLASS]
        )
        iou = np.full((tracks.shape[1], detections.shape[1]), np.nan)
        iou[column, row] = paired_iou(detections, tracks, row, column)
        allowed = np.argwhere(np.nan_to_num(iou) >= self._iou_threshold).T
        greedy = greedy_pairs(allowed[0], allowed[1], iou[tuple(allowed)])
        chosen = step.pairs[1], step.pairs[0]
        contested = allowed.shape[1] - len(chosen[0])
        differs = iou[chosen].sum() - iou[greedy].sum() > 1e-9
        if self.best and (differs, contested) <= self._score[:2]:
            return
        parts = _parts(iou, _group_of_interest(iou, allowed, chosen, greedy), tracks)
        if parts is None:
            return
        kept_tracks, kept_detections = parts
        moment = AssignmentMoment(
            step.number,
            tracks[ID, kept_tracks].astype(int),
            tracks[BOX][:, kept_tracks],
            detections[BOX][:, kept_detections],
            iou[np.ix_(kept_tracks, kept_detections)],
            self._iou_threshold,
            _within(chosen, kept_tracks, kept_detections),
            _within(greedy, kept_tracks, kept_detections),
        )
        self.offer((differs, contested), moment)


def _groups(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected component of each track (K,) and detection (N,): who overlaps whom."""
    tracks, detections = iou.shape
    row, column = np.nonzero(~np.isnan(iou))
    shape = (tracks + detections,) * 2
    links = csr_array((np.ones(len(row)), (row, tracks + column)), shape=shape)
    labels = connected_components(links, directed=False)[1]
    return labels[:tracks], labels[tracks:]


def _group_of_interest(iou: np.ndarray, allowed: np.ndarray, chosen: Pairs, greedy: Pairs) -> int:
    """The group in which greedy goes wrong, or the one with the most allowed pairs."""
    of_track, _ = _groups(iou)
    differing = set(zip(*map(np.ndarray.tolist, chosen), strict=True))
    differing ^= set(zip(*map(np.ndarray.tolist, greedy), strict=True))
    tracks = [track for track, _ in differing] or allowed[0].tolist() or [0]
    return int(np.bincount(of_track[tracks]).argmax())


def _parts(iou: np.ndarray, group: int, tracks: np.ndarray) -> Pairs | None:
    """Tracks and detections of the group and of its neighbours; None when it is too large."""
    of_track, of_detection = _groups(iou)
    centres, own = (tracks[:2] + tracks[2:4]) / 2, of_track == group
    distance = np.linalg.norm(centres - centres[:, own].mean(axis=1, keepdims=True), axis=0)
    longest_side = (tracks[2:4] - tracks[:2])[:, own].max()
    near = np.argsort(distance, kind="stable")
    by_distance = of_track[near[distance[near] <= NEAR * longest_side]]
    kept: list[int] = []
    for label in dict.fromkeys([group, *by_distance.tolist()]):
        wanted = [*kept, label]
        sizes = np.isin(of_track, wanted).sum(), np.isin(of_detection, wanted).sum()
        if max(sizes) <= LARGEST_TABLE:
            kept = wanted
        elif label == group:
            return None
    return np.isin(of_track, kept).nonzero()[0], np.isin(of_detection, kept).nonzero()[0]


def _within(pairs: Pairs, tracks: np.ndarray, detections: np.ndarray) -> Pairs:
    """The pairs of these tracks, by their places among them."""
    kept = np.isin(pairs[0], tracks)
    return np.searchsorted(tracks, pairs[0][kept]), np.searchsorted(detections, pairs[1][kept])


# --- prediction -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictionMoment:
    """A track in WINDOW frames running."""

    track_id: int
    steps: tuple[Step, ...]


class PredictionFinder(Finder[PredictionMoment]):
    """Looks for a track that is missed for a frame or two and found again; else for a fast one."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: deque[Step] = deque(maxlen=WINDOW)

    def take(self, step: Step) -> None:
        self._steps.append(step)
        if len(self._steps) < WINDOW:
            return
        for track_id in step.predicted[ID, step.pairs[1]].astype(int).tolist():
            score = self._score_of(track_id) if track_id else None
            if score is not None:
                self.offer(score, PredictionMoment(track_id, tuple(self._steps)))

    def _score_of(self, track_id: int) -> tuple[float, ...] | None:
        columns = [step.column(track_id) for step in self._steps]
        first, last = self._steps[0], self._steps[-1]
        if columns[0] is None or columns[-1] is None or None in columns:
            return None
        if first.after[HITS, columns[0]] < ESTABLISHED_HITS or first.after[SINCE, columns[0]]:
            return None
        pairs = zip(self._steps, columns, strict=True)
        misses = sum(bool(step.after[SINCE, column]) for step, column in pairs)
        begin, end = first.after[BOX, columns[0]], last.after[BOX, columns[-1]]
        moved = np.linalg.norm(begin + np.roll(begin, 2) - end - np.roll(end, 2)) / 2**1.5
        side = (begin[2:] - begin[:2]).mean()
        return is_clear(begin), 1 <= misses <= MOST_MISSES, min(float(moved / side), 2.0)


# --- camera motion ----------------------------------------------------------------------------


@dataclass(frozen=True)
class CameraMoment:
    """How far boxes lay from their predictions in one frame, and the median of that.

    Attributes:
        number: of the frame, from 1.
        track_ids: (P,) tracks seen in the frame before that one detection alone fits.
        predicted, detected: (4, P) xyxy.
        displacements: (2, P) pixels from the centre predicted to that detected.
        shift: (2,) pixels: what the tracker took for the camera's motion.
    """

    number: int
    track_ids: np.ndarray
    predicted: np.ndarray
    detected: np.ndarray
    displacements: np.ndarray
    shift: np.ndarray


class CameraFinder(Finder[CameraMoment]):
    """Looks for the largest motion of the camera; `frames` counts those it was estimated in."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = 0

    def take(self, step: Step) -> None:
        camera = step.camera
        if camera is None or camera.shift is None:
            return
        self.frames += 1
        row, column = camera.pairs
        alone = (np.bincount(row)[row] == 1) & (np.bincount(column)[column] == 1)
        predicted = camera.predicted[BOX][:, column[alone]]
        detected = step.detections[BOX][:, row[alone]]
        moved = detected - predicted
        moment = CameraMoment(
            step.number,
            camera.predicted[ID, column[alone]].astype(int),
            predicted,
            detected,
            (moved[:2] + moved[2:]) / 2,
            camera.shift,
        )
        self.offer((float(np.hypot(*camera.shift)),), moment)
