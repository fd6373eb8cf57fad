"""Finds tracks that weak detections keep alive, and what becomes of them without.

    finder = WeakFinder(confidence=0.5)
    before = copy.deepcopy(tracker)
    step = traced_update(tracker, detections, number, time_s)
    finder.take(before, step, detections)
    ...
    finder.finish()

Where a weak detection continues a track, a copy of the tracker, taken just before, goes on without
weak detections until the track has a strong one again: the same moment, decided twice.
"""

from dataclasses import dataclass

import numpy as np

from phase3_tracking.explain.explain_moments import Finder, is_clear
from phase3_tracking.explain.explain_trace import Step, TracedCMCSORT, strong_only, traced_update
from phase3_tracking.object_tracker import BOX, DETECTED_CONFIDENCE, ID
from phase3_tracking.trackers import kalman_filter
from phase3_tracking.trackers.association import paired_iou
from phase3_tracking.trackers.kalman_tracker import STATE

MOST_FORKS = 16  # copies of the tracker at a time
MOVING_WIDTHS = 0.25  # of its own, per second
LONGEST_FRAMES = 60  # without a strong detection; a track that has none for longer is let go

SAME, OTHER, NEW, NONE = "same", "other", "new", "none"
OPEN = "open"  # no strong detection came any more


@dataclass(frozen=True)
class Decision:
    """One frame, tracked with the weak detections and without."""

    with_weak: Step
    without_weak: Step


@dataclass(frozen=True)
class WeakMoment:
    """A track continued by weak detections.

    Attributes:
        begin: the first frame with a weak one.
        end: the first with a strong one again; None when none came.
        frames: how many weak ones there were.
        outcome: what the strong detection continues without the weak ones: the SAME track, an
            OTHER one, a NEW one, or NONE.
        confidence: below it detections are weak.
        iou: of the first weak detection with the predicted box.
    """

    track_id: int
    begin: Decision
    end: Decision | None
    frames: int
    outcome: str
    confidence: float
    iou: float


@dataclass
class _Followed:
    """A track of a fork: IoU of its first weak detection, and how many weak ones it has had."""

    iou: float
    frames: int = 1


@dataclass
class _Fork:
    """A copy of the tracker that sees no weak detections, for all tracks that had one then."""

    tracker: TracedCMCSORT
    begin: Decision
    followed: dict[int, _Followed]  # by track id


class WeakFinder(Finder[WeakMoment]):
    """Looks for a track that without weak detections comes back under another id.

    Args:
        confidence: detections below it are weak.
    """

    def __init__(self, confidence: float) -> None:
        super().__init__()
        self._confidence = confidence
        self._forks: list[_Fork] = []

    def take(self, before: TracedCMCSORT, step: Step, detections: np.ndarray) -> None:
        """Looks at one frame.

        Args:
            before: a copy of the tracker as it was before the update; it is kept and changed.
            detections: (N, 6), what the update was given.
        """
        strong = strong_only(detections, self._confidence)
        for fork in self._forks:
            self._go_on(fork, step, strong)
        self._forks = [fork for fork in self._forks if fork.followed]
        known = {track_id for fork in self._forks for track_id in fork.followed}
        begun = {
            track_id: _Followed(_iou(step, row))
            for row, track_id in self._weak_pairs(step)
            if track_id not in known
        }
        if begun and len(self._forks) < MOST_FORKS:
            without = traced_update(before, strong, step.number, step.time_s)
            # A weak detection that took the place of a strong one bridges nothing
            bridged = {
                track_id: one for track_id, one in begun.items() if not _seen(without, track_id)
            }
            if bridged:
                self._forks.append(_Fork(before, Decision(step, without), bridged))

    def _weak_pairs(self, step: Step) -> list[tuple[int, int]]:
        """(detection, track id) of the weak detections that continue a track."""
        rows, columns = step.pairs
        weak = step.detections[DETECTED_CONFIDENCE, rows] < self._confidence
        ids = step.predicted[ID, columns].astype(int)
        kept = weak & (ids > 0)
        return list(zip(rows[kept].tolist(), ids[kept].tolist(), strict=True))

    def _go_on(self, fork: _Fork, step: Step, strong: np.ndarray) -> None:
        """Gives the copy the next frame; offers the moments that it decides."""
        without = traced_update(fork.tracker, strong, step.number, step.time_s)
        for track_id, followed in list(fork.followed.items()):
            column = step.column(track_id)
            row = None if column is None else step.detection_of(column)
            if row is None or followed.frames >= LONGEST_FRAMES:
                self._offer(fork, track_id, None, OPEN)
            elif step.detections[DETECTED_CONFIDENCE, row] >= self._confidence:
                outcome = _outcome(track_id, step.detections[:, row], without)
                self._offer(fork, track_id, Decision(step, without), outcome)
            else:
                followed.frames += 1

    def finish(self) -> None:
        """The video is over."""
        for fork in self._forks:
            for track_id in list(fork.followed):
                self._offer(fork, track_id, None, OPEN)
        self._forks = []

    def _offer(self, fork: _Fork, track_id: int, end: Decision | None, outcome: str) -> None:
        """What became of a track, which is then followed no more."""
        followed = fork.followed.pop(track_id)
        step = fork.begin.with_weak
        column = step.column(track_id)
        clear = column is not None and is_clear(step.after[BOX, column])
        moves = column is not None and _moves(step.after[:, column])
        score = (clear, moves, outcome in (NEW, OTHER), outcome in (NONE, SAME), followed.frames)
        moment = WeakMoment(
            *(track_id, fork.begin, end, followed.frames),
            *(outcome, self._confidence, followed.iou),
        )
        self.offer(score, moment)


def _seen(step: Step, track_id: int) -> bool:
    """Whether a detection continues the track."""
    column = step.column(track_id)
    return column is not None and step.detection_of(column) is not None


def _iou(step: Step, row: int) -> float:
    """Of the detection in this row with the predicted box of its track."""
    column = step.pairs[1][step.pairs[0] == row]
    return float(paired_iou(step.detections, step.predicted, np.array([row]), column)[0])


def _moves(track: np.ndarray) -> bool:
    """Whether it goes a good part of its own width in a second; what stands still teaches less."""
    state = track[STATE]
    speed = np.hypot(*state[kalman_filter.VELOCITY][:2]) * kalman_filter.STEPS_PER_SECOND
    return bool(speed >= MOVING_WIDTHS * state[kalman_filter.SIZE][0])


def _outcome(track_id: int, detection: np.ndarray, without: Step) -> str:
    """What this detection (6,) is in the update of the copy."""
    row = (without.detections == detection[:, None]).all(axis=0).nonzero()[0]
    continued = without.pairs[1][np.isin(without.pairs[0], row)]
    if len(continued):
        return SAME if int(without.after[ID, continued[0]]) == track_id else OTHER
    begun = without.after[BOX, without.predicted.shape[1] :]
    return NEW if (begun == detection[BOX, None]).all(axis=0).any() else NONE
