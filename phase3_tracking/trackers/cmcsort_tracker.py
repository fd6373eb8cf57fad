"""The default tracker: SORT with confidence-weighted association and camera motion compensation.

    from phase3_tracking.trackers.cmcsort_tracker import CMCSORTTracker

    tracker = CMCSORTTracker()
    # detections (N, 6) [x1, y1, x2, y2, confidence, class_id], also the weak ones
    # tracks     (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence]
    tracks = tracker.update(detections)  # once for every frame

In each frame: predict all tracks (kalman_tracker); estimate how the camera moved, and move all
tracks with it; assign detections to tracks; start tracks from strong detections left over.

Association. Weak detections cannot start a track but may continue one, which keeps the id of an
object half hidden, as in ByteTrack (Zhang et al. 2022, https://arxiv.org/abs/2110.06864). ByteTrack
assigns strong, then weak detections, then unconfirmed tracks; here one assignment does, of

    gain = IoU * confidence * (1 for a confirmed track, 1/2 for an unconfirmed one),

which prefers strong and confirmed where boxes overlap alike, and takes the weaker where it fits so
much better that the whole gains by it.

Camera. A pan or a shake displaces all boxes alike against their predictions, so the median of
those displacements is the camera's motion. It is taken over the strong detections and the tracks
seen in the frame before that one detection alone fits, and needs no image, unlike what is usual
(ECC, sparse optical flow; BoT-SORT, Aharon et al. 2022, https://arxiv.org/abs/2206.14651). Boxes
alone cannot tell a pan from traffic that speeds up one way, as all of it does in the first frames:
what stands still is displaced then, for some frames, by what the others do.

Memory. A track is kept for two seconds out of sight and found by its predicted box alone.
What each part buys is measured by benchmarks/tracker_quality.py.
"""

import numpy as np

from phase3_tracking.object_tracker import (
    BOX,
    CLASS,
    DETECTED_CLASS,
    DETECTED_CONFIDENCE,
    FRAME_RATE,
    HITS,
    SINCE,
)
from phase3_tracking.trackers import kalman_filter
from phase3_tracking.trackers.association import Pairs, assign, overlapping_pairs, paired_iou
from phase3_tracking.trackers.kalman_tracker import STATE, KalmanTracker

MAX_AGE_S = 2.0
LEAST_WEIGHT = 0.1  # of a confidence, so that files with scores of 0 or -1 can be tracked too
UNCONFIRMED_WEIGHT = 0.5
MIN_CAMERA_PAIRS = 4  # the median of fewer follows single objects
MIN_COAST_HITS = 10  # detections after which a track's velocity is to be trusted


