"""Tracking by overlap: each detection continues the track it overlaps most, or starts a new one.

    from phase3_tracking.object_tracker import IOUTracker

    tracker = IOUTracker(iou_threshold=0.3, max_age=30, min_hits=1)
    # detections (N, 6) [x1, y1, x2, y2, confidence, class_id]
    # tracks     (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence]
    tracks = tracker.update(detections)  # once for every frame

A track is a box that stays where its last detection was; there is no motion model. Association is
the Hungarian method (Kuhn 1955) on intersection over union, as in the tracking half of SORT (Bewley
et al. 2016) without its Kalman filter. `Tracker` is what all trackers of this project share.
"""

import math
from abc import ABC, abstractmethod

import numpy as np

from phase3_tracking.trackers.association import Pairs, associate

FRAME_RATE = 30.0
FARTHEST_PX, SMALLEST_PX = 1e9, 1e-6  # of coordinates and of sides: between them no sum is lost
LONGEST_PAUSE_S = 1.0  # between two frames; after a longer one the scene is taken for a new one
# Rows of the array of detections and, from BOX on, of the array of tracks: one column for each.
BOX = slice(0, 4)  # x1, y1, x2, y2
DETECTED_CONFIDENCE, DETECTED_CLASS = 4, 5
ID, CLASS, CONFIDENCE = 4, 5, 6  # the id is 0 until the track is first returned
RETURNED = slice(0, 7)
HITS = 7  # detections so far
SINCE = 8  # frames since the last detection
TRACK_ROWS = 9


