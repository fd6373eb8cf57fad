"""How good every tracker is on MOTChallenge sequences, and what each part of our default buys.

    python benchmarks/tracker_quality.py /path/to/MOT17/train
    python benchmarks/tracker_quality.py /path/to/MOT17/train --peers /tmp/peers/bin/python \\
        --peers /tmp/peers_sv/bin/python

Everyone tracks the public detections, at the full frame rate and with only every third frame, with
its defaults and one configuration for all sequences; scores are those of evaluate_tracking.py. Ours
are told when each frame was taken; the peers' defaults do not ask. How the peers' environments
are made stands in tracker_peers.py.

The ablation takes one part away at a time. So that nothing in it rests on a single sequence, the
last column is the smallest loss of HOTA over all sets of sequences with one left out: a part with a
positive number there helps whichever sequence is not looked at.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/tracker_quality.py` finds common/

from benchmarks.tracker_peers import DEFAULT, Arm, Make, available, ours, serve

if TYPE_CHECKING:
    from phase3_tracking.mot_files import MotBoxes
    from phase3_tracking.mot_metrics import MatchCounts

RATES = (1, 3)  # every frame, every third
SCORES = {"HOTA": "hota", "DetA": "deta", "AssA": "assa", "MOTA": "mota", "IDF1": "idf1"}
COUNTS = {"IDSW": "id_switches", "FP": "fp", "FN": "fn"}
NEVER = 10**9


@dataclass(frozen=True)
class TimedFrames:
    """One sequence at one rate; its frames are numbered from 1 without gaps.

    Attributes:
        frames: detections (N, 6) of each frame.
        times_s: when each was taken.
        frame_rate: of the video, whatever the rate used here.
    """

    name: str
    frames: list[np.ndarray]
    times_s: list[float]
    frame_rate: float
    ground_truth: "MotBoxes"


def read(folder: Path, every: int) -> list[TimedFrames]:
    from phase3_tracking import mot_files

    found = []
    for one in mot_files.find_sequences(folder):
        detections = mot_files.read(one.detections, unique_ids=False)
        truth = mot_files.read(one.ground_truth, unique_ids=True)
        frame_rate = one.frame_rate or 30.0
        numbers = range(1, (one.frame_count or int(truth.frames.max())) + 1, every)
        truth = truth.select((truth.frames - 1) % every == 0)
        truth = mot_files.MotBoxes(
            (truth.frames - 1) // every + 1,
            truth.ids,
            truth.boxes_xyxy,
            truth.confidences,
            truth.classes,
        )
        frames = [detections.detections(number) for number in numbers]
        times = [number / frame_rate for number in numbers]
        found.append(TimedFrames(one.name, frames, times, frame_rate, truth))
    return found


def worker(name: str) -> None:
    """Tracks the frames of a request."""

    def answer(make: Make, request: dict[str, Any]) -> dict[str, Any]:
        update = make(request["frame_rate"])
        tracks = []
        for rows, when in zip(request["frames"], request["times_s"], strict=True):
            tracks.append(update(np.array(rows, float).reshape(-1, 6), when)[1].tolist())
        return {"tracks": tracks}

    serve(name, answer)


def tracked_by(arm: Arm, one: TimedFrames) -> "MotBoxes":
    frames = [frame.tolist() for frame in one.frames]
    answer = arm.ask(frames=frames, times_s=one.times_s, frame_rate=one.frame_rate)
    return as_mot([np.array(tracks).reshape(-1, 5) for tracks in answer["tracks"]])


def tracked_here(make: Make, one: TimedFrames) -> "MotBoxes":
    update = make(one.frame_rate)
    return as_mot(
        [update(rows, when)[1] for rows, when in zip(one.frames, one.times_s, strict=True)]
    )


def as_mot(tracks_per_frame: list[np.ndarray]) -> "MotBoxes":
    """Of (M, 5) boxes xyxy and ids in each frame; all of class and confidence 1."""
    from phase3_tracking import mot_files

    rows = [np.empty((0, 8))]
    for number, tracks in enumerate(tracks_per_frame, start=1):
        one = np.ones(len(tracks))
        corner, width_height = tracks[:, :2], tracks[:, 2:4] - tracks[:, :2]
        rows.append(np.column_stack([number * one, tracks[:, 4], corner, width_height, one, one]))
    return mot_files.from_rows(np.concatenate(rows))


def count(one: TimedFrames, tracks: "MotBoxes") -> "MatchCounts":
    from phase3_tracking.mot_metrics import count_matches, without_distractors

    return count_matches(*without_distractors(one.ground_truth, tracks))


def summary(counts: "dict[str, MatchCounts]") -> dict[str, Any]:
    """Scores of all sequences together and of each."""
    from phase3_tracking.mot_metrics import scores, sum_counts

    return {
        **scores(sum_counts(counts.values())),
        "sequences": [{"name": name, **scores(one)} for name, one in counts.items()],
    }


# --- the parts of our default -------------------------------------------------------------------


def ablations() -> dict[str, tuple[Make, list[Any]]]:
    """What is taken away -> how the tracker is made, and what is patched meanwhile."""
    from phase3_tracking.trackers import cmcsort_tracker
    from phase3_tracking.trackers.cmcsort_tracker import CMCSORTTracker

    def with_options(**options: Any) -> Make:
        # given every detection, as all the arms are
        options = {"low_confidence": -math.inf, **options}
        return _make(lambda rate: CMCSORTTracker(frame_rate=rate, **options))

    def without(owner: Any, **values: Any) -> tuple[Make, list[Any]]:
        return with_options(), [mock.patch.object(owner, name, v) for name, v in values.items()]

    return {
        "nothing": (with_options(), []),
        "camera motion": without(cmcsort_tracker, MIN_CAMERA_PAIRS=NEVER),
        "memory of 2 s (1 s instead)": without(cmcsort_tracker, MAX_AGE_S=1.0),
        "steady velocity (ByteTrack's)": without(CMCSORTTracker, velocity_noise=1 / 160),
        "coasting": (with_options(coast_s=0.0), []),
        "weak detections": (with_options(weak_iou_threshold=2.0), []),
        "weighting by confidence": without(cmcsort_tracker, LEAST_WEIGHT=1.0),
        "lower weight of unconfirmed": without(cmcsort_tracker, UNCONFIRMED_WEIGHT=1.0),
        "confirmation": (with_options(min_hits=1), []),
        "start confidence": (with_options(start_confidence=0.5), []),
        "time in seconds": (
            _make(lambda rate: CMCSORTTracker(max_age=60, low_confidence=-math.inf), by_time=False),
            [],
        ),
    }


def _make(build: Callable[[float], Any], by_time: bool = True) -> Make:
    def make(frame_rate: float) -> Callable[[np.ndarray, float], tuple[float, np.ndarray]]:
        tracker = build(frame_rate)
        return lambda rows, when: (0.0, tracker.update(rows, when if by_time else None)[:, :5])

    return make


def ablation(sequences: list[TimedFrames]) -> list[dict[str, Any]]:
    from phase3_tracking.mot_metrics import scores, sum_counts

    rows, whole = [], None
    for name, (make, patches) in ablations().items():
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            counts = {one.name: count(one, tracked_here(make, one)) for one in sequences}
        subsets = [[v for k, v in counts.items() if k != left] for left in counts]
        hota = [scores(sum_counts(subset))["hota"] for subset in subsets]
        whole = whole or hota
        loss = [before - after for before, after in zip(whole, hota, strict=True)]
        rows.append({"without": name, **summary(counts), "smallest_loss_of_hota": min(loss)})
    return rows


# --- the report -----------------------------------------------------------------------------


def quality(folder: Path, peers: Sequence[str], only: str) -> dict[str, Any]:
    from common.cli import log
    from phase3_tracking.trackers.track_smoothing import smooth

    rows = []
    arms = available(__file__, peers, only)
    with ExitStack() as stack:
        for arm in arms.values():
            stack.enter_context(arm)
        for every in RATES:
            sequences = read(folder, every)
            for name, arm in arms.items():
                counts = {one.name: count(one, tracked_by(arm, one)) for one in sequences}
                rows.append({"name": name, "every": every, **summary(counts)})
            log.info("one frame in %d done", every)
    sequences = read(folder, 1)
    make = ours(DEFAULT)
    counts = {
        one.name: count(one, smooth(tracked_here(make, one), one.frame_rate)) for one in sequences
    }
    rows.append({"name": f"ours {DEFAULT} + smooth", "every": 1, **summary(counts)})
    return {
        "versions": {name: arm.versions for name, arm in arms.items()},
        "rows": rows,
        "ablation": ablation(sequences),
    }


def table(result: dict[str, Any]) -> str:
    heading = "".join(f"{name:>8}" for name in [*SCORES, *COUNTS])
    lines = []
    for every in RATES:
        lines.append(f"one frame in {every}".ljust(34) + heading)
        for row in result["rows"]:
            if row["every"] == every:
                lines.append(row["name"].ljust(34) + _cells(row))
    lines.append(f"ours {DEFAULT} without".ljust(34) + heading + "   least loss")
    for row in result["ablation"]:
        least = 100 * row["smallest_loss_of_hota"]
        lines.append(row["without"].ljust(34) + _cells(row) + f"{least:13.2f}")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> str:
    return "".join(f"{100 * row[key]:8.2f}" for key in SCORES.values()) + "".join(
        f"{row[key]:8d}" for key in COUNTS.values()
    )


def build_parser() -> argparse.ArgumentParser:
    from common import cli, paths

    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of MOTChallenge sequences")
    parser.add_argument(
        "--peers", action="append", default=[], help="a Python with peers installed; repeatable"
    )
    parser.add_argument("--only", default="", help="parts of names of trackers, comma separated")
    cli.add_common_arguments(
        parser, output=paths.METRICS / "tracker_quality.json", output_help="report to write"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["--worker"]:  # before anything of the project is needed
        worker(arguments[1])
        return 0
    from common import artifacts, cli
    from common.cli import log

    args = build_parser().parse_args(arguments)

    def run() -> None:
        result = quality(args.data, args.peers, args.only)
        report = {**artifacts.provenance("tracker_quality", "cpu", []), **result}
        artifacts.write_json(args.output, report)
        log.info(table(result))
        cli.finished([args.output], "python -m common.report")

    return cli.run(run, args)


if __name__ == "__main__":
    sys.exit(main())