class CMCSORTTracker(KalmanTracker):
    """Class-aware tracker with a Kalman filter, one assignment, and camera motion compensation.

    Args:
        iou_threshold: smallest IoU of a strong detection with the predicted box.
        max_age: how many frames in a row without a detection a track survives; None is 2 seconds.
        min_hits: how many detections a track must have had before it is returned. Until then it
            ends at its first miss. What the very first frame shows is returned at once.
        frame_rate: frames per second of the video; see `update`.
        high_confidence: detections of at least this confidence are strong.
        low_confidence: detections below are not used, unless they are strong. The default is the
            limit of video_detector.py; minus infinity uses all.
        start_confidence: what a detection needs to start a track.
        weak_iou_threshold: smallest IoU of a weak detection with the predicted box.
        coast_s: for how many seconds without a detection a track is still returned, at its
            predicted box and with its last confidence, if it has had 10 detections; 0 returns
            nothing but detections.

    Raises:
        ValueError: a parameter is outside its range.
    """

    velocity_noise = 1 / 320  # steadier than ByteTrack's: two seconds out of sight are a long way

    def __init__(
        self,
        iou_threshold: float = 0.2,
        max_age: int | None = None,
        min_hits: int = 2,
        frame_rate: float = FRAME_RATE,
        high_confidence: float = 0.5,
        low_confidence: float = 0.1,
        start_confidence: float = 0.7,
        weak_iou_threshold: float = 0.5,
        coast_s: float = 0.1,
    ):
        if max_age is None:
            max_age = round(MAX_AGE_S * frame_rate)
        super().__init__(iou_threshold, max_age, min_hits, frame_rate)
        self.high_confidence = float(high_confidence)
        self.low_confidence = float(low_confidence)
        self.start_confidence = float(start_confidence)
        self.weak_iou_threshold = float(weak_iou_threshold)
        self.coast_s = float(coast_s)

    def _match(self, detections: np.ndarray) -> Pairs:
        tracks = self._tracks
        confidence = detections[DETECTED_CONFIDENCE]
        strong = confidence >= self.high_confidence
        confirmed = tracks[HITS] >= self.min_hits
        shape = (len(strong), len(confirmed))
        if not shape[0] or not shape[1]:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        overlapping = self._overlapping(detections)
        row, column, iou = self._admissible(detections, *overlapping, strong, confirmed)
        steady = strong[row] & (confirmed & ~self._missed)[column]
        shift = self._camera_motion(detections, row[steady], column[steady])
        if shift is not None:
            tracks[BOX] += shift[[0, 1, 0, 1], None]
            tracks[STATE][kalman_filter.CENTRE] += shift[:, None]
            if abs(shift).max() >= self._overlap_lasts_px():
                overlapping = self._overlapping(detections)
            row, column, iou = self._admissible(detections, *overlapping, strong, confirmed)
        weight = confidence.clip(LEAST_WEIGHT, 1)
        trust = np.where(confirmed, 1, UNCONFIRMED_WEIGHT)
        return assign(row, column, iou * weight[row] * trust[column], shape)

    def _overlapping(self, detections: np.ndarray) -> Pairs:
        tracks = self._tracks
        return overlapping_pairs(
            detections[BOX], detections[DETECTED_CLASS], tracks[BOX], tracks[CLASS]
        )

    def _overlap_lasts_px(self) -> float:
        """Pairs with enough IoU overlap by that share of their sides at least, so they also do
        before a shift that is smaller."""
        least_iou = min(self.iou_threshold, self.weak_iou_threshold)
        return least_iou * float(self._tracks[STATE][kalman_filter.SIZE].min())

    def _admissible(
        self,
        detections: np.ndarray,
        row: np.ndarray,
        column: np.ndarray,
        strong: np.ndarray,
        confirmed: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(detection, track, IoU) of every one of these pairs that may be assigned."""
        iou = paired_iou(detections, self._tracks, row, column)
        enough = iou >= np.where(strong, self.iou_threshold, self.weak_iou_threshold)[row]
        used = detections[DETECTED_CONFIDENCE] >= self.low_confidence
        enough &= strong[row] | (used[row] & confirmed[column])
        kept = enough.nonzero()[0]
        return row[kept], column[kept], iou[kept]

    def _camera_motion(
        self, detections: np.ndarray, row: np.ndarray, column: np.ndarray
    ) -> np.ndarray | None:
        """Median displacement (2,) of the pairs without an alternative; None for too few."""
        alone = np.bincount(row)[row] == 1
        alone &= np.bincount(column)[column] == 1
        row, column = row[alone], column[alone]
        if len(row) < MIN_CAMERA_PAIRS:
            return None
        displacement = detections[BOX, row] - self._tracks[BOX, column]
        centre = (displacement[:2] + displacement[2:]) / 2
        centre.sort(axis=1)
        middle = len(row) // 2
        return (centre[:, middle] + centre[:, -1 - middle]) / 2

    @property
    def least_to_start(self) -> float:
        return max(self.high_confidence, self.start_confidence)

    def _start(self, detections: np.ndarray) -> None:
        super()._start(detections)
        if not self._updates:
            self._tracks[HITS] = self.min_hits

    def _is_over(self) -> np.ndarray:
        return super()._is_over() | (self._missed & (self._tracks[HITS] < self.min_hits))

    def _is_returned(self) -> np.ndarray:
        hits = self._tracks[HITS]
        coasted = self._tracks[SINCE] < self.coast_s * self.frame_rate + 0.5
        coasted &= hits >= max(MIN_COAST_HITS, self.min_hits)
        return coasted | super()._is_returned()
