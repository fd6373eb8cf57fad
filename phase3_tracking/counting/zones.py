"""Counts which tracks enter and leave a zone, how many are inside, and for how long.

A track is where its *anchor* is, the bottom centre of its box. It is inside as soon as the anchor
is in the polygon or on its edge, and outside again once it is further away than `margin`, since a
box jitters. A track first seen inside has not entered but `appeared_inside`; one last seen inside
has not left but `vanished_inside`, so

    entries + appeared_inside = exits + vanished_inside + those inside in the last frame.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from phase3_tracking.counting.regions import Point, Region
from phase3_tracking.results.track_formats import TIME_DECIMALS

ENTER, EXIT = "enter", "exit"


@dataclass(slots=True)
class _Visitor:
    """What is remembered of a track.

    Attributes:
        inside: at its last sighting.
        last_s: time of that.
        dwell_s: seconds inside so far.
        visits: stays so far, an appearance included.
    """

    name: str
    inside: bool
    last_s: float
    dwell_s: float = 0.0
    visits: int = 0


class ZoneCounter:
    """Counts the visits to one zone.

    Args:
        zone: in pixels.
        margin: pixels outside of the zone in which a track that was inside still is.
        frame_s: seconds that a frame lasts; a visit of one frame has lasted so long.

    Attributes:
        occupancy: tracks of the last frame that are inside.
        max_occupancy: the greatest occupancy so far.
        counts: (ENTER or EXIT, class) -> how often.
    """

    def __init__(self, zone: Region, margin: float, frame_s: float):
        self.zone, self.margin = zone, margin
        self.occupancy = self.max_occupancy = self.appeared_inside = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._frame_s = frame_s
        self._polygon = np.array(zone.points, np.float32)
        self._visitors: dict[int, _Visitor] = {}
        self._inside = 0  # visitors that were inside when last seen

    def update(
        self,
        time_s: float,
        track_ids: Sequence[int],
        class_names: Sequence[str],
        anchors: Sequence[Point],
    ) -> list[tuple[int, str, str]]:
        """(track id, class, ENTER or EXIT) of the tracks whose state this frame has changed.

        Args:
            time_s: of the frame; never before that of the last one.
            track_ids, class_names, anchors: of the tracks seen in this frame.
        """
        changes = []
        self.occupancy = 0
        for track_id, name, anchor in zip(track_ids, class_names, anchors, strict=True):
            change = self._move(track_id, name, anchor, time_s)
            self.occupancy += self._visitors[track_id].inside
            if change:
                self.counts[change, name] += 1
                changes.append((track_id, name, change))
        self.max_occupancy = max(self.max_occupancy, self.occupancy)
        return changes

    def total(self, change: str) -> int:
        """Entries (ENTER) or exits (EXIT) of all classes."""
        return sum(count for (kind, _), count in self.counts.items() if kind == change)

    @property
    def vanished_inside(self) -> int:
        """Tracks that were inside when last seen, and are not seen now."""
        return self._inside - self.occupancy

    def _move(self, track_id: int, name: str, anchor: Point, time_s: float) -> str | None:
        """Books a sighting; ENTER or EXIT if it changes where the track is."""
        distance = cv2.pointPolygonTest(self._polygon, anchor, measureDist=True)
        visitor = self._visitors.get(track_id)
        if visitor is None:
            visitor = self._visitors[track_id] = _Visitor(name, distance >= 0, time_s)
            self.appeared_inside += visitor.inside
            self._inside += visitor.inside
            if visitor.inside:
                self._begin_visit(visitor)
            return None
        was_inside, passed_s = visitor.inside, time_s - visitor.last_s
        visitor.inside = distance >= (-self.margin if was_inside else 0)
        visitor.name, visitor.last_s = name, time_s
        if was_inside and visitor.inside:
            visitor.dwell_s += passed_s
        if was_inside == visitor.inside:
            return None
        self._inside += visitor.inside - was_inside
        if visitor.inside:
            self._begin_visit(visitor)
        return ENTER if visitor.inside else EXIT

    def _begin_visit(self, visitor: _Visitor) -> None:
        visitor.visits += 1
        visitor.dwell_s += self._frame_s

    def summary(self) -> dict[str, Any]:
        """Counts by class, occupancy, and `visitors`: the seconds inside of every track that was.

        Dwell times are of a track, over all its visits; None where there were none.
        """
        visitors = {
            track_id: visitor for track_id, visitor in self._visitors.items() if visitor.visits
        }
        dwell_s = [round(visitor.dwell_s, TIME_DECIMALS) for visitor in visitors.values()]
        return {
            "name": self.zone.name,
            "points": [list(point) for point in self.zone.points],
            "entries": self._by_class(ENTER),
            "exits": self._by_class(EXIT),
            "appeared_inside": self.appeared_inside,
            "vanished_inside": self.vanished_inside,
            "occupancy": self.occupancy,
            "max_occupancy": self.max_occupancy,
            "dwell_median_s": round(statistics.median(dwell_s), TIME_DECIMALS) if dwell_s else None,
            "dwell_max_s": max(dwell_s, default=None),
            "visitors": [
                {
                    "track_id": track_id,
                    "class": visitor.name,
                    "visits": visitor.visits,
                    "dwell_s": round(visitor.dwell_s, TIME_DECIMALS),
                }
                for track_id, visitor in visitors.items()
            ],
        }

    def _by_class(self, change: str) -> dict[str, Any]:
        by_class = {name: n for (kind, name), n in self.counts.items() if kind == change}
        return {"total": self.total(change), "by_class": dict(sorted(by_class.items()))}