class Tracker(ABC):
    """What every tracker here shares: checked input, time, ids, and all tracks in one flat array.

    Ids are 1, 2, 3, ... in the order in which tracks are first returned, and are never used again.
    An id never crosses classes. The order of the detections in a frame has no influence.

    Args:
        iou_threshold: smallest IoU that continues a track, above 0 and at most 1.
        max_age: how many frames in a row without a detection a track survives.
        min_hits: how many detections a track must have had before it is returned.
        frame_rate: frames per second of the video; see `update`.

    Attributes:
        dropped_detections: detections refused so far, because a value was not finite, the box had
            no area, or it lay outside any picture (beyond 1e9 pixels).
        tracks_started: ids given so far.
        best_confidence: of all usable detections so far; minus infinity before the first.

    Raises:
        ValueError: a parameter is outside its range.
    """

    track_rows = TRACK_ROWS

    def __init__(
        self, iou_threshold: float, max_age: int, min_hits: int, frame_rate: float = FRAME_RATE
    ):
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be above 0 and at most 1, not {iou_threshold}")
        if not max_age >= 0 or max_age % 1:
            raise ValueError(f"max_age must be a whole number of frames from 0, not {max_age}")
        if not min_hits >= 1 or min_hits % 1:
            raise ValueError(f"min_hits must be a whole number from 1, not {min_hits}")
        if not 0 < frame_rate < math.inf:
            raise ValueError(f"frame_rate must be a number above 0, not {frame_rate}")
        self.iou_threshold = float(iou_threshold)
        self.max_age = int(max_age)
        self.min_hits = int(min_hits)
        self.frame_rate = float(frame_rate)
        self.dropped_detections = 0
        self.tracks_started = 0
        self.best_confidence = -math.inf
        self._updates = 0
        self._time_s: float | None = None
        self._tracks = np.empty((self.track_rows, 0))
        self._missed = np.empty(0, bool)  # which tracks had no detection in the frame before

    def update(self, detections: np.ndarray, timestamp_s: float | None = None) -> np.ndarray:
        """Takes the detections of the next frame and returns the tracks seen in it.

        Args:
            detections: (N, 6) [x1, y1, x2, y2, confidence, class_id] in pixels; an empty frame is
                an empty array.
            timestamp_s: when the frame was taken, in seconds from any origin; each must be later
                than the one before. Frames may then be left out, or come irregularly, and still a
                track ages and moves with the time that has passed; `max_age` stays in frames of
                `frame_rate`. Without timestamps every frame must be given, empty or not.

        Returns:
            (M, 7) float64 [x1, y1, x2, y2, track_id, class_id, confidence], by ascending track_id:
            the confirmed tracks (see `min_hits`) that were matched in this very frame. A tracker
            may go on for a moment with predicted boxes, where it says so.

        Raises:
            ValueError: the array has another shape, or time does not go forward.
        """
        usable = self._checked(detections)
        if usable.shape[1]:
            best = float(usable[DETECTED_CONFIDENCE, 0])  # they are sorted
            self.best_confidence = max(self.best_confidence, best)
        self._advance(self._frames_passed(timestamp_s))
        row, track = self._match(usable)
        if len(row):
            self._continue(track, usable[:, row])
        is_new = self._may_start(usable)
        is_new[row] = False
        if is_new.any():
            self._start(usable[:, is_new])
        self._updates += 1
        return self._returned()

    # --- what an algorithm may have its own way of ---------------------------------------------

    @abstractmethod
    def _match(self, detections: np.ndarray) -> Pairs:
        """Which of the detections (6, N) continue which tracks: indices of both."""

    def _match_by_overlap(self, detections: np.ndarray) -> Pairs:
        """The pairs of one class with the largest total IoU, each at least `iou_threshold`."""
        return associate(
            detections[BOX],
            detections[DETECTED_CLASS],
            self._tracks[BOX],
            self._tracks[CLASS],
            self.iou_threshold,
        )

    @property
    def least_to_start(self) -> float:
        """The confidence with which a detection starts a track unless it continues one."""
        return -math.inf

    def _may_start(self, detections: np.ndarray) -> np.ndarray:
        """(N,) which detections (6, N) start a track unless they continue one."""
        return detections[DETECTED_CONFIDENCE] >= self.least_to_start

    def _is_over(self) -> np.ndarray:
        """(K,) which tracks end. SINCE counts up to the frame at hand: one more than were missed;
        half a frame more is for timestamps that waver. Frames that were not given are not missed,
        so a track seen in the last one given lives through a pause."""
        oldest = self.max_age + 1.5
        return self._tracks[SINCE] > np.where(
            self._missed, oldest, max(oldest, LONGEST_PAUSE_S * self.frame_rate)
        )

    def _is_returned(self) -> np.ndarray:
        """(K,) which tracks are confirmed and to be seen."""
        return self._is_seen() & (self._tracks[HITS] >= self.min_hits)

    def _is_seen(self) -> np.ndarray:
        """(K,) which tracks have a detection in the frame at hand."""
        return self._tracks[SINCE] == 0

    def _advance(self, frames: float) -> None:
        """Lets this many frames pass and removes the tracks that are over."""
        since = self._tracks[SINCE]
        self._missed = since > 0
        since += frames
        over = self._is_over()
        if over.any():
            kept = (~over).nonzero()[0]
            self._tracks, self._missed = self._tracks.take(kept, axis=1), self._missed[kept]

    def _continue(self, track: np.ndarray, detections: np.ndarray) -> None:
        """Gives the tracks at these indices (M,) one detection (6, M) each."""
        tracks = self._tracks
        tracks[BOX, track] = detections[BOX]
        tracks[CONFIDENCE, track] = detections[DETECTED_CONFIDENCE]
        tracks[HITS, track] += 1
        tracks[SINCE, track] = 0

    def _start(self, detections: np.ndarray) -> None:
        """Starts a track from each of the detections (6, M)."""
        new = np.zeros((self.track_rows, detections.shape[1]))
        new[BOX] = detections[BOX]
        new[CLASS] = detections[DETECTED_CLASS]
        new[CONFIDENCE] = detections[DETECTED_CONFIDENCE]
        new[HITS] = 1
        self._tracks = np.concatenate([self._tracks, new], axis=1)

    # --- the same for all ----------------------------------------------------------------------

    def _frames_passed(self, timestamp_s: float | None) -> float:
        """Frames of `frame_rate` since the update before."""
        if timestamp_s is None:
            if self._time_s is not None:
                self._time_s += 1 / self.frame_rate
            return 1.0
        if not math.isfinite(timestamp_s):
            raise ValueError(f"timestamp_s must be finite, not {timestamp_s}")
        frames = 1.0
        if self._time_s is not None:
            frames = (timestamp_s - self._time_s) * self.frame_rate
        if frames <= 0:
            raise ValueError(f"timestamp_s must grow, but {timestamp_s} follows {self._time_s}")
        self._time_s = timestamp_s
        return frames

    def _checked(self, detections: np.ndarray) -> np.ndarray:
        """(6, N) usable rows, sorted, so that ties never depend on the order they came in."""
        detections = np.asarray(detections, np.float64)
        if not detections.size:
            return np.empty((6, 0))
        if detections.ndim != 2 or detections.shape[1] != 6:
            raise ValueError(
                "detections must be (N, 6) [x1, y1, x2, y2, confidence, class_id], "
                f"not of shape {detections.shape}"
            )
        x1, y1, x2, y2, confidence, class_id = columns = np.array(detections.T, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            usable = (abs(columns[BOX]) <= FARTHEST_PX).all(axis=0)  # false for NaN too
            usable &= x2 - x1 > SMALLEST_PX
            usable &= y2 - y1 > SMALLEST_PX
            usable &= np.isfinite(confidence + class_id)
        if not usable.all():
            columns = columns[:, usable]
            self.dropped_detections += len(usable) - columns.shape[1]
        return columns[:, _best_first(columns)]

    def _returned(self) -> np.ndarray:
        """What update() returns; gives ids to tracks that are returned for the first time."""
        seen = self._is_returned().nonzero()[0]
        ids = self._tracks[ID, seen]
        unnamed = seen[ids == 0]
        if len(unnamed):
            last = self.tracks_started + len(unnamed)
            self._tracks[ID, unnamed] = np.arange(self.tracks_started + 1, last + 1)
            self.tracks_started = last
            ids = self._tracks[ID, seen]
        return np.array(self._tracks[RETURNED, seen[ids.argsort()]].T, order="C")


def _best_first(detections: np.ndarray) -> np.ndarray:
    """Indices that sort detections (6, N): by confidence, and by everything else where it ties."""
    x1, y1, x2, y2, confidence, class_id = detections
    order = (-confidence).argsort(kind="stable")
    ordered = confidence[order]
    if (ordered[1:] == ordered[:-1]).any():
        return np.lexsort((y2, x2, y1, x1, class_id, -confidence))
    return order


class IOUTracker(Tracker):
    """Class-aware IoU tracker.

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
        frame_rate: frames per second; only matters where `update` is given timestamps.

    Raises:
        ValueError: a parameter is outside its range.
    """

    def __init__(
        self,
        iou_threshold: float = 0.3,
        max_age: int = 30,
        min_hits: int = 1,
        frame_rate: float = FRAME_RATE,
    ):
        super().__init__(iou_threshold, max_age, min_hits, frame_rate)

    def _match(self, detections: np.ndarray) -> Pairs:
        return self._match_by_overlap(detections)
