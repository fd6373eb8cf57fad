"""Several inputs, one after the other: what each one writes, which are done, and which failed."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common import artifacts, environment, paths, recorded_files
from common.addresses import without_secrets
from common.cli import Terminated, UserError, finished, log
from phase3_tracking.detection_log import log_file
from phase3_tracking.results import output_files, run_report
from phase3_tracking.results.staging import Staging

if TYPE_CHECKING:
    from phase3_tracking.run_options import OutputOptions, RunOptions
    from phase3_tracking.video_detector import VideoDetector


@dataclass(frozen=True)
class Job:
    """One input.

    Attributes:
        text: as it was given, or found in a folder.
        output_path: NAME.mp4.
        files: what will be written.
        may_replace: older results, whatever they are of.
        repeats: may replace older results of the same input.
    """

    text: str
    output_path: Path
    files: tuple[Path, ...]
    may_replace: bool
    repeats: bool

    @property
    def is_done(self) -> bool:
        """Whether a run over this input has come to its end, and what it made is there."""
        report = self.output_path.with_suffix(".json")
        if not output_files.is_result_of(report, self.text):
            return False
        content = artifacts.read_json(report)
        is_whole = not recorded_files.others(content, report.parent)
        return content.get("complete") is True and is_whole

    def check(self, inputs: Sequence[Path]) -> None:
        """Raises UserError when its files may not be written, or another run writes them."""
        with Staging(self.output_path):
            may = self.may_replace
            if not may and self.repeats:
                may = output_files.is_result_of(self.files[-1], self.text)
            output_files.check_may_write(self.output_path, self.files, inputs, replace=may)


def plan_jobs(
    texts: Sequence[str],
    output: Path | None,
    outputs: "OutputOptions",
    made_of: Path,
    *,
    may_replace: bool,
) -> list[Job]:
    """The inputs with their outputs, after it was checked that these may be written, and that no
    other run does.

    Args:
        output: as given; None stands for names after the inputs, and a result of the same input may
            then be replaced.
        made_of: the model or the detections.

    Raises:
        UserError: naming the file that may not be written.
    """
    inputs = output_files.input_files(texts, [made_of])
    jobs = []
    for text, path in zip(texts, output_files.output_paths(texts, output), strict=True):
        files = tuple(output_files.result_files(path, outputs))
        job = Job(text, path, files, may_replace=may_replace, repeats=output is None)
        job.check(inputs)
        jobs.append(job)
    return jobs


def run_jobs(
    detector: "VideoDetector",
    jobs: Sequence[Job],
    options: "RunOptions",
    made_of: Path,
    *,
    strict: bool,
) -> tuple[list[Job], bool]:
    """Tracks every input; one that fails does not keep the others from their turn.

    Of several that are resumed, those that are done stay as they are, and those that never began
    begin. Each failure is told in a line on stderr. A window that is closed ends them all.

    Args:
        strict: a video that is cut short is a failure.

    Returns:
        The jobs that left results, and whether another one failed.

    Raises:
        UserError: the only one failed.
    """
    succeeded: list[Job] = []
    failed = False
    for job in jobs:
        is_closed = False
        try:
            with _stop_is_told(job, succeeded):
                its_options = _options_of(job, jobs, options)
                is_closed = _run(detector, job, its_options, made_of, strict=strict)
        except UserError as error:
            if len(jobs) == 1:
                raise
            sys.stderr.write(f"error: {error}\n")
            failed = True
        else:
            succeeded.append(job)
        if is_closed:
            _tell_resume(job)
            break
    return succeeded, failed


def _options_of(job: Job, jobs: Sequence[Job], options: "RunOptions") -> "RunOptions | None":
    """None when there is nothing left to do."""
    if not options.resumes or len(jobs) == 1 or log_file(job.output_path).exists():
        return options
    return None if job.is_done else replace(options, resumes=False)


def _run(
    detector: "VideoDetector",
    job: Job,
    options: "RunOptions | None",
    made_of: Path,
    *,
    strict: bool,
) -> bool:
    """Tracks one input; True when its window was closed before the end."""
    if options is None:
        log.info("%s is done already", paths.display(job.text))
        return False
    job.check([])  # others may have come there since all were planned
    report = detector.process_video(job.text, job.output_path, options, inputs=[made_of])
    if strict and report["truncated"]:
        name, what = without_secrets(job.text), run_report.cut_short(report)
        raise UserError(name, what, "replace it, or leave out --strict")
    return not report["complete"]  # a signal is an exception


@contextmanager
def _stop_is_told(job: Job, succeeded: Sequence[Job]) -> Iterator[None]:
    """After a signal, lists what is saved, and says how to go on, where detections were kept for
    that."""
    before = _report_time_ns(job)
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        # one that comes before there is a frame leaves nothing, or what was there before
        saved = [*succeeded, *([job] if _report_time_ns(job) != before else [])]
        kept = [path for path in [log_file(job.output_path)] if path.exists()]
        finished([*(file for one in saved for file in one.files), *kept], None)
        _tell_resume(job)
        raise


def _report_time_ns(job: Job) -> int | None:
    """When its report was written; None while there is none."""
    report = job.output_path.with_suffix(".json")
    return report.stat().st_mtime_ns if report.is_file() else None


def _tell_resume(job: Job) -> None:
    if log_file(job.output_path).exists():
        command = environment.command_line(without=("--overwrite", "--resume"))
        log.warning("Go on with: %s --resume", command)
