"""The options of runs over videos, and what they start, for the command lines that have them."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli
from common.addresses import without_secrets
from common.cli import UserError
from phase3_tracking.counting.counting import add_counting_arguments, counting_options
from phase3_tracking.inputs.source_options import add_source_arguments, source_options
from phase3_tracking.live import live_address
from phase3_tracking.run_options import OutputOptions, RunOptions
from phase3_tracking.trackers.tracker_options import add_tracker_arguments

if TYPE_CHECKING:
    from phase3_tracking.video_detector import VideoDetector


def add_run_arguments(parser: argparse.ArgumentParser, *, attended: bool = True) -> None:
    """Adds what to write and show, which frames to read, and how to track and count.

    Args:
        attended: with what is for a person at a single run: --overwrite and --resume, --live,
            --show and --latency-mode.
    """
    group = parser.add_argument_group("run")
    group.add_argument("--no-video", action="store_true", help="write tracks and report only")
    group.add_argument(
        "--no-fps",
        action="store_true",
        help="leave the speed of the run out of the video: equal runs then write equal files",
    )
    if attended:
        _add_attended_arguments(group)
    else:
        parser.set_defaults(overwrite=False, resume=False, live=None, show=False)
    add_tracker_arguments(parser)
    add_source_arguments(parser, live=attended)
    add_counting_arguments(parser)


def _add_attended_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--overwrite", action="store_true", help="replace existing results")
    group.add_argument(
        "--resume", action="store_true", help="go on with what a stopped run has detected"
    )
    group.add_argument(
        "--live",
        type=live_address.address,
        metavar="[HOST:]PORT",
        help="show the frames in a browser as they come (HOST: 127.0.0.1, this machine only)",
    )
    group.add_argument("--show", action="store_true", help="show them in a window; q stops")


def track_inputs(
    args: argparse.Namespace,
    texts: Sequence[str],
    made_of: Path,
    load: "Callable[[], VideoDetector]",
    next_command: str | None,
) -> int:
    """Tracks every input as the options say; the exit status.

    Args:
        args: of `add_run_arguments`, --output and --strict.
        texts: the inputs.
        made_of: the model or the detections.
        load: makes the detector; called when all else has been checked.
        next_command: told at the end.

    Raises:
        UserError: something the user can mend.
    """
    from phase3_tracking.inputs.sources import check_exists
    from phase3_tracking.video_jobs import plan_jobs, run_jobs

    source, with_video = source_options(args), not args.no_video
    counting = counting_options(args, with_video=with_video)
    outputs = OutputOptions(counting, video=with_video, draws_fps=not args.no_fps)
    if args.smooth and source.latency_mode:
        raise UserError("--smooth", "needs the frames to come", "leave out --latency-mode")
    if len(texts) == 1:  # of several, the others are worked on
        check_exists(texts[0])
    may_replace = args.overwrite or args.resume
    jobs = plan_jobs(texts, args.output, outputs, made_of, may_replace=may_replace)
    detector = load()
    with ExitStack() as stack:
        outputs = _watched(args, outputs, without_secrets(texts[0]), stack)
        options = RunOptions(source, outputs, resumes=args.resume, smooths=args.smooth)
        done, failed = run_jobs(detector, jobs, options, made_of, strict=args.strict)
    cli.finished([file for job in done for file in job.files], next_command)
    return cli.EXIT_USER_ERROR if failed else cli.EXIT_OK


def _watched(
    args: argparse.Namespace, outputs: OutputOptions, title: str, stack: ExitStack
) -> OutputOptions:
    """With the live view and the window that were asked for."""
    if args.live is not None:
        from phase3_tracking.live.live_view import LiveView

        view = LiveView(args.live.host, args.live.port, title=title)
        outputs = replace(outputs, live=stack.enter_context(view))
    if args.show:
        from phase3_tracking.live.display_window import DisplayWindow

        outputs = replace(outputs, window=stack.enter_context(DisplayWindow(title)))
    return outputs
