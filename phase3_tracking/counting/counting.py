"""What a video run counts beside tracking: its options, and one object that does all of it.

    options = counting_options(args, with_video=True)  # --line, --zone, --heatmap, ...
    counting = Counting(options, class_names, width, height, fps)
    events = counting.update(number, time_s, tracks, frame)  # the frame as it was read
    counting.draw(frame)  # lines and zones, before the tracks
    counting.keep(time_s, frame)  # with everything on it
    for path, content in counting.pictures(output_path).items():
        ...
    report |= counting.summary()

Nothing here imports OpenCV before a `Counting` is made.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phase3_tracking.counting.regions import Region, parse_line, parse_zone, place

if TYPE_CHECKING:
    import numpy as np

    from phase3_tracking.counting.region_events import Event
    from phase3_tracking.results.drawing import Place

HEATMAP_SUFFIX, CONTACT_SUFFIX = ".heatmap.png", ".contact.jpg"


@dataclass(frozen=True)
class CountingOptions:
    """What was asked for; lines and zones as they were written, see regions.py."""

    lines: tuple[Region, ...] = ()
    zones: tuple[Region, ...] = ()
    heatmap: bool = True
    contact_sheet: bool = True

    @property
    def has_regions(self) -> bool:
        return bool(self.lines or self.zones)


def add_counting_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --line, --zone, --heatmap and --contact-sheet."""
    group = parser.add_argument_group("counting")
    group.add_argument(
        "--line",
        type=parse_line,
        action="append",
        metavar="[NAME:]X1,Y1,X2,Y2",
        help="count what crosses this line, by direction: left_to_right is from the left hand to "
        "the right hand of somebody who walks from point 1 to point 2. Pixels, or shares of width "
        "and height where all are at most 1. Repeatable",
    )
    group.add_argument(
        "--zone",
        type=parse_zone,
        action="append",
        metavar="[NAME:]X1,Y1,X2,Y2,X3,Y3,...",
        help="count what enters, leaves and stays in this polygon. Repeatable",
    )
    group.add_argument(
        "--heatmap",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write NAME.heatmap.png: where objects were and for how long",
    )
    group.add_argument(
        "--contact-sheet",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write NAME.contact.jpg: a dozen annotated frames",
    )


def counting_options(args: argparse.Namespace, *, with_video: bool) -> CountingOptions:
    """The options that were given on the command line.

    Args:
        with_video: whether frames are drawn; if not there is nothing for a contact sheet.
    """
    return CountingOptions(
        tuple(args.line or ()),
        tuple(args.zone or ()),
        args.heatmap,
        args.contact_sheet and with_video,
    )


def picture_files(output_path: Path, options: CountingOptions) -> list[Path]:
    """The pictures a run to NAME.mp4 writes."""
    wanted = {HEATMAP_SUFFIX: options.heatmap, CONTACT_SUFFIX: options.contact_sheet}
    return [output_path.with_suffix(suffix) for suffix, is_wanted in wanted.items() if is_wanted]


class Counting:
    """Statistics of the tracks, counts at lines and zones, the heat map and the contact sheet.

    Args:
        class_names: category id -> name.
        width, height: of the frames, in pixels.
        fps: frames per second.

    Raises:
        UserError: a line or zone lies outside of the frame, or a name is given twice.
    """

    def __init__(
        self,
        options: CountingOptions,
        class_names: Mapping[int, str],
        width: int,
        height: int,
        fps: float,
    ):
        from phase3_tracking.counting.region_events import RegionCounter
        from phase3_tracking.counting.track_statistics import TrackStatistics
        from phase3_tracking.results.contact_sheet import ContactSheet
        from phase3_tracking.results.heatmap import Heatmap

        lines = place(options.lines, "line", width, height)
        zones = place(options.zones, "zone", width, height)
        self._statistics = TrackStatistics(class_names, 1 / fps)
        self._regions = RegionCounter(
            lines, zones, class_names, frame_height=height, frame_s=1 / fps
        )
        self._has_regions = options.has_regions
        self._heatmap = Heatmap(width, height, 1 / fps) if options.heatmap else None
        self._sheet = ContactSheet() if options.contact_sheet else None

    def update(
        self, frame_number: int, time_s: float, tracks: "np.ndarray", frame_bgr: "np.ndarray"
    ) -> "list[Event]":
        """Counts one frame; the events at lines and zones.

        Args:
            frame_number: from 1.
            time_s: of the frame in the video, from 0; never before that of the last one.
            tracks: (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence] in pixels.
            frame_bgr: uint8 (height, width, 3) before anything is drawn on it; not kept.
        """
        self._statistics.update(time_s, tracks)
        if self._heatmap:
            self._heatmap.update(time_s, tracks, frame_bgr)
        return self._regions.update(frame_number, time_s, tracks) if self._has_regions else []

    def draw(self, frame_bgr: "np.ndarray") -> "list[Place]":
        """Draws lines and zones with their counts onto the frame, before the tracks; where the
        counts stand."""
        if not self._has_regions:
            return []
        from phase3_tracking.counting.region_drawing import draw_regions

        return draw_regions(frame_bgr, self._regions.lines, self._regions.zones)

    def keep(self, time_s: float, frame_bgr: "np.ndarray") -> None:
        """Shows the contact sheet a frame with everything drawn on it; a copy is kept if any."""
        if self._sheet:
            self._sheet.add(time_s, frame_bgr)

    def pictures(self, output_path: Path) -> dict[Path, bytes]:
        """What the `picture_files` of NAME.mp4 are to hold.

        Raises:
            ValueError: there was no frame.
        """
        content = {}
        if self._heatmap:
            content[output_path.with_suffix(HEATMAP_SUFFIX)] = self._heatmap.encoded()
        if self._sheet:
            content[output_path.with_suffix(CONTACT_SUFFIX)] = self._sheet.encoded()
        return content

    def live_counts(self) -> dict[str, Any]:
        """`tracks` so far and `class_counts`, with lines or zones `line_counts` and `zone_counts`;
        for a live view."""
        by_class = self._statistics.tracks_so_far()
        content: dict[str, Any] = {"tracks": sum(by_class.values()), "class_counts": by_class}
        if self._has_regions:
            content |= self._regions.live_counts()
        return content

    def summary(self) -> dict[str, Any]:
        """`statistics` (see TrackStatistics), and with lines or zones `regions` (see
        RegionCounter); for the report."""
        content: dict[str, Any] = {"statistics": self._statistics.summary()}
        if self._has_regions:
            content["regions"] = self._regions.summary()
        return content
