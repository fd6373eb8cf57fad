"""The files a run's tracks are written to, as text that comes frame by frame.

| file | form |
|---|---|
| NAME.mot.txt | MOTChallenge: `frame,id,x,y,width,height,confidence,class,1` |
| NAME.csv | a table with a heading, one row for each tracked box |
| NAME.tracks.json | an object with the video, the classes and a list of frames, one on a line |
| NAME.coco.json | a COCO results list; `image_id` is the frame, `track_id` comes on top |

Frames count from 1, boxes are in pixels with two decimals, confidences and seconds have four. Every
format has `begin()`, `frame(number, time_s, boxes)` and `end()`, which return the text to append.
To write a number takes most of the time, so each is written once, by `box_texts`, for all formats.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, NamedTuple, Protocol

from common.artifacts import SCHEMA_VERSION
from phase3_tracking.results.spreadsheet_text import as_text, csv_lines

TIME_DECIMALS, CONFIDENCE_DECIMALS = 4, 4
EXACT_DIGITS = 15  # a decimal number so long is what `repr` gives for the nearest float
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


class BoxText(NamedTuple):
    """One tracked box; numbers of pixels as text with two decimals, the confidence with four."""

    track_id: int
    category_id: int
    x1: str
    y1: str
    x2: str
    y2: str
    width: str
    height: str
    confidence: str


def box_texts(rows: Sequence[Sequence[float]]) -> list[BoxText]:
    """One for each row [x1, y1, x2, y2, track_id, class_id, confidence].

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    boxes = []
    for x1, y1, x2, y2, track_id, category, confidence in rows:
        width, height = x2 - x1, y2 - y1
        if not isfinite(width + height + confidence):
            raise ValueError(f"track {track_id}: a number is not finite, which JSON does not have")
        corners = (f"{x1:.2f}", f"{y1:.2f}", f"{x2:.2f}", f"{y2:.2f}")
        size = (f"{width:.2f}", f"{height:.2f}")
        boxes.append(BoxText(int(track_id), int(category), *corners, *size, f"{confidence:.4f}"))
    return boxes


class TrackFormat(Protocol):
    """One kind of file; `suffix` takes the place of .mp4 in the name of the result."""

    suffix: str

    def begin(self) -> str: ...

    def frame(self, number: int, time_s: float, boxes: Sequence[BoxText]) -> str: ...

    def end(self) -> str: ...


def class_name(class_names: Mapping[int, str], category_id: int) -> str:
    """What a class is called, `class 7` where it has no name."""
    return class_names.get(category_id, f"class {category_id}")


class ClassTexts(dict[int, str]):
    """Category id -> a form of what `class_name` calls it."""

    def __init__(self, class_names: Mapping[int, str], form: Callable[[str], str]):
        super().__init__({category: form(name) for category, name in class_names.items()})
        self._form = form

    def __missing__(self, category_id: int) -> str:
        return self._form(class_name({}, category_id))


class MotFormat:
    """The lines that `mot_files.read` reads, best with `unique_ids`."""

    suffix = ".mot.txt"

    def begin(self) -> str:
        return ""

    def frame(self, number: int, time_s: float, boxes: Sequence[BoxText]) -> str:
        return "".join(
            [
                f"{number},{box.track_id},{box.x1},{box.y1},{box.width},{box.height},"
                f"{box.confidence},{box.category_id},1\n"
                for box in boxes
            ]
        )

    def end(self) -> str:
        return ""


class CsvFormat:
    """A heading, and a row for each box; class names cannot become formulas."""

    suffix = ".csv"

    def __init__(self, class_names: Mapping[int, str]):
        self._names = ClassTexts(class_names, _csv_field)

    def begin(self) -> str:
        return csv_lines([CSV_COLUMNS])

    def frame(self, number: int, time_s: float, boxes: Sequence[BoxText]) -> str:
        names, head = self._names, f"{number},{time_s:.4f}"
        return "".join(
            [
                f"{head},{box.track_id},{names[box.category_id]},{box.category_id},"
                f"{box.x1},{box.y1},{box.x2},{box.y2},{box.confidence}\n"
                for box in boxes
            ]
        )

    def end(self) -> str:
        return ""


class JsonFormat:
    """`{schema, video, classes, frames: [{frame, time_s, tracks: [...]}]}`; boxes are xyxy."""

    suffix = ".tracks.json"

    def __init__(self, class_names: Mapping[int, str], video: VideoFacts):
        self._class_names, self._video = class_names, video
        self._names = ClassTexts(class_names, _json)
        self._separator = "\n"

    def begin(self) -> str:
        head = {
            "schema": f"tracks/{SCHEMA_VERSION}",
            "video": asdict(self._video),
            "classes": {str(category): name for category, name in self._class_names.items()},
        }
        return f'{_json(head)[:-1]}, "frames": ['

    def frame(self, number: int, time_s: float, boxes: Sequence[BoxText]) -> str:
        separator, self._separator = self._separator, ",\n"
        tracks = ", ".join([self._track(box) for box in boxes])
        head = f'{{"frame": {number}, "time_s": {round(time_s, TIME_DECIMALS)}'
        return f'{separator}{head}, "tracks": [{tracks}]}}'

    def _track(self, box: BoxText) -> str:
        corners = f"{short(box.x1)}, {short(box.y1)}, {short(box.x2)}, {short(box.y2)}"
        return (
            f'{{"track_id": {box.track_id}, "category_id": {box.category_id}, '
            f'"class": {self._names[box.category_id]}, "box_xyxy": [{corners}], '
            f'"confidence": {short(box.confidence)}}}'
        )

    def end(self) -> str:
        return "\n]}\n"


class CocoFormat:
    """A list as `pycocotools` loads with `loadRes`; an evaluation leaves `track_id` alone."""

    suffix = ".coco.json"

    def __init__(self) -> None:
        self._separator = "\n"

    def begin(self) -> str:
        return "["

    def frame(self, number: int, time_s: float, boxes: Sequence[BoxText]) -> str:
        if not boxes:
            return ""
        separator, self._separator = self._separator, ",\n"
        return separator + ",\n".join([self._entry(number, box) for box in boxes])

    @staticmethod
    def _entry(number: int, box: BoxText) -> str:
        box_xywh = f"{short(box.x1)}, {short(box.y1)}, {short(box.width)}, {short(box.height)}"
        return (
            f'{{"image_id": {number}, "category_id": {box.category_id}, "bbox": [{box_xywh}], '
            f'"score": {short(box.confidence)}, "track_id": {box.track_id}}}'
        )

    def end(self) -> str:
        return "\n]\n"


def short(decimal: str) -> str:
    """A number with a fixed count of decimals as JSON has it: `4.50` is 4.5, `4.00` is 4.0."""
    if len(decimal) > EXACT_DIGITS:
        return repr(float(decimal))
    if decimal[-1] != "0":
        return decimal
    decimal = decimal.rstrip("0")
    return f"{decimal}0" if decimal[-1] == "." else decimal


def _csv_field(name: str) -> str:
    """A name as it stands in a row with other fields: alone, an empty one would have quotes."""
    return csv_lines([[as_text(name), ""]]).removesuffix(",\n")


def _json(content: str | Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False, ensure_ascii=False)
