"""Whether long runs stay as small as they were: memory and open files in the course of two.

    python benchmarks/soak.py                                        # 100,000 frames, 2,000 steps
    python benchmarks/soak.py --frames 5000 --steps 200              # a quick look

`pipeline` is a whole run of video_detector.py over a made-up video of small frames: H.264 is
decoded and encoded, objects walk, vanish and come again, and all results are written; in the place
of a network their boxes are handed out. `trainer` is train.py's own loop with a loader process, on
batches of one shape.

Resident memory and open files, of the process and its loader, are read 100 times. The first fifth
is warm-up. Through the rest goes the line of the median slope (Theil-Sen). A figure is flat when
that line rises by no more than the figure varies around it, largest minus smallest, or by less than
1 MiB or one file. Exit status 1 if one is not. Needs Linux, which tells what a process holds.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/soak.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log

if TYPE_CHECKING:
    import numpy as np

    from common.models import Detections
    from phase1_training.recipe import Recipe

FRAMES, STEPS = 100_000, 2000
SAMPLES, WARMUP_SHARE = 100, 0.2
ALLOWED = {"resident_mib": 1.0, "open_files": 1.0}  # by which a line may rise in any case
WIDTH, HEIGHT, SIDE = 64, 48, 10
PERIODS = (160, 170, 190)  # frames after which an object begins its way anew
IMAGES, BATCH_SIZE = 80, 2


# --- what a process holds ---------------------------------------------------------------------


class Samples:
    """Reads memory and open files SAMPLES times in the course of `total` frames or steps."""

    def __init__(self, total: int):
        self._every = max(1, total // SAMPLES)
        self._next = self._every
        self.rows: list[dict[str, float]] = []

    def at(self, done: int) -> None:
        """Called as often as one likes with how far the run has come."""
        if done >= self._next:
            self._next += self._every
            self.rows.append({"done": done, **held()})

    def of(self, key: str) -> "np.ndarray":
        import numpy as np

        return np.array([row[key] for row in self.rows], float)


def held() -> dict[str, float]:
    """Resident MiB and open files, of this process and its children."""
    pids = [os.getpid(), *_children()]
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return {
        "resident_mib": sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "open_files": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
    }


def _children() -> list[int]:
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid]


def trend(done: "np.ndarray", values: "np.ndarray", allowed: float) -> dict[str, Any]:
    """How much a figure grows after the warm-up, and whether that is within its noise.

    Args:
        done: (N,) frames or steps at which it was read.
        values: (N,) what was read.
        allowed: growth that is none, whatever the noise.

    Returns:
        `slope` for a frame or step, `growth` along that line from its beginning to its end, `noise`
        (largest minus smallest deviation from it), the first and last value, and `flat`.
    """
    import numpy as np

    first = int(len(values) * WARMUP_SHARE)
    done, values = done[first:], values[first:]
    earlier, later = np.triu_indices(len(done), 1)
    slope = float(np.median((values[later] - values[earlier]) / (done[later] - done[earlier])))
    growth = slope * float(done[-1] - done[0])
    noise = float(np.ptp(values - slope * done))
    return {
        "slope": slope,
        "growth": growth,
        "noise": noise,
        "first": float(values[0]),
        "last": float(values[-1]),
        "flat": growth <= max(noise, allowed),
    }


# --- the pipeline -----------------------------------------------------------------------------


def walkers(frame: int) -> "np.ndarray":
    """(n, 4) xyxy boxes of the objects in a frame; each walks for half of its period."""
    import numpy as np

    boxes = []
    for row, period in enumerate(PERIODS):
        step = frame % period
        if step < period // 2:
            left, top = step * (WIDTH - SIDE) / (period // 2), 2 + row * (SIDE + 4)
            boxes.append([left, top, left + SIDE, top + SIDE])
    return np.array(boxes, np.float32).reshape(-1, 4)


def write_stream(path: Path, frames: int) -> None:
    """An H.264 video of bright squares on a dark ground, where `walkers` are."""
    import numpy as np

    from common.video import VideoWriter

    with VideoWriter(path, WIDTH, HEIGHT, Fraction(30)) as writer:
        for number in range(frames):
            picture = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            for x1, y1, x2, y2 in walkers(number).astype(int):
                picture[y1:y2, x1:x2] = (30, 60, 220)
            writer.write(picture)


def soak_pipeline(frames: int, folder: Path) -> Samples:
    """A run over a video of so many frames, with all its results in `folder`."""
    from phase3_tracking.backends import Backend
    from phase3_tracking.video_detector import VideoDetector

    log.info("Writing a video of %d frames", frames)
    write_stream(folder / "stream.mp4", frames)
    samples = Samples(frames)

    def detect(images: "Sequence[np.ndarray]", numbers: Sequence[int]) -> "list[Detections]":
        samples.at(numbers[-1] + 1)
        return [_found(number) for number in numbers]

    log.info("pipeline: detecting, tracking, drawing and writing")
    detector = VideoDetector(Backend(detect, ("walker",), (1,)))
    report = detector.process_video(folder / "stream.mp4", folder / "tracked.mp4")
    if report["frames_written"] != frames:
        raise RuntimeError(f"{report['frames_written']} of {frames} frames were written")
    return samples


def _found(frame: int) -> "Detections":
    import numpy as np

    from common.models import Detections

    boxes = walkers(frame)
    return Detections(boxes, np.full(len(boxes), 0.9, np.float32), np.ones(len(boxes), np.int64))


# --- the trainer ------------------------------------------------------------------------------


def soak_trainer(steps: int, folder: Path, seed: int) -> Samples:
    """So many steps of the demo model on small pictures."""
    import torch

    from common import coco, models
    from phase1_training.distributed import Ranks
    from phase1_training.engine import Trainer
    from phase1_training.training_run import build_loader
    from tests.coco_data import write_shapes

    data = write_shapes(folder / "data", splits={"train": IMAGES}, seed=seed)
    split = coco.training_split(data, "train")
    device, recipe = torch.device("cpu"), _recipe(-(-steps * BATCH_SIZE // IMAGES))
    model = models.build_model("demo", len(split.class_names) + 1, min_size=WIDTH, max_size=96)
    ranks = Ranks(0, 1, device)
    loader = build_loader(split, recipe, ranks, max_size=96, seed=seed, workers=1)
    per_epoch = IMAGES // BATCH_SIZE
    trainer = Trainer(model, recipe, device, per_epoch, ranks=ranks, folder=folder)
    samples = Samples(steps)

    def batches() -> Iterator[Any]:
        for epoch in range(1, recipe.epochs + 1):
            trainer.start_epoch(epoch)
            yield from loader.epoch(epoch)

    log.info("trainer: %d steps", steps)
    with trainer.training():
        for done, batch in enumerate(batches(), 1):
            trainer.train_step(batch)
            samples.at(done)
            if done == steps:
                break
    return samples


def _recipe(epochs: int) -> "Recipe":
    """Of the demo model, in FP32, one size for all batches."""
    from phase1_training.recipe import Recipe

    return Recipe(
        epochs=epochs,
        batch_size=BATCH_SIZE,
        accumulate=1,
        optimizer="adamw",
        learning_rate=1e-3,
        momentum=0.9,
        weight_decay=0.01,
        schedule="cosine",
        step_size=3,
        gamma=0.1,
        warmup_steps=10,
        clip_norm=5.0,
        ema_decay=0.99,
        trainable_stages=None,
        patience=0,
        amp="off",
        min_sizes=(WIDTH,),
        color_jitter=0.2,
        crop_probability=0.0,
    )


# --- the report -------------------------------------------------------------------------------


def soak(frames: int, steps: int, seed: int, output: Path) -> int:
    """Runs both, writes the report and returns 1 when something is not flat."""
    if not Path("/proc/self/statm").is_file():
        raise UserError("/proc", "tells nothing here", "run it on Linux")
    environment.seed_everything(seed)
    log.info(environment.summary_line("cpu"))
    runs: dict[str, Callable[[Path], Samples]] = {
        "pipeline": lambda folder: soak_pipeline(frames, folder),
        "trainer": lambda folder: soak_trainer(steps, folder, seed),
    }
    rows, read = [], {}
    for name, run in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            samples = run(Path(folder))
        read[name] = {key: samples.of(key) for key in ("done", *ALLOWED)}
        for key, allowed in ALLOWED.items():
            measured = trend(read[name]["done"], read[name][key], allowed)
            rows.append({"run": name, "figure": key, **measured})
    report = {**artifacts.provenance("soak", "cpu"), "frames": frames, "steps": steps}
    artifacts.write_json(output, {**report, "rows": rows, "samples": read})
    log.info(table(rows))
    cli.finished([output], None)
    return 0 if all(row["flat"] for row in rows) else 1


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("run", "figure", "after warm-up", "at the end", "growth", "noise", "flat")
    lines = ["{:10}{:14}{:>14}{:>12}{:>9}{:>9}  {}".format(*head)]
    for row in rows:
        figures = (row["first"], row["last"], row["growth"], row["noise"])
        told = "{:14.1f}{:12.1f}{:9.2f}{:9.2f}".format(*figures)
        lines.append(f"{row['run']:10}{row['figure']:14}{told}  {'yes' if row['flat'] else 'NO'}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=_long_enough, default=FRAMES, help="of the pipeline")
    parser.add_argument("--steps", type=_long_enough, default=STEPS, help="of the trainer")
    cli.add_common_arguments(
        parser, output=paths.METRICS / "soak.json", output_help="report to write"
    )
    return parser


def _long_enough(text: str) -> int:
    value = cli.positive_int(text)
    if value < SAMPLES:
        raise argparse.ArgumentTypeError(f"{value} is fewer than the {SAMPLES} samples")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: soak(args.frames, args.steps, args.seed, args.output), args)


if __name__ == "__main__":
    sys.exit(main())
