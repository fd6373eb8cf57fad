"""Goes through an input once, tracks it, and keeps the moments that explain tracking best."""

from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from common import cli
from common.cli import UserError
from phase3_tracking.explain.explain_moments import (
    AssignmentFinder,
    AssignmentMoment,
    CameraFinder,
    CameraMoment,
    OverlapFinder,
    OverlapMoment,
    PredictionFinder,
    PredictionMoment,
)
from phase3_tracking.explain.explain_trace import (
    TracedCMCSORT,
    TracedSORT,
    strong_only,
    traced_update,
)
from phase3_tracking.explain.explain_weak import WeakFinder, WeakMoment
from phase3_tracking.inputs.source_options import SourceOptions
from phase3_tracking.inputs.sources import open_source
from phase3_tracking.pipeline import batch_size_within
from phase3_tracking.trackers.tracker_options import START_SHARE

if TYPE_CHECKING:
    from phase3_tracking.video_detector import VideoDetector


@dataclass(frozen=True)
class Moments:
    """What a video shows; None where it does not."""

    overlap: OverlapMoment | None
    assignment: AssignmentMoment | None
    prediction: PredictionMoment | None
    weak: WeakMoment | None
    camera: CameraMoment | None


class Chooser:
    """Tracks detections frame by frame and keeps the moments that explain most.

    Args:
        confidence: detections below it are weak.
        frame_rate: frames per second.
    """

    def __init__(self, confidence: float, frame_rate: float):
        self._confidence = confidence
        memory = max(1, round(frame_rate))
        self._sort = TracedSORT(max_age=memory, min_hits=1, frame_rate=frame_rate)
        self._default = TracedCMCSORT(
            frame_rate=frame_rate,
            high_confidence=confidence,
            start_confidence=confidence + START_SHARE * (1 - confidence),
        )
        self._overlap = OverlapFinder()
        self._assignment = AssignmentFinder(self._sort.iou_threshold)
        self._prediction = PredictionFinder()
        self._weak = WeakFinder(confidence)
        self._camera = CameraFinder()

    def take(self, number: int, time_s: float, detections: np.ndarray) -> None:
        """Looks at one frame.

        Args:
            number: of the frame in the input, from 1.
            detections: (N, 6) [x1, y1, x2, y2, confidence, class_id], also the weak ones.
        """
        strong = strong_only(detections, self._confidence)
        step = traced_update(self._sort, strong, number, time_s)
        for finder in (self._overlap, self._assignment, self._prediction):
            finder.take(step)
        before = deepcopy(self._default)
        step = traced_update(self._default, detections, number, time_s)
        self._weak.take(before, step, detections)
        self._camera.take(step)

    def moments(self) -> Moments:
        """The best of each kind, once the video is over."""
        self._weak.finish()
        return Moments(
            *(self._overlap.best, self._assignment.best, self._prediction.best),
            *(self._weak.best, self._camera.best),
        )


def choose_moments(text: str, detector: "VideoDetector", options: SourceOptions) -> Moments:
    """Reads and tracks the input once.

    Raises:
        UserError: the input cannot be read, or is live.
    """
    with open_source(text, options) as source:
        if source.live:
            remedy = "record it first: video_detector.py writes the frames to an mp4"
            raise UserError(source.name, "is live and cannot be read twice", remedy)
        total = source.frames_expected
        frames = cli.progress(source, total=total, label=source.name) if total else iter(source)
        chooser = Chooser(detector.confidence_threshold, float(source.fps))
        frames, frame_bytes = iter(frames), 3 * source.width * source.height
        size = batch_size_within(detector.batch_size, 1, frame_bytes)
        while batch := list(islice(frames, size)):
            found = detector.detect_for_tracking(batch)
            for frame, detections in zip(batch, found, strict=True):
                chooser.take(frame.index + 1, float(frame.time_s), detections)
    return chooser.moments()


def read_frames(text: str, options: SourceOptions, numbers: set[int]) -> dict[int, np.ndarray]:
    """The uint8 BGR frames with these numbers, from 1."""
    found: dict[int, np.ndarray] = {}
    with open_source(text, options) as source:
        for frame in source:
            if frame.index + 1 in numbers:
                found[frame.index + 1] = frame.image_bgr
            if len(found) == len(numbers):
                break
    return found


def numbers_of_frames(moments: Moments) -> set[int]:
    """The frames that the pictures show."""
    numbers: set[int] = set()
    if moments.overlap:
        numbers.add(moments.overlap.frames[1])
    if moments.assignment:
        numbers.add(moments.assignment.number)
    if moments.prediction:
        numbers |= {step.number for step in moments.prediction.steps}
    if moments.weak:
        ends = (moments.weak.begin, moments.weak.end)
        numbers |= {one.with_weak.number for one in ends if one}
    if moments.camera:
        numbers.add(moments.camera.number)
    return numbers
