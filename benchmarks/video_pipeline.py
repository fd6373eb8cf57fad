"""The video pipeline against a frame-by-frame loop, and against the limit its own stages set.

    python benchmarks/video_pipeline.py                                        # the demo
    python benchmarks/video_pipeline.py --input street.mp4 --max-frames 200 --rounds 7

`loop` does one thing after the other, as most scripts do: OpenCV decodes a frame, the stock model
detects in FP32, an IoU tracker, boxes and labels, OpenCV writes mp4v. `ours` is
`VideoDetector.process_video` with its defaults, whose H.264 costs more than mp4v but plays in a
browser. Both run the same checkpoint and take turns; a second `loop` in every round shows the
noise. Every stage of ours also runs alone, over all frames. The limit of a pipeline is its slowest
stage, and on a CPU also the processor time of all stages divided by the cores.
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/video_pipeline.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import log
from common.comparison import interval_text

if TYPE_CHECKING:
    import numpy as np

    from common.models import LoadedModel

ROUNDS, MAX_FRAMES, CONFIDENCE = 5, 150, 0.5
LOOP, LOOP_AGAIN, OURS = "loop", "loop (again)", "ours"
STAGES = ("decode", "detect", "track", "draw", "encode")


class Arms:
    """Everything that is timed, as functions without arguments; each goes through the video once.

    Attributes:
        frames: of the video, uint8 BGR; detections, tracks: of each frame, by our pipeline's parts.
    """

    def __init__(self, loaded: "LoadedModel", video: Path, max_frames: int, folder: Path):
        from phase3_tracking.inputs.source_options import SourceOptions
        from phase3_tracking.inputs.sources import open_source
        from phase3_tracking.video_detector import VideoDetector

        self.video, self.max_frames, self.folder = video, max_frames, folder
        self.options = SourceOptions(max_frames=max_frames)
        self._stock = copy.deepcopy(loaded)
        self.detector: VideoDetector = VideoDetector(loaded, CONFIDENCE)
        with open_source(video, self.options) as source:
            read = list(source)
            self.fps = source.fps
        self.frames: list[np.ndarray] = [frame.image_bgr for frame in read]
        self.times = [frame.time_s for frame in read]
        self.detections = self.detect()
        self.tracks = self.track()
        self.drawn = self.draw()

    def functions(self) -> dict[str, Callable[[], Any]]:
        stages = {stage: getattr(self, stage) for stage in STAGES}
        return {LOOP: self.loop, OURS: self.ours, LOOP_AGAIN: self.loop, **stages}

    def loop(self) -> None:
        import cv2
        import numpy as np

        from common.models import stock_predictor
        from phase3_tracking.object_tracker import IOUTracker

        model = self._stock.model
        predict = stock_predictor(model, next(model.parameters()).device)
        tracker, capture, writer = IOUTracker(), cv2.VideoCapture(str(self.video)), None
        for _ in range(self.max_frames):
            there_is_one, frame = capture.read()
            if not there_is_one:
                break
            (found,) = predict([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)])
            rows = np.column_stack([found.boxes_xyxy, found.scores, found.labels])
            for x1, y1, x2, y2, track_id, label, score in tracker.update(
                rows[found.scores >= CONFIDENCE]
            ):
                corner = (int(x1), int(y1))
                cv2.rectangle(frame, corner, (int(x2), int(y2)), (0, 200, 0), 2)
                text = f"ID:{int(track_id)} {self._stock.class_names[int(label) - 1]} {score:.2f}"
                cv2.putText(frame, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 200, 0), 1)
            if writer is None:
                fourcc = cv2.VideoWriter.fourcc(*"mp4v")
                size = (frame.shape[1], frame.shape[0])
                file = str(self.folder / "loop.mp4")
                writer = cv2.VideoWriter(file, fourcc, float(self.fps), size)
            writer.write(frame)
        capture.release()
        if writer is not None:
            writer.release()

    def ours(self) -> None:
        from phase3_tracking.run_options import RunOptions

        self.detector.process_video(self.video, self.folder / "ours.mp4", RunOptions(self.options))

    # --- the stages of ours, alone -------------------------------------------------------------

    def decode(self) -> None:
        from phase3_tracking.inputs.sources import open_source

        with open_source(self.video, self.options) as source:
            for _ in source:
                pass

    def detect(self) -> "list[np.ndarray]":
        from phase3_tracking.pipeline import DetectionWorkers

        one = self.detector
        batches = [
            self.frames[start : start + one.batch_size]
            for start in range(0, len(self.frames), one.batch_size)
        ]
        with DetectionWorkers(one.detect_frames, one.workers, one.device) as workers:
            return [found for _, batch in workers.map(batches) for found in batch]

    def track(self) -> "list[np.ndarray]":
        tracker = self.detector.new_tracker(float(self.fps))
        return [
            tracker.update(found, float(time_s))
            for found, time_s in zip(self.detections, self.times, strict=True)
        ]

    def draw(self) -> "list[np.ndarray]":
        from phase3_tracking.results.drawing import TrackDrawer

        drawer = TrackDrawer(self.detector.class_names, self.frames[0].shape[0], float(self.fps))
        drawn = [frame.copy() for frame in self.frames]
        for number, (frame, tracks) in enumerate(zip(drawn, self.tracks, strict=True), 1):
            drawer.draw(frame, tracks, f"frame {number}/{len(drawn)}")
        return drawn

    def encode(self) -> None:
        from common.video import VideoWriter

        height, width = self.frames[0].shape[:2]
        with VideoWriter(self.folder / "stage.mp4", width, height, self.fps) as writer:
            for frame, time_s in zip(self.drawn, self.times, strict=True):
                writer.write(frame, time_s)


def measure(
    functions: dict[str, Callable[[], Any]], rounds: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Wall and processor seconds of every function in every round, in a new order each time."""
    import numpy as np

    order = np.random.default_rng(seed)
    seconds: dict[str, dict[str, Any]] = {name: {"wall": [], "cpu": []} for name in functions}
    for number in range(rounds + 1):  # the first round warms up
        for name in order.permutation(list(functions)).tolist():
            wall, cpu = time.perf_counter(), time.process_time()
            functions[name]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                seconds[name]["wall"].append(wall)
                seconds[name]["cpu"].append(cpu)
        log.info("round %d of %d", number, rounds)
    return {name: {k: np.array(v) for k, v in one.items()} for name, one in seconds.items()}


