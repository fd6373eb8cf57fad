"""Detections from a file in the place of a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.models import Detections
from phase3_tracking import mot_files


class RecordedDetections:
    """A Predictor that answers with the boxes of a MOTChallenge detection file, frame by frame.

    The n-th image it is given since it was made is frame n of the file; the pixels are not looked
    at. A file knows class ids only, so classes are named `class 3`, or `object` where it has none.

    Attributes:
        class_names, category_ids: the classes in the file, by ascending id.

    Raises:
        UserError: the file cannot be used; see mot_files.read.
    """

    def __init__(self, path: Path):
        self._boxes = mot_files.read(path, unique_ids=False)
        self.category_ids = tuple(np.unique(self._boxes.classes).tolist())
        self.class_names = tuple(
            "object" if class_id == mot_files.NO_CLASS else f"class {class_id}"
            for class_id in self.category_ids
        )
        self._frame = 0

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        return [self._next() for _ in images]

    def _next(self) -> Detections:
        self._frame += 1
        rows = self._boxes.detections(self._frame)
        labels = np.searchsorted(self.category_ids, rows[:, 5]) + 1
        return Detections(rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), labels)
