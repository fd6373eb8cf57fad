"""Which videos a fleet is of, and where the results of each go.

    videos = read_videos(["clips/", "more/*.mp4", "list.txt", "list.csv"], Path("results"))

A list is a text file with a path on each line (`#` begins a comment), or a CSV file with the column
`input`, and `name` where results shall not be called after their inputs. Paths in a list are
relative to its folder.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from common.addresses import ADDRESS, without_secrets
from common.cli import UserError

TEXT_LIST, CSV_LIST = ".txt", ".csv"
INPUT_COLUMN, NAME_COLUMN = "input", "name"
SUFFIX = "_tracked.mp4"  # as video_detector.py calls its results


@dataclass(frozen=True)
class Video:
    """One video of a fleet.

    Attributes:
        text: a file or a folder of pictures, as it was given or found.
        name: of the result in the output folder: `street_tracked.mp4`, `north/street_tracked.mp4`.
        output_path: the same below the output folder.
    """

    text: str
    name: str
    output_path: Path

    @property
    def report_path(self) -> Path:
        return self.output_path.with_suffix(".json")

    def input_facts(self) -> list[int] | None:
        """Size and time of change (ns) of the input, which tell whether it is another one now; None
        where it is gone."""
        try:
            found = Path(self.text).stat()
        except (OSError, ValueError):  # a NUL byte is a ValueError
            return None
        return [found.st_size, found.st_mtime_ns]


def read_videos(texts: Sequence[str], output: Path) -> list[Video]:
    """The videos in files, folders, patterns and lists, each once, in the order given.

    Args:
        output: the folder of all results.

    Raises:
        UserError: something is missing or no list, an input is live, two results would have one
            name, or results would lie among the inputs.
    """
    videos: dict[tuple[str, str], Video] = {}
    for text in texts:
        for path, name in _entries(text):
            result = f"{name}{SUFFIX}"
            videos[path, result] = Video(path, result, output / result)
    _check_names(list(videos.values()))
    _check_places(list(videos.values()))
    return list(videos.values())


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Path and name of the result, of each video that `text` stands for."""
    from phase3_tracking.inputs.sources import check_exists, expand_inputs, output_stem

    _refuse_live(text)
    if Path(text).suffix.lower() in (TEXT_LIST, CSV_LIST) and Path(text).is_file():
        for path, name in _of_list(Path(text)):
            yield path, _checked(name, text) if name else output_stem(path)
        return
    for path in expand_inputs([text]):
        check_exists(path)
        yield path, output_stem(path)


def _refuse_live(text: str) -> None:
    if ADDRESS.match(text) or (text.isascii() and text.isdecimal()):
        what, remedy = "is no file or folder", "track it with video_detector.py"
        raise UserError(without_secrets(text), what, remedy)


def _of_list(path: Path) -> list[tuple[str, str]]:
    """(path, name or nothing) of each entry."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check the path") from None
    lines = text.splitlines()
    if path.suffix.lower() == CSV_LIST:
        entries = _of_csv(path, lines)
    else:
        stripped = (line.strip() for line in lines)
        entries = [(line, "") for line in stripped if line and not line.startswith("#")]
    if not entries:
        raise UserError(path, "names no video", "write a path on each line")
    for entry, _ in entries:
        _refuse_live(entry)
    return [(str(path.parent / entry), name) for entry, name in entries]


def _of_csv(path: Path, lines: Sequence[str]) -> list[tuple[str, str]]:
    try:
        rows = list(csv.DictReader(lines))
    except csv.Error as error:
        raise UserError(path, f"no CSV ({error})", "save it again as CSV") from None
    columns = list(rows[0]) if rows else []
    if rows and INPUT_COLUMN not in columns:
        what = f"has no column {INPUT_COLUMN} (but {', '.join(map(str, columns))})"
        raise UserError(path, what, f"begin it with the line: {INPUT_COLUMN},{NAME_COLUMN}")
    cells = [((row[INPUT_COLUMN] or "").strip(), row.get(NAME_COLUMN) or "") for row in rows]
    return [(entry, name.strip()) for entry, name in cells if entry]


def _checked(name: str, list_path: str) -> str:
    """A name that stays in the output folder; it may hold folders of its own."""
    parts = PurePosixPath(name).parts
    is_inside = not name.startswith("/") and ".." not in parts and parts
    if not is_inside or "\\" in name or not name.isprintable():
        remedy = "give a name such as street or north/street"
        raise UserError(list_path, f"{name!r} is no name for a result", remedy)
    return "/".join(parts)


def _check_names(videos: Sequence[Video]) -> None:
    """No two results have one name, also where the disk makes no difference of case."""
    taken: dict[str, Video] = {}
    for video in videos:
        other = taken.setdefault(video.name.casefold(), video)
        if other is not video:
            what = f"would be the result of {other.text} and of {video.text}"
            columns = f"{INPUT_COLUMN},{NAME_COLUMN}"
            remedy = f"give each another name in a CSV list with the columns {columns}"
            raise UserError(video.output_path, what, remedy)


def _check_places(videos: Sequence[Video]) -> None:
    """No result comes where inputs lie: the next run over that folder would take it for one."""
    inputs = {place for video in videos for place in _places(Path(video.text))}
    for folder in dict.fromkeys(video.output_path.parent for video in videos):
        if folder.resolve() in inputs:
            raise UserError(folder, "holds inputs", "choose another --output")


def _places(path: Path) -> list[Path]:
    """Where an input lies: beside others, or, of pictures, the folder that it is."""
    if "\0" in str(path):
        return []
    place = path.resolve()
    return [place.parent, place] if place.is_dir() else [place.parent]
