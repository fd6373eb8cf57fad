"""The files that a report tells of, by size and sha256: so a reader can tell them from others.

A report and the files beside it take their places one after the other, and a person may replace or
remove any of them later. `others` says which of those that lie there are not the report's own.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from common.artifacts import sha256

KEY = "files"  # of a report, with what `record` returns


def record(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Name -> size in bytes and sha256, of files that are whole."""
    return {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}


def own(
    report: Mapping[str, Any], folder: Path, wanted: Callable[[Path], bool] = Path.exists
) -> list[Path]:
    """The files in the folder of a report that are those it tells of, to the last byte.

    Args:
        wanted: asked of a path before its file is read.
    """
    told = ((folder / name, facts) for name, facts in _recorded(report))
    return [path for path, facts in told if wanted(path) and _is(path, facts)]


def others(report: Mapping[str, Any], folder: Path) -> list[str]:
    """Names of files that the report tells of, where there is another one now, or none.

    A report without a record, of an older version, is not in contradiction with anything.
    """
    return [name for name, facts in _recorded(report) if not _is(folder / name, facts)]


def tells_of(report: Mapping[str, Any], file: Path) -> bool:
    """Whether a file is one of the report's, under whatever name; without a record it may be."""
    recorded = _recorded(report)
    return not recorded or any(_is(file, facts) for _, facts in recorded)


def _recorded(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Names without a folder and their facts, of what may be a file that a person has edited."""
    recorded = report.get(KEY)
    if not isinstance(recorded, Mapping):
        return []
    return [
        (name, facts)
        for name, facts in recorded.items()
        if isinstance(name, str) and Path(name).name == name and isinstance(facts, Mapping)
    ]


def _is(file: Path, facts: Mapping[str, Any]) -> bool:
    """Compares sizes first: reading a video takes a while."""
    if not file.is_file() or file.stat().st_size != facts.get("bytes"):
        return False
    return sha256(file) == facts.get("sha256")
