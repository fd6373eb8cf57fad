"""Tracking with a motion model: a track's next box is predicted before it is looked for.

    from phase3_tracking.kalman_tracker import KalmanTracker

    tracker = KalmanTracker()
    # detections (N, 6) [x1, y1, x2, y2, confidence, class_id], also the weak ones
    # tracks     (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence]
    tracks = tracker.update(detections)  # once for every frame

Objects that pass each other, or are hidden for a moment, come out where a constant velocity would
have brought them, and there they are found again: the idea of SORT (Bewley et al. 2016,
https://arxiv.org/abs/1602.00763). Weak detections cannot start a track, but may continue one, as in
ByteTrack (Zhang et al. 2022, https://arxiv.org/abs/2110.06864): an object half hidden keeps its id.
"""

import numpy as np

from phase3_tracking.object_tracker import Tracker, associate

# Standard deviations in shares of the box's width and height, per frame (ByteTrack's).
POSITION_NOISE, VELOCITY_NOISE = 0.05, 0.00625
START_POSITION_NOISE, START_VELOCITY_NOISE = 0.1, 0.0625


class KalmanTracker(Tracker):
    """Class-aware tracker with a constant-velocity Kalman filter and two rounds of association.

    Every coordinate of a box (centre x and y, width, height) is filtered by itself, so that the
    filter is a handful of array operations over all tracks at once (Kalman 1960).

    In each frame: predict all tracks; match strong detections with all tracks; match weak ones
    with the tracks left over that were seen in the frame before; start tracks from the strong
    detections left over that reach `start_confidence`. All matching is by IoU with the predicted
    box, within a class, by the Hungarian method.

    Args:
        iou_threshold: smallest IoU of a strong detection with the predicted box.
        max_age: how many consecutive frames without a detection a track survives.
        min_hits: how many detections a track must have had before it is returned.
        high_confidence: detections of at least this confidence are strong.
        start_confidence: what a detection needs to start a track.
        weak_iou_threshold: smallest IoU of a weak detection with the predicted box.

    The boxes returned are the detections themselves, not the filter's estimate of them.

    Raises:
        ValueError: a parameter is outside its range.
    """

    def __init__(
        self,
        iou_threshold: float = 0.3,
        max_age: int = 30,
        min_hits: int = 1,
        high_confidence: float = 0.5,
        start_confidence: float = 0.7,
        weak_iou_threshold: float = 0.5,
    ):
        super().__init__(iou_threshold, max_age, min_hits)
        self.high_confidence = float(high_confidence)
        self.start_confidence = float(start_confidence)
        self.weak_iou_threshold = float(weak_iou_threshold)
        self._position = np.empty((0, 4))  # centre x, centre y, width, height
        self._velocity = np.empty((0, 4))  # of these, per frame
        # The 2x2 covariance of each (position, velocity) pair: its three different entries.
        self._var_position = np.empty((0, 4))
        self._covariance = np.empty((0, 4))
        self._var_velocity = np.empty((0, 4))

    def update(self, detections: np.ndarray) -> np.ndarray:
        detections = self._checked(detections)
        self._predict()
        predicted = self._detections.copy()
        predicted[:, :4] = to_xyxy(self._position)
        seen_before = self._missed == 0
        self._missed += 1

        strong = detections[:, 4] >= self.high_confidence
        strong_rows, weak_rows = np.flatnonzero(strong), np.flatnonzero(~strong)
        matched, continued = associate(detections[strong_rows], predicted, self.iou_threshold)
        self._correct(continued, detections[strong_rows[matched]])
        is_new = strong & (detections[:, 4] >= self.start_confidence)
        is_new[strong_rows[matched]] = False

        waiting = np.flatnonzero(seen_before & (self._missed > 0))
        matched, continued = associate(
            detections[weak_rows], predicted[waiting], self.weak_iou_threshold
        )
        self._correct(waiting[continued], detections[weak_rows[matched]])
        self._renew(self._missed <= self.max_age, detections[is_new])
        return self._seen_now()

    def _predict(self) -> None:
        """One frame of constant velocity; the size of a box out of sight does not change."""
        size = np.tile(self._position[:, 2:], 2)
        self._velocity[self._missed > 0, 2:] = 0
        self._position = self._position + self._velocity
        self._position[:, 2:] = np.maximum(self._position[:, 2:], 1.0)
        self._var_position = (
            self._var_position
            + 2 * self._covariance
            + self._var_velocity
            + (POSITION_NOISE * size) ** 2
        )
        self._covariance = self._covariance + self._var_velocity
        self._var_velocity = self._var_velocity + (VELOCITY_NOISE * size) ** 2

    def _correct(self, tracks: np.ndarray, detections: np.ndarray) -> None:
        """Kalman update of these tracks with one detection each."""
        measured = to_cxcywh(detections[:, :4])
        noise = (POSITION_NOISE * np.tile(measured[:, 2:], 2)) ** 2
        total = self._var_position[tracks] + noise
        gain = self._var_position[tracks] / total
        velocity_gain = self._covariance[tracks] / total
        surprise = measured - self._position[tracks]
        self._position[tracks] += gain * surprise
        self._velocity[tracks] += velocity_gain * surprise
        self._var_velocity[tracks] -= velocity_gain * self._covariance[tracks]
        self._covariance[tracks] *= 1 - gain
        self._var_position[tracks] *= 1 - gain
        self._detections[tracks] = detections
        self._hits[tracks] += 1
        self._missed[tracks] = 0

    def _renew(self, alive: np.ndarray, new: np.ndarray) -> None:
        super()._renew(alive, new)
        start = to_cxcywh(new[:, :4])
        size = np.tile(start[:, 2:], 2)
        zero = np.zeros_like(start)
        self._position = np.concatenate([self._position[alive], start])
        self._velocity = np.concatenate([self._velocity[alive], zero])
        self._var_position = np.concatenate(
            [self._var_position[alive], (START_POSITION_NOISE * size) ** 2]
        )
        self._covariance = np.concatenate([self._covariance[alive], zero])
        self._var_velocity = np.concatenate(
            [self._var_velocity[alive], (START_VELOCITY_NOISE * size) ** 2]
        )


def to_cxcywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(N, 4) x1, y1, x2, y2 -> centre x, centre y, width, height."""
    top_left, bottom_right = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return np.concatenate([(top_left + bottom_right) / 2, bottom_right - top_left], axis=1)


def to_xyxy(boxes_cxcywh: np.ndarray) -> np.ndarray:
    """(N, 4) centre x, centre y, width, height -> x1, y1, x2, y2."""
    centre, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)
