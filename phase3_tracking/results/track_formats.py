"""The files a run's tracks are written to, as text that comes frame by frame.

| file | form |
|---|---|
| NAME.mot.txt | MOTChallenge: `frame,id,x,y,width,height,confidence,class,1` |
| NAME.csv | a table with a heading, one row for each tracked box |
| NAME.tracks.json | an object with the video, the classes and a list of frames, one on a line |
| NAME.coco.json | a COCO results list; `image_id` is the frame, `track_id` comes on top |

Frames count from 1, boxes are in pixels with two decimals, confidences and seconds have four. Every
format has `begin()`, `frame(number, time_s, rows)` and `end()`, which return the text to append.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from common.artifacts import SCHEMA_VERSION
from phase3_tracking.results.spreadsheet_text import as_text, csv_lines

Row = Sequence[float]  # x1, y1, x2, y2, track_id, class_id, confidence
PIXEL_DECIMALS, CONFIDENCE_DECIMALS, TIME_DECIMALS = 2, 4, 4
CSV_COLUMNS = (
    *("frame", "time_s", "track_id", "class", "category_id"),
    *("x1", "y1", "x2", "y2", "confidence"),
)


@dataclass(frozen=True)
class VideoFacts:
    """The video that was tracked: its file name, its size in pixels, its frames per second."""

    name: str
    width: int
    height: int
    fps: float


class TrackFormat(Protocol):
    """One kind of file; `suffix` takes the place of .mp4 in the name of the result."""

    suffix: str

    def begin(self) -> str: ...

    def frame(self, number: int, time_s: float, rows: Sequence[Row]) -> str: ...

    def end(self) -> str: ...


def class_name(class_names: Mapping[int, str], category_id: int) -> str:
    """What a class is called, `class 7` where it has no name."""
    return class_names.get(category_id, f"class {category_id}")


class MotFormat:
    """The lines that `mot_files.read` reads, best with `unique_ids`."""

    suffix = ".mot.txt"

    def begin(self) -> str:
        return ""

    def frame(self, number: int, time_s: float, rows: Sequence[Row]) -> str:
        return "".join(
            f"{number},{int(track_id)},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},"
            f"{confidence:.4f},{int(category)},1\n"
            for x1, y1, x2, y2, track_id, category, confidence in rows
        )

    def end(self) -> str:
        return ""


class CsvFormat:
    """A heading, and a row for each box; class names cannot become formulas."""

    suffix = ".csv"

    def __init__(self, class_names: Mapping[int, str]):
        self._names = {category: as_text(name) for category, name in class_names.items()}

    def begin(self) -> str:
        return csv_lines([CSV_COLUMNS])

    def frame(self, number: int, time_s: float, rows: Sequence[Row]) -> str:
        time_text = f"{time_s:.4f}"
        return csv_lines(
            [
                (
                    *(number, time_text, int(track_id)),
                    *(class_name(self._names, int(category)), int(category)),
                    *(f"{value:.2f}" for value in corners),
                    f"{confidence:.4f}",
                )
                for *corners, track_id, category, confidence in rows
            ]
        )

    def end(self) -> str:
        return ""


class JsonFormat:
    """`{schema, video, classes, frames: [{frame, time_s, tracks: [...]}]}`; boxes are xyxy."""

    suffix = ".tracks.json"

    def __init__(self, class_names: Mapping[int, str], video: VideoFacts):
        self._names, self._video = class_names, video
        self._separator = "\n"

    def begin(self) -> str:
        head = {
            "schema": f"tracks/{SCHEMA_VERSION}",
            "video": asdict(self._video),
            "classes": {str(category): name for category, name in self._names.items()},
        }
        return f'{_json(head)[:-1]}, "frames": ['

    def frame(self, number: int, time_s: float, rows: Sequence[Row]) -> str:
        separator, self._separator = self._separator, ",\n"
        tracks = [self._track(row) for row in rows]
        entry = {"frame": number, "time_s": round(time_s, TIME_DECIMALS), "tracks": tracks}
        return separator + _json(entry)

    def _track(self, row: Row) -> dict[str, Any]:
        *corners, track_id, category, confidence = row
        return {
            "track_id": int(track_id),
            "category_id": int(category),
            "class": class_name(self._names, int(category)),
            "box_xyxy": [round(value, PIXEL_DECIMALS) for value in corners],
            "confidence": round(confidence, CONFIDENCE_DECIMALS),
        }

    def end(self) -> str:
        return "\n]}\n"


class CocoFormat:
    """A list as `pycocotools` loads with `loadRes`; an evaluation leaves `track_id` alone."""

    suffix = ".coco.json"

    def __init__(self) -> None:
        self._separator = "\n"

    def begin(self) -> str:
        return "["

    def frame(self, number: int, time_s: float, rows: Sequence[Row]) -> str:
        parts = []
        for x1, y1, x2, y2, track_id, category, confidence in rows:
            box_xywh = [round(value, PIXEL_DECIMALS) for value in (x1, y1, x2 - x1, y2 - y1)]
            entry = {
                "image_id": number,
                "category_id": int(category),
                "bbox": box_xywh,
                "score": round(confidence, CONFIDENCE_DECIMALS),
                "track_id": int(track_id),
            }
            parts += [self._separator, _json(entry)]
            self._separator = ",\n"
        return "".join(parts)

    def end(self) -> str:
        return "\n]\n"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False, ensure_ascii=False)
