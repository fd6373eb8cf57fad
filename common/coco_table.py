"""The annotations of a COCO file as columns: what is done to 100,000 boxes is done at once."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUMBERS = frozenset((int, float))  # by `type`, which leaves out true and false
INTEGER_KEYS = {
    "images": ("id", "width", "height"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
}
MAX_EXACT = 2**53  # beyond it floats are whole by themselves


@dataclass(frozen=True)
class AnnotationTable:
    """Annotations as columns, in file order.

    Attributes:
        entries: the objects of the file.
        image_index: int64 (N,), the image each belongs to.
        labels: int64 (N,), from 1.
        boxes_xywh: float64 (N, 4), pixels, as written.
        is_crowd: bool (N,).
        areas: float64 (N,), as written; NaN where it is no number.
    """

    entries: list[dict]
    image_index: np.ndarray
    labels: np.ndarray
    boxes_xywh: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(
        cls, entries: Sequence[dict], image_index: Sequence[int], labels: Sequence[int]
    ) -> "AnnotationTable":
        areas: list[Any] = [entry.get("area") for entry in entries]
        return cls(
            list(entries),
            np.array(image_index, dtype=np.int64),
            np.array(labels, dtype=np.int64),
            _floats([number for entry in entries for number in entry["bbox"]]).reshape(-1, 4),
            np.array([entry.get("iscrowd", 0) == 1 for entry in entries], dtype=bool),
            _floats([area if type(area) in NUMBERS else math.nan for area in areas]),
        )

    def part(self, chosen: np.ndarray) -> "AnnotationTable":
        """The rows where the mask `chosen` (N,) is true."""
        columns = (self.image_index, self.labels, self.boxes_xywh, self.is_crowd, self.areas)
        entries = list(itertools.compress(self.entries, chosen))
        return AnnotationTable(entries, *(column[chosen] for column in columns))


def _floats(numbers: Sequence[float]) -> np.ndarray:
    try:
        return np.array(numbers, dtype=np.float64)
    except OverflowError:  # a whole number of 400 digits
        return np.array([math.inf if abs(n) >= 2**1023 else n for n in numbers], np.float64)


# --- whole numbers ----------------------------------------------------------------------------


def with_whole_numbers(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a file with 7 for 7.0 where COCO has integers: a table with gaps makes floats
    of all numbers of a column. Entries without one are the same objects."""
    return with_integers(content, float, _whole)


def _whole(number: float) -> int | None:
    return int(number) if abs(number) <= MAX_EXACT and number.is_integer() else None


def with_integers(
    content: dict[str, Any], kind: type, convert: Callable[[Any], int | None]
) -> dict[str, Any]:
    """The content with the values of type `kind` converted where COCO has integers.

    Args:
        content: need not be right; lists of anything but objects stay as they are.
        convert: returns None for a value that stays.
    """
    lists = {}
    for name, keys in INTEGER_KEYS.items():
        entries = content.get(name)
        if isinstance(entries, list) and set(map(type, entries)) <= {dict}:
            found = [key for key in keys if kind in {type(entry.get(key)) for entry in entries}]
            if found:
                lists[name] = [_converted(entry, found, kind, convert) for entry in entries]
    return {**content, **lists}


def _converted(
    entry: dict, keys: Sequence[str], kind: type, convert: Callable[[Any], int | None]
) -> dict:
    numbers = {
        key: number
        for key in keys
        if type(entry.get(key)) is kind and (number := convert(entry[key])) is not None
    }
    return {**entry, **numbers} if numbers else entry
