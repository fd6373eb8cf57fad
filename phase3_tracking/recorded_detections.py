"""Detections from a file in the place of a model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.cli import log
from common.models import Detections
from phase3_tracking import mot_files
from phase3_tracking.results.track_formats import class_name


class RecordedDetections:
    """The boxes of a MOTChallenge detection file, frame by frame.

    A file knows class ids only, so a class without a name is called `class 3`, or `object` where
    the file has no id.
    Where its scores are no confidences, every box counts alike, with a confidence of 1.

    Args:
        class_names: class id -> name; also of ids that are not in the file.

    Attributes:
        class_names, category_ids: the classes in the file, by ascending id.

    Raises:
        UserError: the file cannot be used; see mot_files.read.
    """

    def __init__(self, path: Path, class_names: Mapping[int, str]):
        self._boxes = mot_files.read(path, unique_ids=False)
        self._is_rated = mot_files.are_confidences(self._boxes.confidences)
        if not self._is_rated and len(self._boxes.confidences):
            log.info("%s: its scores are no confidences in [0, 1], so every box counts", path)
        self.category_ids = tuple(np.unique(self._boxes.classes).tolist())
        names = {mot_files.NO_CLASS: "object", **class_names}
        self.class_names = tuple(class_name(names, class_id) for class_id in self.category_ids)

    def of_frame(self, number: int) -> Detections:
        """The boxes of a frame, from 1."""
        rows = self._boxes.detections(number)
        labels = np.searchsorted(self.category_ids, rows[:, 5]) + 1
        scores = rows[:, 4] if self._is_rated else np.ones(len(rows))
        return Detections(rows[:, :4].astype(np.float32), scores.astype(np.float32), labels)
