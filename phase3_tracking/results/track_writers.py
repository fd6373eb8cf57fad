"""Writes the tracks of a run frame by frame, in four formats, with flat memory.

    with TrackWriters(Path("tracked.mp4"), {1: "person"}, VideoFacts("a.mp4", 640, 360, 30)) as out:
        out.write(1, 0.0, tracks)

The formats are described in track_formats.py.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from common.artifacts import atomic_path
from phase3_tracking.results.spreadsheet_text import csv_lines
from phase3_tracking.results.text_streams import Place, TextStreams
from phase3_tracking.results.track_formats import (
    CocoFormat,
    CsvFormat,
    JsonFormat,
    MotFormat,
    TrackFormat,
    VideoFacts,
    box_texts,
)

if TYPE_CHECKING:
    import numpy as np

    from phase3_tracking.counting.region_events import Event

EVENTS_SUFFIX = ".events.csv"
SUFFIXES = (MotFormat.suffix, CsvFormat.suffix, JsonFormat.suffix, CocoFormat.suffix)


def track_files(output_path: Path, *, with_events: bool = False) -> list[Path]:
    """What a run to NAME.mp4 writes: NAME.mot.txt, NAME.csv, NAME.tracks.json, NAME.coco.json, and
    NAME.events.csv where lines or zones are watched."""
    suffixes = [*SUFFIXES, EVENTS_SUFFIX] if with_events else SUFFIXES
    return [output_path.with_suffix(suffix) for suffix in suffixes]


class TrackWriters:
    """Context manager that writes the `track_files` of `output_path`.

    When the block ends, all files appear, whole; without a frame or a track they are valid, empty
    ones. If the block raises or the disk is full, none appears and older ones stay.

    Args:
        output_path: NAME.mp4.
        class_names: category id -> name; an id without a name is called `class 7`.
        with_events: also write NAME.events.csv, with what `write` is told of lines and zones.
        place: gives the path to write to for a file.

    Raises:
        UserError: a file cannot be written; names it.
    """

    def __init__(
        self,
        output_path: Path,
        class_names: Mapping[int, str],
        video: VideoFacts,
        *,
        with_events: bool = False,
        place: Place = atomic_path,
    ):
        self._formats: tuple[TrackFormat, ...] = (
            MotFormat(),
            CsvFormat(class_names),
            JsonFormat(class_names, video),
            CocoFormat(),
        )
        self._with_events = with_events
        self._streams = TextStreams(track_files(output_path, with_events=with_events), place)

    def __enter__(self) -> "TrackWriters":
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._streams)
            for index, form in enumerate(self._formats):
                self._streams.append(index, form.begin())
            if self._with_events:
                from phase3_tracking.counting.region_events import EVENT_COLUMNS

                self._streams.append(len(self._formats), csv_lines([EVENT_COLUMNS]))
            self._stack = stack.pop_all()
        return self

    def write(
        self, frame_number: int, time_s: float, tracks: "np.ndarray", events: "Sequence[Event]" = ()
    ) -> None:
        """Appends one frame.

        Args:
            frame_number: from 1, ascending.
            time_s: of the frame in the video.
            tracks: (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence] in pixels.
            events: what RegionCounter.update returned for the frame.

        Raises:
            ValueError: a number is NaN or infinite, which JSON does not have, or there are events
                and no file for them.
        """
        boxes = box_texts(tracks.tolist())
        for index, form in enumerate(self._formats):
            self._streams.append(index, form.frame(frame_number, time_s, boxes))
        if events:
            if not self._with_events:
                raise ValueError("events are given, but with_events is not")
            from phase3_tracking.counting.region_events import event_lines

            self._streams.append(len(self._formats), event_lines(events))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            for index, form in enumerate(self._formats):
                self._streams.append(index, form.end())
