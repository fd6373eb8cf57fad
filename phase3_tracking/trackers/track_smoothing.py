"""Improves finished tracks: fills their gaps and takes the jitter out of their boxes.

    tracks = smooth(tracks, frame_rate=30)  # MotBoxes -> MotBoxes

It needs the future, so it is for files, never for a tracker that answers frame by frame. Gaps are
filled by linear interpolation (as ByteTrack's authors do, Zhang et al. 2022), then every coordinate
is smoothed by a Gaussian over time (the idea of StrongSORT's GSI, Du et al. 2023).
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d

from phase3_tracking.mot_files import MotBoxes, from_rows

MAX_GAP_S = 1.0
SIGMA_S = 0.05
GAUSSIAN_REACH = 4.0  # standard deviations


def smooth(
    tracks: MotBoxes, frame_rate: float, max_gap_s: float = MAX_GAP_S, sigma_s: float = SIGMA_S
) -> MotBoxes:
    """The same tracks with gaps filled and boxes smoothed.

    Args:
        tracks: of one sequence.
        frame_rate: frames per second.
        max_gap_s: longer gaps stay open, in seconds. A box put into a gap has the lower confidence
            of the two beside it.
        sigma_s: standard deviation of the Gaussian in seconds; 0 smooths nothing.
    """
    parts = [np.empty((0, 8))]
    max_gap, sigma = max_gap_s * frame_rate, sigma_s * frame_rate
    order = np.lexsort((tracks.frames, tracks.ids))
    ids = tracks.ids[order]
    for of_track in np.split(order, np.flatnonzero(np.diff(ids)) + 1 if len(ids) else []):
        if not len(of_track):
            continue
        frames = tracks.frames[of_track]
        for run in np.split(of_track, np.flatnonzero(np.diff(frames) > max_gap) + 1):
            parts.append(_smooth_run(tracks.select(run), sigma))
    return from_rows(np.concatenate(parts))


def smooth_frames(tracks_per_frame: Sequence[np.ndarray], frame_rate: float) -> list[np.ndarray]:
    """`smooth` for what a tracker has returned, frame after frame.

    Args:
        tracks_per_frame: (M, 7) [x1, y1, x2, y2, track_id, class_id, confidence] of each frame.
        frame_rate: frames per second.

    Returns:
        the same form, by ascending track_id.
    """
    counts = [len(tracks) for tracks in tracks_per_frame]
    numbers = np.repeat(np.arange(1, len(counts) + 1), counts)
    rows = np.concatenate([np.empty((0, 7)), *tracks_per_frame])
    (corner, far), (ids, classes, confidences) = np.split(rows[:, :4], 2, axis=1), rows[:, 4:].T
    mot_rows = np.column_stack([numbers, ids, corner, far - corner, confidences, classes])
    found = smooth(from_rows(mot_rows), frame_rate)
    smoothed = np.column_stack([found.boxes_xyxy, found.ids, found.classes, found.confidences])
    smoothed, frames = smoothed[(order := np.lexsort((found.ids, found.frames)))], found.frames
    ends = np.searchsorted(frames[order], np.arange(1, len(counts) + 1), side="right")
    return np.split(smoothed, ends)[:-1]


def _smooth_run(run: MotBoxes, sigma_frames: float) -> np.ndarray:
    """(n, 8) MOT rows, one for each frame from the first to the last of `run`."""
    frames = np.arange(run.frames[0], run.frames[-1] + 1)
    boxes = np.stack([np.interp(frames, run.frames, side) for side in run.boxes_xyxy.T], axis=1)
    if sigma_frames > 0 and len(frames) > 1:
        around = math.ceil(GAUSSIAN_REACH * sigma_frames)
        padding = ((around, around), (0, 0))  # goes on as it came, so that ends do not lag
        boxes = np.pad(boxes, padding, "reflect", reflect_type="odd")
        boxes = gaussian_filter1d(boxes, sigma_frames, axis=0, truncate=GAUSSIAN_REACH)
        boxes = boxes[around:-around]
    after = np.searchsorted(run.frames, frames)
    before = np.searchsorted(run.frames, frames, side="right") - 1
    confidences = np.minimum(run.confidences[after], run.confidences[before])
    corner, width_height = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    ids, classes = (np.full(len(frames), value[0]) for value in (run.ids, run.classes))
    return np.column_stack([frames, ids, corner, width_height, confidences, classes])
