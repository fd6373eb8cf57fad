"""What a fleet has done: fleet.jsonl in the output folder.

The first line tells the settings, every other one of a video: planned, done or failed; the last one
about a video counts. A line is added, and on the disk, as soon as a video is finished, so a fleet
that is killed loses nothing. A line of which only a part came to the disk is left out.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from common import artifacts, recorded_files
from common.artifacts import told_as
from common.cli import UserError
from phase3_tracking.fleet.plan import Video

FILE = "fleet.jsonl"
SCHEMA = "video_fleet_manifest/1"
PLANNED, DONE, FAILED = "planned", "done", "failed"

Row = dict[str, Any]


class FleetManifest:
    """Context manager over fleet.jsonl of one run.

    Args:
        folder: of all results.
        settings: option -> text, of all that results depend on.
        overwrite: forget what is done.

    Raises:
        UserError: the file is damaged, or of a fleet with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str], *, overwrite: bool):
        self.path = folder / FILE
        self._settings = dict(settings)
        self._rows: dict[str, Row] = {}
        self._file: TextIO | None = None
        if self.path.exists() and not overwrite:
            self._read()

    def row(self, video: Video) -> Row:
        """What is known of a video; empty of one that is new."""
        return self._rows.get(video.name, {})

    def still_holds(self, video: Video) -> bool:
        """Whether a video is done, of the input there is now, and all its results are as they were
        written, to the last byte. Reads them all."""
        row, report = self.row(video), video.report_path
        facts = video.input_facts()
        if row.get("state") != DONE or (facts is not None and facts != row.get("input_facts")):
            return False  # an input that was put away after its time has not changed
        if not report.is_file() or artifacts.sha256(report) != row.get("report_sha256"):
            return False
        return not recorded_files.others(artifacts.read_json(report), report.parent)

    def plan(self, videos: Sequence[Video]) -> None:
        """Notes these videos as to be done, before any begins; what is known of others stays."""
        for video in videos:
            self._rows[video.name] = {"name": video.name, "input": video.text, "state": PLANNED}
        lines = [{"schema": SCHEMA, "settings": self._settings}, *self._rows.values()]
        artifacts.write_text(self.path, "".join(map(_line, lines)))

    def __enter__(self) -> "FleetManifest":
        with told_as(self.path, self.path):
            self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace")
        return self

    def record(self, video: Video, row: Mapping[str, Any]) -> None:
        """A video is done or has failed; on the disk when this returns.

        Raises:
            UserError: the disk is full.
        """
        assert self._file is not None
        full = {"name": video.name, "input": video.text, **row}
        self._rows[video.name] = full
        with told_as(self.path, self.path):
            self._file.write(_line(full))
            self._file.flush()
            os.fsync(self._file.fileno())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError):
            lines = []
        head, *rows = [_parsed(line) for line in lines] or [None]
        if head is None or head.get("schema") != SCHEMA:
            remedy = "choose another --output, or begin anew with --overwrite"
            raise UserError(self.path, "is damaged or of another kind", remedy)
        self._refuse_other(head.get("settings"))
        for row in rows:
            if row is not None and isinstance(row.get("name"), str):
                self._rows[row["name"]] = row

    def _refuse_other(self, settings: Any) -> None:
        known = settings if isinstance(settings, dict) else {}
        names = [name for name, value in self._settings.items() if known.get(name) != value]
        if names:
            what = f"is of a fleet with another {', another '.join(names)}"
            remedy = "repeat its options, choose another --output, or begin anew with --overwrite"
            raise UserError(self.path, what, remedy)


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"


def _parsed(line: str) -> Row | None:
    """A line; None for a part of one."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
