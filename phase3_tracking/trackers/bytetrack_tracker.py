"""ByteTrack: weak detections are not thrown away, but matched after the strong ones.

    from phase3_tracking.trackers.bytetrack_tracker import ByteTrackTracker

    tracks = ByteTrackTracker().update(detections)  # (N, 6) -> (M, 7), once for every frame

Multi-object tracking by associating every detection box, Zhang et al. 2022,
https://arxiv.org/abs/2110.06864. Three rounds of assignment follow each other: strong detections
and confirmed tracks; weak detections and the confirmed tracks left over that were seen in the frame
before; strong detections left over and unconfirmed tracks. Parameters are those of the authors'
code. The filter's state is this project's (kalman_filter), with width in place of aspect ratio, and
ids stay within a class.
"""

import math

import numpy as np

from phase3_tracking.object_tracker import (
    BOX,
    CLASS,
    DETECTED_CLASS,
    DETECTED_CONFIDENCE,
    FRAME_RATE,
    HITS,
)
from phase3_tracking.trackers.association import Pairs, assign, overlapping_pairs, paired_iou
from phase3_tracking.trackers.kalman_tracker import KalmanTracker

MAX_AGE_S = 1.0
WEAK_IOU_THRESHOLD, UNCONFIRMED_THRESHOLD = 0.5, 0.3


class ByteTrackTracker(KalmanTracker):
    """Args:
        iou_threshold: smallest IoU times confidence of a strong detection and a confirmed track.
        max_age: how many frames in a row without a detection a track survives; None is 1 second.
        min_hits: how many detections a track must have had before it is confirmed and returned.
            Until then it ends at its first miss. What the very first frame shows is confirmed.
        frame_rate: frames per second of the video; see `update`.
        high_confidence: detections of at least this confidence are strong. Minus infinity is for
            confidences that mean nothing: all detections are strong, and weigh the same.
        low_confidence: detections below are not used.
        start_confidence: what a detection needs to start a track.

    Raises:
        ValueError: a parameter is outside its range.
    """

    def __init__(
        self,
        iou_threshold: float = 0.2,
        max_age: int | None = None,
        min_hits: int = 2,
        frame_rate: float = FRAME_RATE,
        high_confidence: float = 0.6,
        low_confidence: float = 0.1,
        start_confidence: float = 0.7,
    ):
        if max_age is None:
            max_age = round(MAX_AGE_S * frame_rate)
        super().__init__(iou_threshold, max_age, min_hits, frame_rate)
        self.high_confidence = float(high_confidence)
        self.low_confidence = float(low_confidence)
        self.start_confidence = float(start_confidence)

    def _match(self, detections: np.ndarray) -> Pairs:
        confidence = detections[DETECTED_CONFIDENCE]
        is_strong = confidence >= self.high_confidence
        is_confirmed = self._tracks[HITS] >= self.min_hits
        strong = is_strong.nonzero()[0]
        weak = (~is_strong & (confidence >= self.low_confidence)).nonzero()[0]
        confirmed, unconfirmed = is_confirmed.nonzero()[0], (~is_confirmed).nonzero()[0]
        is_unrated = self.high_confidence == -math.inf
        weight = np.ones_like(confidence) if is_unrated else confidence.clip(max=1)

        first = self._round(detections, strong, confirmed, self.iou_threshold, weight)
        left = _without(confirmed, first[1])
        left = left[~self._missed[left]]
        second = self._round(detections, weak, left, WEAK_IOU_THRESHOLD)
        left = _without(strong, first[0])
        third = self._round(detections, left, unconfirmed, UNCONFIRMED_THRESHOLD, weight)
        rows, columns = zip(first, second, third, strict=True)
        return np.concatenate(rows), np.concatenate(columns)

    def _round(
        self,
        detections: np.ndarray,
        row: np.ndarray,
        column: np.ndarray,
        threshold: float,
        weight: np.ndarray | None = None,
    ) -> Pairs:
        """Assigns these detections to these tracks; `weight` is by detection."""
        if not len(row) or not len(column):
            return row[:0], column[:0]
        boxes, tracks = detections[:, row], self._tracks[:, column]
        pairs = overlapping_pairs(boxes[BOX], boxes[DETECTED_CLASS], tracks[BOX], tracks[CLASS])
        gain = paired_iou(boxes, tracks, *pairs)
        if weight is not None:
            gain *= weight[row[pairs[0]]]
        enough = gain >= threshold
        shape = (len(row), len(column))
        best_row, best_column = assign(pairs[0][enough], pairs[1][enough], gain[enough], shape)
        return row[best_row], column[best_column]

    @property
    def least_to_start(self) -> float:
        return max(self.high_confidence, self.start_confidence)

    def _start(self, detections: np.ndarray) -> None:
        super()._start(detections)
        if not self._updates:
            self._tracks[HITS] = self.min_hits

    def _is_over(self) -> np.ndarray:
        return super()._is_over() | (self._missed & (self._tracks[HITS] < self.min_hits))


def _without(indices: np.ndarray, used: np.ndarray) -> np.ndarray:
    return indices[~np.isin(indices, used)]
