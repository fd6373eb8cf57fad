"""What a tracker computes inside one update, kept so that it can be looked at.

    tracker = TracedSORT(frame_rate=30)
    step = traced_update(tracker, detections, number=1, time_s=0.0)
    step.predicted[BOX], step.pairs, step.after[STATE]

The trackers are the project's own and decide as they always do; only copies are taken on the way.
"""

from dataclasses import dataclass

import numpy as np

from phase3_tracking.object_tracker import DETECTED_CONFIDENCE, ID
from phase3_tracking.trackers import kalman_filter
from phase3_tracking.trackers.association import Pairs
from phase3_tracking.trackers.cmcsort_tracker import CMCSORTTracker
from phase3_tracking.trackers.kalman_tracker import STATE, KalmanTracker
from phase3_tracking.trackers.sort_tracker import SORTTracker

NO_TRACKS = np.empty((0, 0))
NO_PAIRS = (np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class CameraMotion:
    """How a tracker estimated the motion of the camera in one frame.

    Attributes:
        predicted: (rows, K) the tracks, not yet moved with the camera.
        pairs: the (detection, track) indices that it was given.
        shift: (2,) pixels, which all tracks were moved by; None for too few pairs.
    """

    predicted: np.ndarray
    pairs: Pairs
    shift: np.ndarray | None


@dataclass(frozen=True)
class Step:
    """One update. Tracks are columns of an array with the rows of the tracker: BOX, ID, STATE, ...

    Attributes:
        number: of the frame in the input, from 1.
        time_s: of the frame.
        detections: (6, N) as the tracker sorted them, the most confident first.
        predicted: (rows, K) where the tracks were looked for.
        pairs: (detection, track) indices of those that belong together.
        after: (rows, K + new tracks) at the end; the first K are those of `predicted`.
        camera: None for trackers that do not estimate it.
    """

    number: int
    time_s: float
    detections: np.ndarray
    predicted: np.ndarray
    pairs: Pairs
    after: np.ndarray
    camera: CameraMotion | None = None

    def column(self, track_id: int) -> int | None:
        """Where a track is in `after`, and in `predicted` if it is older than this frame."""
        found = np.flatnonzero(self.after[ID] == track_id)
        return int(found[0]) if len(found) else None

    def detection_of(self, column: int) -> int | None:
        """The detection that continued the track at this column, if any."""
        found = self.pairs[0][self.pairs[1] == column]
        return int(found[0]) if len(found) else None


class _Traced(KalmanTracker):
    """Keeps what the last update saw."""

    seen_detections, seen_tracks, seen_pairs = np.empty((6, 0)), NO_TRACKS, NO_PAIRS
    seen_camera: CameraMotion | None = None

    def _keep(self, detections: np.ndarray, pairs: Pairs) -> Pairs:
        self.seen_detections, self.seen_tracks = detections.copy(), self._tracks.copy()
        self.seen_pairs = pairs
        return pairs

    def tracks(self) -> np.ndarray:
        """(rows, K) a copy of the tracks there are now."""
        return self._tracks.copy()


class TracedSORT(_Traced, SORTTracker):
    """SORT: assigns detections by the IoU with the predicted boxes alone."""

    def _match(self, detections: np.ndarray) -> Pairs:
        return self._keep(detections, super()._match(detections))


class TracedCMCSORT(_Traced, CMCSORTTracker):
    """The default tracker."""

    def _match(self, detections: np.ndarray) -> Pairs:
        self.seen_camera = None
        return self._keep(detections, super()._match(detections))

    def _camera_motion(
        self, detections: np.ndarray, row: np.ndarray, column: np.ndarray
    ) -> np.ndarray | None:
        before = self._tracks.copy()
        shift = super()._camera_motion(detections, row, column)
        self.seen_camera = CameraMotion(before, (row, column), shift)
        return shift


def traced_update(
    tracker: TracedSORT | TracedCMCSORT, detections: np.ndarray, number: int, time_s: float
) -> Step:
    """Gives the tracker the detections (N, 6) of the next frame; see `Tracker.update`."""
    tracker.update(detections, time_s)
    return Step(
        *(number, time_s, tracker.seen_detections, tracker.seen_tracks, tracker.seen_pairs),
        *(tracker.tracks(), tracker.seen_camera),
    )


def sigmas_px(track: np.ndarray) -> np.ndarray:
    """(2,) standard deviations along x and y of the centre of one track (rows,)."""
    return np.sqrt(track[STATE][kalman_filter.VAR_POSITION])


def centre_px(track: np.ndarray) -> np.ndarray:
    """(2,) the filter's estimate of the centre of one track (rows,)."""
    return track[STATE][kalman_filter.CENTRE]


def estimated_box(track: np.ndarray) -> np.ndarray:
    """(4,) xyxy: the filter's estimate of the box of one track (rows,)."""
    return kalman_filter.to_xyxy(track[STATE][kalman_filter.MEAN][:, None])[:, 0]


def strong_only(detections: np.ndarray, confidence: float) -> np.ndarray:
    """The rows of (N, 6) detections with at least this confidence."""
    return detections[detections[:, DETECTED_CONFIDENCE] >= confidence]