def report(seconds: dict[str, dict[str, Any]], frames: int, is_cpu: bool) -> dict[str, Any]:
    """Milliseconds a frame, the limit, and the comparisons."""
    import numpy as np

    from common.comparison import compare

    cores = environment.usable_cores()
    wall = {name: one["wall"] / frames * 1e3 for name, one in seconds.items()}
    slowest = np.max([wall[stage] for stage in STAGES], axis=0)
    cpu = np.sum([seconds[stage]["cpu"] for stage in STAGES], axis=0) / frames * 1e3
    limit = np.maximum(slowest, cpu / cores) if is_cpu else slowest
    against_loop = compare(wall[LOOP], wall[OURS], wall[LOOP_AGAIN])
    over_limit = compare(wall[OURS], limit)  # how many times as long as the limit
    return {
        "frames": frames,
        "cores": cores,
        "rounds": len(slowest),
        "ms_per_frame": {name: float(np.median(times)) for name, times in wall.items()},
        "cpu_ms_per_frame": {
            name: float(np.median(one["cpu"])) / frames * 1e3 for name, one in seconds.items()
        },
        "limit_ms_per_frame": float(np.median(limit)),
        "speedup_over_loop": {
            **against_loop.as_json(),
            "noise": against_loop.noise,
            "verdict": against_loop.verdict,
        },
        "times_the_limit": over_limit.as_json(),
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':14}{'ms/frame':>10}{'CPU ms':>10}"]
    for name, ms in result["ms_per_frame"].items():
        lines.append(f"{name:14}{ms:10.2f}{result['cpu_ms_per_frame'][name]:10.2f}")
    lines.append(f"{'limit':14}{result['limit_ms_per_frame']:10.2f}")
    for key, text in (
        ("speedup_over_loop", "times as fast as the loop"),
        ("times_the_limit", "times as long as the limit"),
    ):
        lines.append(f"{interval_text(result[key]['ratio'], result[key]['ci95'])} {text}")
    return "\n".join(lines)


def benchmark(
    model_path: Path | None, video: Path, device: str, max_frames: int, rounds: int,
    seed: int, output: Path,
) -> None:  # fmt: skip
    from common.models import load_model

    chosen = environment.select_device(device)
    log.info(environment.summary_line(str(chosen)))
    loaded = load_model(model_path, chosen)
    with tempfile.TemporaryDirectory() as folder:
        arms = Arms(loaded, video, max_frames, Path(folder))
        functions = {name: _quiet(function) for name, function in arms.functions().items()}
        seconds = measure(functions, rounds, seed)
    result = {
        **artifacts.provenance("video_pipeline_benchmark", str(chosen), [loaded.path, video]),
        "workers": arms.detector.workers,
        "batch_size": arms.detector.batch_size,
        **report(seconds, len(arms.frames), chosen.type == "cpu"),
    }
    artifacts.write_json(output, result)
    log.info(table(result))
    cli.finished([output], "python -m common.report")


def _quiet(function: Callable[[], Any]) -> Callable[[], Any]:
    """process_video tells its outcome every time."""

    def call() -> None:
        level = log.level
        log.setLevel("ERROR")
        try:
            function()
        finally:
            log.setLevel(level)

    return call


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=Path, help="checkpoint (default: the best model)")
    parser.add_argument("--input", type=Path, default=paths.DEMO_VIDEO, help="video")
    parser.add_argument("--max-frames", type=cli.positive_int, default=MAX_FRAMES, help="of it")
    parser.add_argument("--rounds", type=cli.positive_int, default=ROUNDS, help="after a warm-up")
    cli.add_common_arguments(
        parser,
        output=paths.METRICS / "video_pipeline_benchmark.json",
        output_help="report to write",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: benchmark(
            args.model_path, args.input, args.device, args.max_frames, args.rounds,
            args.seed, args.output,
        ),
        args,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
