"""What a video run reports: its numbers, and the lines that tell them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import paths
from common.cli import log
from phase3_tracking.stage_clock import StageClock

if TYPE_CHECKING:
    import numpy as np

    from common.video import VideoWriter
    from phase3_tracking.object_tracker import Tracker
    from phase3_tracking.video_io import VideoReader


def video_outcome(
    reader: "VideoReader", writer: "VideoWriter | None", clock: StageClock, *, complete: bool
) -> dict[str, Any]:
    """How much of the video was processed, and how fast; to be called when the file is written."""
    clock.seconds["decode"] = reader.decode_seconds
    return {
        "frames_read": reader.frames_read,
        "frames_written": writer.frames_written if writer else 0,
        "frames_promised": reader.frames_promised,
        "truncated": reader.truncated,
        "complete": complete,
        "fps_end_to_end": clock.mean_fps(),
        "stage_ms": clock.stage_ms(),
        "video": {"width": reader.width, "height": reader.height, "fps": float(reader.fps)},
    }


def track_outcome(
    tracker: "Tracker",
    track_log: "Sequence[tuple[int, np.ndarray]]",
    class_names: Mapping[int, str],
) -> dict[str, Any]:
    """How many tracks there are; `class_counts` is class name -> tracks, most frequent first."""
    seen = {(row[4], row[5]) for _, tracks in track_log for row in tracks.tolist()}
    counts = Counter(class_names[int(category)] for _, category in seen)
    return {
        "tracks": tracker.tracks_started,
        "class_counts": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        "dropped_detections": tracker.dropped_detections,
    }


def tell(video_path: Path, report: Mapping[str, Any]) -> None:
    """Logs the outcome in a few lines."""
    read, promised = report["frames_read"], report["frames_promised"]
    if report["truncated"]:
        text = "%s is cut short: %d frames promised, %d could be decoded and were tracked"
        log.warning(text, paths.display(video_path), promised, read)
    if report["dropped_detections"]:
        text = "%d detections without an area or with values that are not finite were left out"
        log.warning(text, report["dropped_detections"])
    if not report["complete"]:
        log.warning("Stopped after %d frames; what was done by then is saved", read)
    of_classes = ", ".join(f"{name} {count}" for name, count in report["class_counts"].items())
    log.info("%d frames, %d tracks%s", read, report["tracks"], of_classes and f" ({of_classes})")
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in report["stage_ms"].items())
    log.info("%.1f FPS end to end; ms per frame: %s", report["fps_end_to_end"], stages)
