"""Tracks many videos on a Ray cluster: one video is one task, as video_detector.py would do it.

    python phase3_tracking/track_fleet.py --input clips/                     # on this machine
    python phase3_tracking/track_fleet.py --input 'clips/*.mp4' list.txt --output results/
    python phase3_tracking/track_fleet.py --input list.csv --address auto --gpus-per-task 0.25

An input is a video, a folder of videos or of pictures, a pattern, or a list: a .txt with a path on
each line, or a .csv with the column `input`, and `name` for what its results are to be called.
Paths in a list are relative to its folder.

Beside the results of each video the output folder holds fleet.jsonl, which tells what is done,
fleet.html and fleet.json. Run again, the same command does what is missing, has failed, or is not
as it was written any more. A video that fails does not keep the others from their turn; the exit
status is 2 then. SIGINT (Ctrl-C) or SIGTERM ends the run at once; what is done is kept.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase3_tracking/track_fleet.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import Terminated, UserError, log
from common.file_lock import held
from common.stop_signal import StopSignal
from phase3_tracking.backends import add_detector_arguments
from phase3_tracking.counting.counting import counting_options
from phase3_tracking.fleet import summary
from phase3_tracking.fleet.dispatch import Finished, NoNodeError, run_orders
from phase3_tracking.fleet.manifest import DONE, FAILED, FleetManifest
from phase3_tracking.fleet.plan import Video, read_videos
from phase3_tracking.fleet.progress import ProgressLine, Tally
from phase3_tracking.fleet.ray_cluster import RayCluster, check_installed
from phase3_tracking.fleet.task import Order
from phase3_tracking.inputs.source_options import source_options
from phase3_tracking.results import output_files
from phase3_tracking.run_arguments import add_run_arguments
from phase3_tracking.run_options import OutputOptions
from phase3_tracking.video_detector import add_selection_arguments

OUTPUT = paths.VIDEOS / "fleet"
CPUS, GPUS, RETRIES = 1.0, 0.0, 2
LOCK = ".fleet.lock"
READERS = 8  # results that are verified at a time
NAMED = 20  # videos that failed which are named at the end
# what results do not depend on
OF_THE_RUN = {
    *("input", "output", "overwrite", "address", "cpus_per_task", "gpus_per_task", "retries"),
    *("quiet", "debug", "seed", "model_path", "detections", "class_names"),
    *("live", "show", "latency_mode", "resume"),
}


class Fleet:
    """One run over many videos.

    Args:
        args: of `build_parser`, with the model that is taken where none was given.

    Raises:
        UserError: something the person can mend, before anything is done.
    """

    def __init__(self, args: argparse.Namespace):
        self._args, self._folder = args, args.output
        self._videos = read_videos(args.input, self._folder)
        self._settings = _settings(args)
        self._began = time.monotonic()
        self._device = "none"

    def run(self) -> int:
        """Does what is to be done; the exit status."""
        with held(self._folder / LOCK, of=self._folder):
            manifest = FleetManifest(self._folder, self._settings, overwrite=self._args.overwrite)
            videos = self._not_done(manifest)
            self._refuse_strange(manifest, videos)
            if videos:
                self._track(manifest, videos)
            cli.finished([manifest.path, *self._summarise(manifest)], None)
            return self._tell(manifest)

    def _not_done(self, manifest: FleetManifest) -> list[Video]:
        """In the order given; reads the results of all that are done."""
        with ThreadPoolExecutor(READERS) as pool:
            holds = list(pool.map(manifest.still_holds, self._videos))
        found = [video for video, is_done in zip(self._videos, holds, strict=True) if not is_done]
        done = len(self._videos) - len(found)
        log.info("%d videos, %d of them done already", len(self._videos), done)
        return found

    def _refuse_strange(self, manifest: FleetManifest, videos: Sequence[Video]) -> None:
        """Files that are there already, but not of this fleet."""
        if self._args.overwrite:
            return
        with_video = not self._args.no_video
        options = OutputOptions(counting_options(self._args, with_video=with_video), with_video)
        for video in videos:
            if not manifest.row(video):
                files = output_files.result_files(video.output_path, options)
                output_files.check_may_write(video.output_path, files, [], replace=False)

    def _track(self, manifest: FleetManifest, videos: Sequence[Video]) -> None:
        args, tally = self._args, Tally(len(videos))
        plain = argparse.Namespace(**vars(args) | {"strict": False})  # told here, and not repeated
        orders = [Order(video, plain, tuple(sys.argv), Path.cwd()) for video in videos]
        with ExitStack() as stack:
            cluster = RayCluster(args.address, args.cpus_per_task, args.gpus_per_task)
            stack.enter_context(cluster)
            log.info("Loading the detector on a worker, as soon as there is room for a task")
            self._device = cluster.try_detector(orders[0])["device"]
            log.info("%d tasks at a time, on %s", cluster.places(), self._device)
            manifest.plan(videos)  # not before: a mistake in the options leaves nothing behind
            stack.enter_context(manifest)
            stop = stack.enter_context(StopSignal())
            line = stack.enter_context(ProgressLine(tally))

            def on_tick(running: int) -> None:
                stop.raise_received()
                tally.running = running
                line.show()

            try:
                for one in run_orders(cluster, orders, args.retries, on_tick):
                    self._record(manifest, one, tally)
            except (KeyboardInterrupt, Terminated, NoNodeError):
                log.warning("Stopped: %s", tally)
                command = environment.command_line(without=("--overwrite",))
                log.warning("Go on with: %s", command)
                self._summarise(manifest)
                raise

    def _record(self, manifest: FleetManifest, one: Finished, tally: Tally) -> None:
        video, row = one.order.video, one.outcome.row
        error = one.outcome.error if row is None else self._objection(video, row)
        if error is None and row is not None:
            manifest.record(video, {"state": DONE, "attempts": one.attempts, **row})
            tally.done += 1
            tally.frames += row["frames"]
            return
        if self._args.debug:
            sys.stderr.write(one.outcome.trace)
        if error is not None and not error.startswith((video.text, paths.display(video.text))):
            error = f"{video.text}: {error}"
        manifest.record(video, {"state": FAILED, "attempts": one.attempts, "error": error})
        tally.failed += 1

    def _objection(self, video: Video, row: dict) -> str | None:
        """What is wrong with a video that its task calls done."""
        seen = video.report_path.is_file() and artifacts.sha256(video.report_path)
        if seen != row["report_sha256"]:
            what = f"written on {row['node']}, but not to be seen here"
            remedy = "let all nodes share the disk of --output"
            return str(UserError(video.report_path, what, remedy))
        if self._args.strict and row["truncated"]:
            what = f"is cut short after {row['frames']} frames"
            return str(UserError(video.text, what, "replace it, or leave out --strict"))
        return None

    def _summarise(self, manifest: FleetManifest) -> list[Path]:
        rows = [manifest.row(video) for video in self._videos]
        seconds, model = time.monotonic() - self._began, [self._args.model_path]
        content = summary.contents(rows, self._device, model, self._settings, seconds)
        return summary.write(self._folder, content)

    def _tell(self, manifest: FleetManifest) -> int:
        rows = [manifest.row(video) for video in self._videos]
        failed = [row for row in rows if row["state"] == FAILED]
        log.info("%d of %d videos are done", len(rows) - len(failed), len(rows))
        if not failed:
            return cli.EXIT_OK
        for row in failed[:NAMED]:
            sys.stderr.write(f"error: {row['error']}\n")
        more = len(failed) - NAMED
        if more > 0:
            sys.stderr.write(f"error: {more} more videos failed, see {summary.PAGE_FILE}\n")
        return cli.EXIT_USER_ERROR


def _settings(args: argparse.Namespace) -> dict[str, str]:
    """Option -> text, of all that results depend on; the model by its content."""
    chosen = {name: value for name, value in vars(args).items() if name not in OF_THE_RUN}
    options = {f"--{name.replace('_', '-')}": str(value) for name, value in chosen.items()}
    return {**options, "--model-path": artifacts.sha256(args.model_path)}


def run(args: argparse.Namespace) -> int:
    """Checks what was asked for and does the work; the exit status."""
    check_installed()
    if args.device.startswith("cuda"):
        if args.device != "cuda":
            raise UserError(f"--device {args.device}", "Ray chooses the GPU", "use --device cuda")
        if not args.gpus_per_task:
            remedy = "add --gpus-per-task 1, or less where several fit on one"
            raise UserError("--device cuda", "a task is given no GPU", remedy)
    source_options(args)  # refuses what does not fit together
    args.model_path = args.model_path or paths.BEST_MODEL
    if not args.model_path.is_file():
        remedy = "train one with: python phase1_training/train.py, or give --model-path"
        raise UserError(args.model_path, "no such file", remedy)
    try:
        return Fleet(args).run()
    finally:
        with contextlib.suppress(OSError):  # nothing has come into it
            args.output.rmdir()


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="INPUT",
        help="videos, folders, patterns, or lists (.txt, .csv)",
    )
    add_selection_arguments(parser)
    _add_fleet_arguments(parser)
    add_detector_arguments(parser, recorded=False)
    add_run_arguments(parser, attended=False)
    cli.add_common_arguments(parser, output=OUTPUT, output_help="folder of all results")
    return parser


def _add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fleet")
    group.add_argument(
        "--address",
        help="Ray cluster, as HOST:PORT or auto (default: one on this machine, for this run)",
    )
    group.add_argument(
        "--cpus-per-task",
        type=_amount,
        default=CPUS,
        help="processor cores of each video; below 1 several share one",
    )
    group.add_argument(
        "--gpus-per-task",
        type=_amount_or_none,
        default=GPUS,
        help="GPUs of each video: 0.25 lets four share one, whose memory has to suffice for them",
    )
    group.add_argument(
        "--retries",
        type=cli.non_negative_int,
        default=RETRIES,
        help="further attempts for a video that fails, after 2, 4, 8, ... seconds",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="begin anew, whatever is in the output folder"
    )


def _amount(text: str) -> float:
    """What Ray can give: a part of one, or a whole number."""
    return _whole_above_one(cli.positive_float(text), text)


def _amount_or_none(text: str) -> float:
    return _whole_above_one(cli.non_negative_float(text), text)


def _whole_above_one(value: float, text: str) -> float:
    if value > 1 and value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is above 1 and not whole")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: run(args), args)


if __name__ == "__main__":
    sys.exit(main())
