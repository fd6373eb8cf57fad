"""Which files a video run writes, and whether it may."""

import os
from collections.abc import Sequence
from pathlib import Path

from common import artifacts, paths
from common.cli import UserError


def result_files(output_path: Path, *, with_video: bool) -> list[Path]:
    """NAME.mp4 unless there is no video, NAME.mot.txt, and NAME.json, which is last.

    Raises:
        UserError: `output_path` does not end in .mp4.
    """
    if output_path.suffix.lower() != ".mp4":
        raise UserError(output_path, "the result is an .mp4 file", "let --output end in .mp4")
    video = [output_path] if with_video else []
    return [*video, output_path.with_suffix(".mot.txt"), output_path.with_suffix(".json")]


def check_may_write(saved: Sequence[Path], inputs: Sequence[Path], *, replace: bool) -> None:
    """Refuses to replace an input, also through a link, a folder, or an older result.

    Args:
        replace: older results may be replaced.

    Raises:
        UserError: naming the file.
    """
    for path in filter(Path.exists, saved):
        if path.is_dir():
            raise UserError(path, "is a folder", "choose another --output")
        if any(read.exists() and os.path.samefile(path, read) for read in inputs):
            raise UserError(path, "is also an input", "choose another --output")
        if not replace:
            raise UserError(path, "exists already", "choose another --output or add --overwrite")


def is_result_of(report_path: Path, video_path: Path) -> bool:
    """Whether an earlier run on the same video left this report."""
    if not report_path.is_file():
        return False
    return paths.display(video_path) in artifacts.read_json(report_path).get("inputs", {})
