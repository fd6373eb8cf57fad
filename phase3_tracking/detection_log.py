"""What a stopped run had detected, so that the next one need not detect it again.

Detection takes most of a run's time. While a run is going on, NAME.resume.jsonl grows by a line for
every batch of frames; when the run is complete the file goes. The next run reads, tracks, draws and
encodes from the beginning, but detects only what is not in the file; so its results are those of a
run that was never stopped.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from common.artifacts import output_errors
from common.cli import UserError

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".resume.jsonl"
SCHEMA = "video_detections/1"
REMEDY = "leave out --resume to begin anew"


class DetectionLog:
    """Context manager over NAME.resume.jsonl.

    Args:
        path: the file. An older one is replaced unless the run resumes it. None keeps nothing, for
            inputs that do not come again.
        settings: what detections depend on; kept in the file.
        resumes: begin with what is in the file.

    Raises:
        UserError: there is nothing to resume, or it was made with other settings; or the file
            cannot be written.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], *, resumes: bool):
        if path is None and resumes:
            what = "is for files, and for models that have to compute"
            raise UserError("--resume", what, "leave it out")
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self._resumes = resumes
        self._known: dict[int, np.ndarray] = {}
        self._file: TextIO | None = None

    def get(self, frames: Sequence[int]) -> "list[np.ndarray] | None":
        """Detections (N, 6) of each frame of a batch, None unless all of them are known."""
        if not all(frame in self._known for frame in frames):
            return None
        return [self._known[frame] for frame in frames]

    def add(self, frames: Sequence[int], detections: "Sequence[np.ndarray]") -> None:
        """Appends a batch, unless it is in the file."""
        if self.path is None or self._file is None or all(frame in self._known for frame in frames):
            return
        batch = {str(frame): one.tolist() for frame, one in zip(frames, detections, strict=True)}
        with output_errors(self.path):
            self._file.write(json.dumps(batch) + "\n")
            self._file.flush()

    def __enter__(self) -> "DetectionLog":
        if self.path is None:
            return self
        kept = self._read(self.path) if self._resumes else 0
        with output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+" if kept else "w", encoding="utf-8")
            if kept:
                self._file.truncate(kept)  # a line that a killed process has not finished
                self._file.seek(kept)
            else:
                self._file.write(json.dumps({"schema": SCHEMA, "settings": self._settings}) + "\n")
                self._file.flush()
        return self

    def _read(self, path: Path) -> int:
        """Fills `_known`; how many bytes of the file are whole lines."""
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            raise UserError(path, "no such file: nothing to resume", REMEDY) from None
        head = _parsed(lines[0]) if lines else None
        if (
            head is None
            or head.get("schema") != SCHEMA
            or not isinstance(head.get("settings"), dict)
        ):
            raise UserError(path, "is damaged or of another kind", REMEDY)
        self._refuse_other(path, head["settings"])
        kept = len(lines[0])
        for line in lines[1:]:
            batch = _batch(line)
            if batch is None:
                break
            self._known |= batch
            kept += len(line)
        return kept

    def _refuse_other(self, path: Path, settings: Mapping[str, Any]) -> None:
        names = [name for name, value in self._settings.items() if settings.get(name) != value]
        if names:
            what = f"is of a run with another {', another '.join(names).replace('_', ' ')}"
            raise UserError(path, what, f"repeat the options of that run, or {REMEDY}")

    def finish(self) -> None:
        """The run is complete: the file is not needed any more."""
        if self.path is None or self._file is None:
            return
        self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def log_file(output_path: Path) -> Path:
    """NAME.resume.jsonl of NAME.mp4."""
    return output_path.with_suffix(SUFFIX)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A whole line; None for a part of one."""
    if not line.endswith(b"\n"):
        return None
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _batch(line: bytes) -> "dict[int, np.ndarray] | None":
    """Frame -> detections (N, 6); None for a line that is damaged or a part of one."""
    import numpy as np

    content = _parsed(line)
    if content is None:
        return None
    try:
        batch = {int(frame): np.array(rows, float) for frame, rows in content.items()}
    except (TypeError, ValueError):
        return None
    if any(rows.shape[1:] != (6,) and rows.shape != (0,) for rows in batch.values()):
        return None
    return {frame: rows.reshape(-1, 6) for frame, rows in batch.items()}
