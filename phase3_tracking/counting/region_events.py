"""Lines and zones of a video together: what happened at them, and when."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from phase3_tracking.counting.line_crossing import DIRECTIONS, LineCounter
from phase3_tracking.counting.regions import Region
from phase3_tracking.counting.zones import ZoneCounter
from phase3_tracking.results.spreadsheet_text import as_text, csv_lines
from phase3_tracking.results.track_formats import TIME_DECIMALS, class_name

MARGIN = 0.01  # of the frame's height: more than a box jitters, less than an object moves
MIN_MARGIN_PX = 2.0
MAX_LISTED_EVENTS = 10_000  # in the summary; NAME.events.csv has all
LINE = "line"
EVENT_COLUMNS = ("frame", "time_s", "kind", "name", "track_id", "class", "direction")


@dataclass(frozen=True, slots=True)
class Event:
    """A track crossed a line, or entered or left a zone.

    Attributes:
        frame: from 1.
        kind: "line", "enter" or "exit".
        name: of the line or zone.
        direction: of line_crossing.DIRECTIONS; None for zones.
    """

    time_s: float
    frame: int
    kind: str
    name: str
    track_id: int
    class_name: str
    direction: str | None

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        content["time_s"] = round(self.time_s, TIME_DECIMALS)
        content["class"] = content.pop("class_name")
        return content


class RegionCounter:
    """Counts at lines and zones, frame by frame.

    A track takes a few hundred bytes for each region; of the events the first MAX_LISTED_EVENTS are
    kept, `update` hands out every one.

    Args:
        lines, zones: in pixels, as `regions.place` returns them.
        class_names: category id -> name.
        frame_height: pixels; a hundredth of it is how far a box may jitter.
        frame_s: seconds that a frame lasts.

    Attributes:
        lines, zones: the counters, in the order given.
    """

    def __init__(
        self,
        lines: Sequence[Region],
        zones: Sequence[Region],
        class_names: Mapping[int, str],
        *,
        frame_height: int,
        frame_s: float,
    ):
        margin = max(MIN_MARGIN_PX, MARGIN * frame_height)
        self.lines = [LineCounter(line, margin) for line in lines]
        self.zones = [ZoneCounter(zone, margin, frame_s) for zone in zones]
        self._class_names = class_names
        self._events: list[Event] = []
        self._total = 0

    def update(self, frame: int, time_s: float, tracks: np.ndarray) -> list[Event]:
        """The events of one frame, those of lines first.

        Args:
            frame: from 1.
            time_s: never before that of the last frame.
            tracks: (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence] in pixels.
        """
        ids = tracks[:, 4].astype(int).tolist()
        names = [class_name(self._class_names, int(label)) for label in tracks[:, 5]]
        anchors = list(map(tuple, anchors_of(tracks).tolist()))
        events = [
            Event(time_s, frame, LINE, line.line.name, track_id, name, direction)
            for line in self.lines
            for track_id, name, direction in line.update(ids, names, anchors)
        ]
        events += [
            Event(time_s, frame, change, zone.zone.name, track_id, name, None)
            for zone in self.zones
            for track_id, name, change in zone.update(time_s, ids, names, anchors)
        ]
        self._total += len(events)
        self._events += events[: MAX_LISTED_EVENTS - len(self._events)]
        return events

    def live_counts(self) -> dict[str, Any]:
        """`line_counts`: name and direction -> crossings; `zone_counts`: name -> inside now."""
        lines = {
            f"{line.line.name} {direction.replace('_', ' ')}": line.total(direction)
            for line in self.lines
            for direction in DIRECTIONS
        }
        return {
            "line_counts": lines,
            "zone_counts": {zone.zone.name: zone.occupancy for zone in self.zones},
        }

    def summary(self) -> dict[str, Any]:
        """`lines` and `zones` (see their counters), `events`, and `events_total`, which is more
        than their number once there are more than MAX_LISTED_EVENTS."""
        return {
            "lines": [line.summary() for line in self.lines],
            "zones": [zone.summary() for zone in self.zones],
            "events_total": self._total,
            "events": [event.as_json() for event in self._events],
        }


def anchors_of(tracks: np.ndarray) -> np.ndarray:
    """(M, 2) bottom centres of the boxes of (M, 7) tracks: where objects touch the ground."""
    return np.column_stack([(tracks[:, 0] + tracks[:, 2]) / 2, tracks[:, 3]])


def event_lines(events: Sequence[Event]) -> str:
    """The rows of NAME.events.csv, see EVENT_COLUMNS."""
    return csv_lines(
        [
            (
                *(event.frame, f"{event.time_s:.4f}", event.kind, as_text(event.name)),
                *(event.track_id, as_text(event.class_name), event.direction),
            )
            for event in events
        ]
    )
