"""SORT: a Kalman filter predicts every track, the Hungarian method assigns detections to them.

    from phase3_tracking.trackers.sort_tracker import SORTTracker

    tracks = SORTTracker().update(detections)  # (N, 6) -> (M, 7), once for every frame

Simple online and realtime tracking, Bewley et al. 2016, https://arxiv.org/abs/1602.00763. It has
no memory: a track ends when it is missed in a second frame, and is returned after some detections
in a row only. The filter's state is this project's (kalman_filter) in place of area and aspect
ratio, and ids stay within a class.
"""

import numpy as np

from phase3_tracking.object_tracker import FRAME_RATE, HITS
from phase3_tracking.trackers.association import Pairs
from phase3_tracking.trackers.kalman_tracker import KalmanTracker


class SORTTracker(KalmanTracker):
    """Args:
        iou_threshold: smallest IoU of a detection with the predicted box.
        max_age: how many frames in a row without a detection a track survives.
        min_hits: for how many frames in a row a track must have been detected to be returned. The
            first `min_hits` frames of a video return every track.
        frame_rate: frames per second of the video; see `update`.

    Raises:
        ValueError: a parameter is outside its range.
    """

    def __init__(
        self,
        iou_threshold: float = 0.3,
        max_age: int = 1,
        min_hits: int = 3,
        frame_rate: float = FRAME_RATE,
    ):
        super().__init__(iou_threshold, max_age, min_hits, frame_rate)

    def _match(self, detections: np.ndarray) -> Pairs:
        return self._match_by_overlap(detections)

    def _advance(self, frames: float) -> None:
        super()._advance(frames)
        self._tracks[HITS, self._missed] = 0  # they are counted in a row

    def _is_returned(self) -> np.ndarray:
        if self._updates <= self.min_hits:
            return self._is_seen()
        return super()._is_returned()
