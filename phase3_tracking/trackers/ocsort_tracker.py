"""OC-SORT: observations correct what the Kalman filter believed while an object was out of sight.

    from phase3_tracking.trackers.ocsort_tracker import OCSORTTracker

    tracks = OCSORTTracker().update(detections)  # (N, 6) -> (M, 7), once for every frame

Observation-centric SORT, Cao et al. 2023, https://arxiv.org/abs/2203.14360. It adds to SORT

momentum (OCM)   a pair is worth more if the detection lies in the direction in which the track was
                 moving, as its last observations show;
recovery (OCR)   tracks left over are looked for again, where they were last observed;
re-update (ORU)  when a track is found again, the filter runs again over the time it was lost, on a
                 straight line between the two observations.

Parameters are those of the authors' code. The filter's state is this project's (kalman_filter) in
place of area and aspect ratio, directions span three observations whenever they were, and ids stay
within a class.
"""

import numpy as np

from phase3_tracking.object_tracker import (
    BOX,
    CLASS,
    DETECTED_CLASS,
    DETECTED_CONFIDENCE,
    FRAME_RATE,
    SINCE,
)
from phase3_tracking.trackers import kalman_filter
from phase3_tracking.trackers.association import (
    Pairs,
    assign,
    associate,
    overlapping_pairs,
    paired_iou,
)
from phase3_tracking.trackers.kalman_tracker import STATE, KalmanTracker
from phase3_tracking.trackers.sort_tracker import SORTTracker

MOMENTUM_WEIGHT = 0.2
MAX_AGE_S = 1.0
FIRST_ROW = KalmanTracker.track_rows
OBSERVED = slice(FIRST_ROW, FIRST_ROW + 4)  # the last detected box
CENTRES = slice(FIRST_ROW + 4, FIRST_ROW + 10)  # of the last three, the newest first
OLDEST_CENTRE = slice(FIRST_ROW + 8, FIRST_ROW + 10)
STATE_THEN = slice(FIRST_ROW + 10, FIRST_ROW + 10 + kalman_filter.STATE_ROWS)  # just after it


class OCSORTTracker(SORTTracker):
    """Args:
        iou_threshold: smallest IoU of a detection with the predicted, or last observed, box.
        max_age: how many frames in a row without a detection a track survives; None is 1 second.
        min_hits: see SORTTracker.
        frame_rate: frames per second of the video; see `update`.
        high_confidence: weaker detections are not used.

    Raises:
        ValueError: a parameter is outside its range.
    """

    track_rows = STATE_THEN.stop

    def __init__(
        self,
        iou_threshold: float = 0.3,
        max_age: int | None = None,
        min_hits: int = 3,
        frame_rate: float = FRAME_RATE,
        high_confidence: float = 0.6,
    ):
        if max_age is None:
            max_age = round(MAX_AGE_S * frame_rate)
        super().__init__(iou_threshold, max_age, min_hits, frame_rate)
        self.high_confidence = float(high_confidence)

    def _match(self, detections: np.ndarray) -> Pairs:
        tracks = self._tracks
        strong = self._may_start(detections).nonzero()[0]
        boxes = detections[:, strong]
        row, column = overlapping_pairs(
            boxes[BOX], boxes[DETECTED_CLASS], tracks[BOX], tracks[CLASS]
        )
        iou = paired_iou(boxes, tracks, row, column)
        enough = iou >= self.iou_threshold
        row, column, iou = row[enough], column[enough], iou[enough]
        gain = iou + MOMENTUM_WEIGHT * self._momentum(boxes, row, column)
        shape = (boxes.shape[1], tracks.shape[1])
        row, column = assign(row, column, gain.clip(min=0.01), shape)

        rows_left = np.delete(np.arange(shape[0]), row)
        columns_left = np.delete(np.arange(shape[1]), column)
        again, found = associate(
            boxes[BOX, rows_left],
            boxes[DETECTED_CLASS, rows_left],
            tracks[OBSERVED, columns_left],
            tracks[CLASS, columns_left],
            self.iou_threshold,
        )
        row = strong[np.concatenate([row, rows_left[again]])]
        return row, np.concatenate([column, columns_left[found]])

    def _momentum(self, boxes: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """(P,) from 1/2, the pair's detection lies in the track's direction, to -1/2, opposite."""
        oldest = self._tracks[OLDEST_CENTRE][:, column]
        newest = self._tracks[CENTRES][:2][:, column]
        so_far = newest - oldest
        to_detection = (boxes[0:2, row] + boxes[2:4, row]) / 2 - oldest
        lengths = np.linalg.norm(so_far, axis=0) * np.linalg.norm(to_detection, axis=0)
        moves = lengths > 0
        cosine = (so_far * to_detection).sum(axis=0) / np.where(moves, lengths, 1)
        angle = np.where(moves, np.arccos(cosine.clip(-1, 1)), np.pi / 2)
        confidence = boxes[DETECTED_CONFIDENCE, row].clip(0, 1)
        return (0.5 - angle / np.pi) * confidence

    @property
    def least_to_start(self) -> float:
        return self.high_confidence

    def _continue(self, track: np.ndarray, detections: np.ndarray) -> None:
        was_lost = self._missed[track]
        if was_lost.any():
            self._run_again(track[was_lost], detections[BOX, was_lost])
        super()._continue(track, detections)
        self._observe(track, detections)

    def _start(self, detections: np.ndarray) -> None:
        super()._start(detections)
        count = self._tracks.shape[1]
        new = np.arange(count - detections.shape[1], count)
        centre = kalman_filter.to_cxcywh(detections[BOX])[:2]
        self._tracks[CENTRES, new[0] :] = np.concatenate([centre] * 3)
        self._observe(new, detections)

    def _observe(self, track: np.ndarray, detections: np.ndarray) -> None:
        tracks = self._tracks
        centre = kalman_filter.to_cxcywh(detections[BOX])[:2]
        tracks[CENTRES, track] = np.concatenate([centre, tracks[CENTRES, track][:4]])
        tracks[OBSERVED, track] = detections[BOX]
        tracks[STATE_THEN, track] = tracks[STATE, track]

    def _run_again(self, track: np.ndarray, boxes_xyxy: np.ndarray) -> None:
        """Predicts and corrects these tracks (M,) along a line to where they are found (4, M)."""
        tracks = self._tracks
        frames = tracks[SINCE, track]
        steps = np.maximum(np.rint(frames), 1)
        length = frames / steps * (kalman_filter.STEPS_PER_SECOND / self.frame_rate)
        begin, end = tracks[OBSERVED, track], boxes_xyxy
        states = tracks[STATE_THEN, track]
        for step in range(1, int(steps.max()) + 1):
            going = (step <= steps).nonzero()[0]
            moved = states[:, going]
            kalman_filter.predict(moved, length[going], self.velocity_noise)
            on_line = begin[:, going] + (end - begin)[:, going] * (step / steps[going])
            between = (step < steps[going]).nonzero()[0]  # at its end comes the detection itself
            moved[:, between] = kalman_filter.correct(
                moved[:, between], kalman_filter.to_cxcywh(on_line[:, between])
            )
            states[:, going] = moved
        tracks[STATE, track] = states
