"""What the trackers with a motion model share: every track is predicted before it is looked for.

Objects that pass each other, or are hidden for a moment, come out where a constant velocity would
have brought them, and there they are found again: the idea of SORT (Bewley et al. 2016,
https://arxiv.org/abs/1602.00763).
"""

import numpy as np

from phase3_tracking.object_tracker import BOX, TRACK_ROWS, Tracker
from phase3_tracking.trackers import kalman_filter

STATE = slice(TRACK_ROWS, TRACK_ROWS + kalman_filter.STATE_ROWS)  # of the array of tracks


class KalmanTracker(Tracker):
    """A tracker whose tracks move with a constant velocity; see kalman_filter.

    Between detections the box of a track is the predicted one. The boxes returned are the
    detections themselves, not the filter's estimate of them.
    """

    track_rows = TRACK_ROWS + kalman_filter.STATE_ROWS
    velocity_noise = 1 / 160  # ByteTrack's; see kalman_filter.predict

    def _advance(self, frames: float) -> None:
        super()._advance(frames)
        states = self._tracks[STATE]
        # Of an object half hidden one sees less, not smaller: the size of one out of sight stays.
        states[kalman_filter.SIZE_VELOCITY] *= ~self._missed
        steps = frames * kalman_filter.STEPS_PER_SECOND / self.frame_rate
        kalman_filter.predict(states, steps, self.velocity_noise)
        self._tracks[BOX] = kalman_filter.to_xyxy(states[kalman_filter.MEAN])

    def _continue(self, track: np.ndarray, detections: np.ndarray) -> None:
        super()._continue(track, detections)
        states = self._tracks[STATE]
        measured = kalman_filter.to_cxcywh(detections[BOX])
        states[:, track] = kalman_filter.correct(states.take(track, axis=1), measured)

    def _start(self, detections: np.ndarray) -> None:
        super()._start(detections)
        count = detections.shape[1]
        self._tracks[STATE, -count:] = kalman_filter.initiate(
            kalman_filter.to_cxcywh(detections[BOX])
        )
