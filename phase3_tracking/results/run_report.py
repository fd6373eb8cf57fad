"""What a video run reports: its numbers, and the lines that tell them."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common import paths
from common.cli import log
from phase3_tracking.stage_clock import StageClock
from phase3_tracking.trackers.tracker_options import START_SHARE

if TYPE_CHECKING:
    from common.video import VideoWriter
    from phase3_tracking.inputs.frame_source import FrameSource
    from phase3_tracking.object_tracker import Tracker

CLASSES_TOLD = 10


def of_video(
    source: "FrameSource", writer: "VideoWriter | None", clock: StageClock, *, complete: bool
) -> dict[str, Any]:
    """How much of the input was processed, and how fast; to be called when the files are written.

    Args:
        complete: nobody stopped the run.
    """
    clock.seconds["decode"] += source.decode_seconds
    return {
        "frames_read": source.frames_read,
        "frames_written": writer.frames_written if writer else 0,
        "frames_decoded": source.frames_decoded,
        "frames_promised": source.frames_promised,
        "frames_dropped": source.frames_dropped,
        "truncated": source.truncated,
        "complete": complete,
        "notes": [*source.notes, *(writer.notes if writer else [])],
        "fps_end_to_end": clock.mean_fps(),
        "stage_ms": clock.stage_ms(),
        "latency_ms": clock.latency_ms(),
        "video": {
            "name": paths.display(source.path) if source.path else source.name,
            "bytes": source.path.stat().st_size if source.path and source.path.is_file() else None,
            "width": source.width,
            "height": source.height,
            "fps": float(source.fps),
            "source_fps": float(source.source_fps),
            "audio": writer.audio_kept if writer else None,
        },
    }


def of_tracks(counted: Mapping[str, Any], tracker: "Tracker") -> dict[str, Any]:
    """How many tracks there are, and everything else that was counted.

    Returns:
        `tracks`, `class_counts` (class name -> tracks, most first), `dropped_detections`,
        `best_confidence` of a detection (None without one), `start_confidence` that starts a track
        (None where all do), and the contents of `counted`.
    """
    statistics = counted["statistics"]
    return {
        "tracks": statistics["unique_tracks"],
        "class_counts": {
            one["class"]: one["unique_tracks"]
            for one in statistics["classes"]
            if one["unique_tracks"]
        },
        "dropped_detections": tracker.dropped_detections,
        "best_confidence": _finite(tracker.best_confidence),
        "start_confidence": _finite(tracker.least_to_start),
        **counted,
    }


def cut_short(report: Mapping[str, Any]) -> str:
    """How much there was of an input that is truncated; live ones promise nothing."""
    decoded, promised = report["frames_decoded"], report["frames_promised"]
    if promised is None:
        return f"ended after {decoded} frames"
    return f"{decoded} of {promised} frames readable"


def tell(name: str, report: Mapping[str, Any]) -> None:
    """Logs the outcome in a few lines."""
    read = report["frames_read"]
    if report["truncated"]:
        log.warning("%s is cut short: %s", name, cut_short(report))
    for note in report["notes"]:
        log.warning("%s: %s", name, note)
    if report["dropped_detections"]:
        text = "%d detections without an area or with values that are not finite were left out"
        log.warning(text, report["dropped_detections"])
    if not report["complete"]:
        log.warning("Stopped after %d frames; what was done by then is saved", read)
    of_classes = ", ".join(f"{name} {count}" for name, count in report["class_counts"].items())
    log.info("%d frames, %d tracks%s", read, report["tracks"], of_classes and f" ({of_classes})")
    if not report["tracks"]:
        log.info("%s Looked for: %s", _why_nothing(report), _listed(report))
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in report["stage_ms"].items())
    log.info("%.1f FPS end to end; ms per frame: %s", report["fps_end_to_end"], stages)
    if report["latency_ms"]:
        text = "Latency from the reader to the result: p50 %.1f, p90 %.1f, p99 %.1f ms"
        log.info(text, *report["latency_ms"].values())


def _why_nothing(report: Mapping[str, Any]) -> str:
    """Why there is no track, and which options may change that."""
    best, start = report["best_confidence"], report["start_confidence"]
    settings = report["settings"]
    if best is None:
        return "Nothing was found. Lower --confidence?"
    if start is None or best >= start:
        return f"No track has had the {settings['min_hits']} detections it needs. Lower --min-hits?"
    confidence, rounded = settings["confidence_threshold"], math.floor(100 * best) / 100
    enough = math.floor(100 * (best - START_SHARE) / (1 - START_SHARE)) / 100
    ways = [f"--confidence {enough:g}"] if enough >= 0 else []
    ways += ["--tracker ocsort" + (f" --confidence {rounded:g}" if best < confidence else "")]
    return (
        f"No track has started: at --confidence {confidence:g} {settings['tracker']} starts one "
        f"from {start:.3g}, and the best detection has {rounded:.2f}. Try {' or '.join(ways)}."
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listed(report: Mapping[str, Any]) -> str:
    """The first names of the classes that were looked for."""
    names = list(report["categories"].values())
    more = [f"and {len(names) - CLASSES_TOLD} more"] if len(names) > CLASSES_TOLD else []
    return ", ".join([*names[:CLASSES_TOLD], *more]) or "no class"
