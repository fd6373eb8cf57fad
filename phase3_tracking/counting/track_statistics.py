"""How many objects of which class a video shows, how many at a time, and for how long each."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phase3_tracking.counting.time_bins import TimeBins
from phase3_tracking.results.track_formats import CONFIDENCE_DECIMALS, TIME_DECIMALS, class_name

DWELL_PERCENTILES = {"median_s": 50, "p90_s": 90, "max_s": 100}


@dataclass(slots=True)
class _Track:
    """What is remembered of a track: the same few numbers however long it lives.

    Attributes:
        categories: category id -> frames it was seen as that.
    """

    first_s: float
    last_s: float
    frames: int = 0
    confidence_sum: float = 0.0
    categories: dict[int, int] = field(default_factory=dict)

    def category(self) -> int:
        """The class it was seen as most often; of equals the one that was first."""
        return max(self.categories, key=lambda category: self.categories[category])


class TrackStatistics:
    """Counts tracks online.

    Memory grows with the number of tracks, by less than a kilobyte each, and not with the frames.

    Args:
        class_names: category id -> name; an id without a name is called `class 7`.
        frame_s: seconds that a frame lasts. A track seen in one frame has dwelt so long.
    """

    def __init__(self, class_names: Mapping[int, str], frame_s: float):
        self._class_names, self._frame_s = class_names, frame_s
        self._frames = 0
        self._tracks: dict[int, _Track] = {}
        self._began: Counter[int] = Counter()  # tracks by the category they were first seen as
        self._boxes: Counter[int] = Counter()  # by category
        self._most: Counter[int] = Counter()  # the most of a category in one frame
        self._most_at_a_time = 0
        self._bins = TimeBins()

    def update(self, time_s: float, tracks: np.ndarray) -> None:
        """Counts one frame.

        Args:
            time_s: of the frame in the video; not negative, and never before the last one.
            tracks: (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence] in pixels.
        """
        self._frames += 1
        categories = tracks[:, 5].astype(int).tolist()
        for category, count in Counter(categories).items():
            self._boxes[category] += count
            self._most[category] = max(self._most[category], count)
        self._most_at_a_time = max(self._most_at_a_time, len(tracks))
        self._bins.add(time_s, len(tracks))
        ids, confidences = tracks[:, 4].astype(int).tolist(), tracks[:, 6].tolist()
        for track_id, category, confidence in zip(ids, categories, confidences, strict=True):
            track = self._tracks.get(track_id)
            if track is None:
                track = self._tracks[track_id] = _Track(time_s, time_s)
                self._began[category] += 1
            track.last_s = time_s
            track.frames += 1
            track.confidence_sum += confidence
            track.categories[category] = track.categories.get(category, 0) + 1

    def tracks_so_far(self) -> dict[str, int]:
        """Class -> tracks that were first seen as it, most first; quick, for a live view."""
        return {class_name(self._class_names, key): n for key, n in self._began.most_common()}

    def summary(self) -> dict[str, Any]:
        """What can be written as JSON; times in seconds of the video.

        Returns:
            `frames`, `unique_tracks`, `boxes`, `mean_at_a_time`, `max_at_a_time`;
            `classes`, most tracks first: the same by class, of those that were seen;
            `dwell`: median, 90th percentile and maximum of the tracks' dwell times, None without
            tracks; `objects_over_time` (see TimeBins);
            `tracks`, by id: class, first_s, last_s, dwell_s, frames, mean_confidence.
        """
        boxes = sum(self._boxes.values())
        return {
            "frames": self._frames,
            "unique_tracks": len(self._tracks),
            "boxes": boxes,
            "mean_at_a_time": self._per_frame(boxes),
            "max_at_a_time": self._most_at_a_time,
            "classes": self._classes(),
            "dwell": self._dwell(),
            "objects_over_time": self._bins.summary(),
            "tracks": [self._of_track(track_id) for track_id in sorted(self._tracks)],
        }

    def _dwell(self) -> dict[str, float | None]:
        if not self._tracks:
            return dict.fromkeys(DWELL_PERCENTILES)
        dwell_s = [self._dwell_s(track) for track in self._tracks.values()]
        values = np.percentile(dwell_s, list(DWELL_PERCENTILES.values())).tolist()
        return {
            key: round(value, TIME_DECIMALS)
            for key, value in zip(DWELL_PERCENTILES, values, strict=True)
        }

    def _classes(self) -> list[dict[str, Any]]:
        unique = Counter(track.category() for track in self._tracks.values())
        by_class = [
            {
                "class": class_name(self._class_names, category),
                "category_id": category,
                "unique_tracks": unique[category],
                "boxes": boxes,
                "mean_at_a_time": self._per_frame(boxes),
                "max_at_a_time": self._most[category],
            }
            for category, boxes in self._boxes.items()
        ]
        return sorted(by_class, key=lambda one: (-one["unique_tracks"], one["category_id"]))

    def _of_track(self, track_id: int) -> dict[str, Any]:
        track = self._tracks[track_id]
        return {
            "track_id": track_id,
            "class": class_name(self._class_names, track.category()),
            "category_id": track.category(),
            "first_s": round(track.first_s, TIME_DECIMALS),
            "last_s": round(track.last_s, TIME_DECIMALS),
            "dwell_s": self._dwell_s(track),
            "frames": track.frames,
            "mean_confidence": round(track.confidence_sum / track.frames, CONFIDENCE_DECIMALS),
        }

    def _dwell_s(self, track: _Track) -> float:
        """From the first sighting to the end of the last one, gaps included."""
        return round(track.last_s - track.first_s + self._frame_s, TIME_DECIMALS)

    def _per_frame(self, count: int) -> float:
        return count / self._frames if self._frames else 0.0
