"""Which files a run over videos writes, and whether it may."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common import artifacts, paths, recorded_files
from common.cli import UserError
from common.video import partial_path
from phase3_tracking.counting.counting import CountingOptions, picture_files
from phase3_tracking.detection_log import log_file
from phase3_tracking.results.track_writers import track_files

if TYPE_CHECKING:
    from phase3_tracking.run_options import OutputOptions


def result_files(output_path: Path, options: "OutputOptions") -> list[Path]:
    """NAME.mp4 unless there is no video, the tracks as text, pictures, and NAME.json at the end.

    Raises:
        UserError: `output_path` does not end in .mp4.
    """
    if output_path.suffix.lower() != ".mp4":
        raise UserError(output_path, "the result is an .mp4 file", "let --output end in .mp4")
    counting = options.counting
    return [
        *([output_path] if options.video else []),
        *track_files(output_path, with_events=counting.has_regions),
        *picture_files(output_path, counting),
        output_path.with_suffix(".json"),
    ]


def output_paths(texts: Sequence[str], output: Path | None) -> list[Path]:
    """NAME.mp4 for each input: `output` itself, or names of the inputs in the folder `output`.

    Raises:
        UserError: one .mp4 for several inputs.
    """
    from phase3_tracking.inputs.sources import output_stem

    if output is not None and output.suffix.lower() == ".mp4":
        if len(texts) > 1:
            what = f"is one video, but there are {len(texts)} inputs"
            raise UserError(output, what, "give a folder with --output")
        return [output]
    if output is not None and len(texts) == 1 and output.suffix:
        return [output]  # another kind of file, which is refused by name
    stems = [output_stem(text) for text in texts]
    names = [
        f"{stem}_tracked_{earlier + 1}"
        if (earlier := stems[:position].count(stem))
        else f"{stem}_tracked"
        for position, stem in enumerate(stems)
    ]
    return [(output or paths.VIDEOS) / f"{name}.mp4" for name in names]


def input_files(texts: Sequence[str], further: Sequence[Path]) -> list[Path]:
    """Every file that a run over these inputs reads, and those that tell of them.

    Args:
        further: models or detections.
    """
    from phase3_tracking.inputs.image_folder import pictures_in

    files = [*map(Path, (text for text in texts if "\0" not in text)), *further]
    for path in list(files):
        if path.is_dir():
            files += pictures_in(path)
    return [*files, *map(artifacts.sidecar, further)]


def check_may_write(
    output_path: Path, saved: Sequence[Path], inputs: Sequence[Path], *, replace: bool
) -> None:
    """Refuses to replace an input, also through a link, a folder, an older result, or what a run
    that was stopped has detected.

    Args:
        output_path: NAME.mp4, beside which there are files while the run goes on.
        saved: what the run leaves.
        replace: older results may be replaced.

    Raises:
        UserError: naming the file.
    """
    read = {_identity(path) for path in inputs if path.exists()}
    try:
        there = list(
            filter(Path.exists, [*saved, partial_path(output_path), log_file(output_path)])
        )
    except OSError as error:  # a name that is too long
        what = f"cannot be written ({error.strerror})"
        raise UserError(output_path, what, "choose another --output") from None
    for path in there:
        if path.is_dir():
            raise UserError(path, "is a folder", "choose another --output")
        if _identity(path) in read:
            raise UserError(path, "is also an input", "choose another --output")
    for path in filter(Path.exists, () if replace else saved):
        ways = "add --overwrite"
        if log_file(output_path).exists():
            ways += ", or --resume to go on with it"
        raise UserError(path, "exists already", f"choose another --output or {ways}")
    if not replace and log_file(output_path).exists():
        remedy = "go on with it by --resume, or begin anew with --overwrite"
        raise UserError(log_file(output_path), "is of a run that was stopped", remedy)


def files_replaced(output_path: Path, files: Sequence[Path], inputs: Sequence[Path]) -> list[Path]:
    """What a new run does not make, but the run that it replaces did, and nobody has changed since.

    Beside the new tracks the video of an older run would be taken for theirs.

    Args:
        output_path: NAME.mp4.
        files: what the new run makes.
        inputs: are never among those returned.
    """
    report_path = output_path.with_suffix(".json")
    if not report_path.is_file():
        return []
    try:
        report = artifacts.read_json(report_path)
    except UserError:  # whatever it is, it tells of no files
        return []
    spared = {_identity(path) for path in [*files, *inputs] if path.exists()}
    return recorded_files.own(
        report,
        output_path.parent,
        lambda path: path.exists() and _identity(path) not in spared,
    )


def strange_files(output_path: Path, files: Sequence[Path], inputs: Sequence[Path]) -> list[Path]:
    """What lies where another run to NAME.mp4 would have put it, but is not of this run.

    Args: as for `files_replaced`.
    """
    spared = {_identity(path) for path in [*files, *inputs] if path.exists()}
    possible = [
        output_path,
        *track_files(output_path, with_events=True),
        *picture_files(output_path, CountingOptions()),
    ]
    return [path for path in possible if path.exists() and _identity(path) not in spared]


def _identity(path: Path) -> tuple[int, int]:
    """Equal for all names of a file."""
    found = path.stat()
    return found.st_dev, found.st_ino


def is_result_of(report_path: Path, text: str) -> bool:
    """Whether an earlier run on the same file or folder left this report; what a camera shows is
    never the same again."""
    if not report_path.is_file() or not Path(text).exists():
        return False
    video = artifacts.read_json(report_path).get("video")
    return isinstance(video, dict) and video.get("name") == paths.display(Path(text))
