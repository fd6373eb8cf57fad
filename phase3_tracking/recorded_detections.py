"""Detections from a file in the place of a model."""

from pathlib import Path

import numpy as np

from common.cli import log
from common.models import Detections
from phase3_tracking import mot_files


class RecordedDetections:
    """The boxes of a MOTChallenge detection file, frame by frame.

    A file knows class ids only, so classes are named `class 3`, or `object` where it has none.
    Where its scores are no confidences, every box counts alike, with a confidence of 1.

    Attributes:
        class_names, category_ids: the classes in the file, by ascending id.

    Raises:
        UserError: the file cannot be used; see mot_files.read.
    """

    def __init__(self, path: Path):
        self._boxes = mot_files.read(path, unique_ids=False)
        self._is_rated = mot_files.are_confidences(self._boxes.confidences)
        if not self._is_rated and len(self._boxes.confidences):
            log.info("%s: its scores are no confidences in [0, 1], so every box counts", path)
        self.category_ids = tuple(np.unique(self._boxes.classes).tolist())
        self.class_names = tuple(
            "object" if class_id == mot_files.NO_CLASS else f"class {class_id}"
            for class_id in self.category_ids
        )

    def of_frame(self, number: int) -> Detections:
        """The boxes of a frame, from 1."""
        rows = self._boxes.detections(number)
        labels = np.searchsorted(self.category_ids, rows[:, 5]) + 1
        scores = rows[:, 4] if self._is_rated else np.ones(len(rows))
        return Detections(rows[:, :4].astype(np.float32), scores.astype(np.float32), labels)
