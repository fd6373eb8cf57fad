"""Text files of the MOTChallenge: detections, tracks and ground truth, one box a line.

    frame, id, x, y, width, height, confidence, class, visibility

Frames count from 1; x and y are the top left corner in pixels. In ground truth the seventh number
is a flag: 0 marks a box that is not to be evaluated. Detections have id -1. The file may be in any
order, have any line ends and carry further columns; the last three columns may be missing. MOT15
files have world coordinates where later ones have the class: an eighth column that is not whole
numbers throughout is taken for these, and the file for one without classes.
"""

import configparser
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.cli import UserError

NO_CLASS = -1  # what MOT15 writes where it knows no class
MAX_FRAME = 10_000_000  # eleven days at 10 frames a second; larger numbers are damage
MAX_ID = 2**53  # the last whole number before a float64 skips some
LARGEST = 1e100  # of a number; an area of larger ones would not be finite
REQUIRED_COLUMNS, USED_COLUMNS = 6, 8
DEFAULTS = [1.0, float(NO_CLASS)]  # confidence and class of a row without them


@dataclass(frozen=True)
class MotBoxes:
    """The boxes of one file, sorted by frame; within a frame they keep the order of the file.

    Attributes:
        frames: (N,) int64, from 1.
        ids: (N,) int64; -1 for detections.
        boxes_xyxy: (N, 4) float64 pixels.
        confidences: (N,) float64; in ground truth 0 means "do not evaluate".
        classes: (N,) int64; -1 where the file has none.
    """

    frames: np.ndarray
    ids: np.ndarray
    boxes_xyxy: np.ndarray
    confidences: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    def select(self, rows: np.ndarray) -> "MotBoxes":
        """The boxes at a boolean mask or at ascending indices."""
        columns = (self.frames, self.ids, self.boxes_xyxy, self.confidences, self.classes)
        return MotBoxes(*(column[rows] for column in columns))

    def detections(self, frame: int) -> np.ndarray:
        """(n, 6) [x1, y1, x2, y2, confidence, class_id] of one frame, as trackers take them."""
        rows = slice(*np.searchsorted(self.frames, [frame, frame + 1]))
        return np.column_stack([self.boxes_xyxy[rows], self.confidences[rows], self.classes[rows]])


def from_rows(rows: np.ndarray) -> MotBoxes:
    """MotBoxes of an (N, 8) array [frame, id, x, y, width, height, confidence, class]."""
    rows = np.asarray(rows, np.float64).reshape(-1, USED_COLUMNS)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    boxes_xyxy = np.column_stack([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]])
    frames, ids, classes = (rows[:, column].astype(np.int64) for column in (0, 1, 7))
    return MotBoxes(frames, ids, boxes_xyxy, rows[:, 6], classes)


def read(path: Path, *, unique_ids: bool) -> MotBoxes:
    """Reads a MOTChallenge text file; an empty file holds no boxes.

    Args:
        unique_ids: whether an id may occur only once in a frame: true for tracks and ground truth,
            false for detections.

    Raises:
        UserError: naming the file and the line that cannot be used.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(path, "no such file", "check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(path, f"not text at byte {error.start}", "give a MOT text file") from None
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check the path") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = np.array([_parse(path, *entry) for entry in numbered]).reshape(-1, USED_COLUMNS)
    line_numbers = np.array([number for number, _ in numbered], np.int64)
    if (rows[:, 7] % 1).any():
        rows[:, 7] = NO_CLASS
    if unique_ids:
        _refuse_duplicates(path, rows, line_numbers)
    return from_rows(rows)


def are_confidences(scores: np.ndarray) -> bool:
    """Whether scores of a detection file lie in [0, 1] and tell boxes apart: some detectors write
    margins of any size, or -1 or 0 everywhere."""
    return bool(((scores >= 0) & (scores <= 1)).all() and scores.any())


def _parse(path: Path, number: int, line: str) -> list[float]:
    """The eight numbers of one line."""
    fields = line.split(",")[:USED_COLUMNS]
    try:
        row = [float(field) for field in fields]
    except ValueError:
        raise _bad_line(path, number, f"{line.strip()[:60]!r} is not numbers") from None
    if len(row) < REQUIRED_COLUMNS:
        raise _bad_line(path, number, f"{len(row)} columns, at least {REQUIRED_COLUMNS} needed")
    if not math.isfinite(sum(row)):
        raise _bad_line(path, number, "a value is not finite")
    if len(row) < USED_COLUMNS:
        row += DEFAULTS[len(row) - USED_COLUMNS :]
    frame, track_id, class_id = row[0], row[1], row[7]
    if not 1 <= frame <= MAX_FRAME or frame % 1:
        raise _bad_line(path, number, f"frame {frame:g} is not a whole number from 1")
    if track_id % 1 or max(abs(track_id), abs(class_id)) > MAX_ID:
        raise _bad_line(path, number, f"id {track_id:g} is not a whole number")
    if max(row) > LARGEST or min(row) < -LARGEST:
        raise _bad_line(path, number, "a value is too large")
    return row


def _bad_line(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}, line {number}", what, "mend or remove the line")


def _refuse_duplicates(path: Path, rows: np.ndarray, line_numbers: np.ndarray) -> None:
    order = np.lexsort((line_numbers, rows[:, 1], rows[:, 0]))
    repeated = np.flatnonzero((np.diff(rows[order, :2], axis=0) == 0).all(axis=1))
    if len(repeated):
        first, second = order[repeated[0]], order[repeated[0] + 1]
        frame, track_id = rows[second, :2].astype(np.int64)
        raise _bad_line(
            path,
            int(line_numbers[second]),
            f"id {track_id} occurs twice in frame {frame} (first in line {line_numbers[first]})",
        )


@dataclass(frozen=True)
class MotSequence:
    """A sequence in the MOTChallenge layout: FOLDER/det/det.txt, gt/gt.txt and seqinfo.ini.

    Attributes:
        name: from seqinfo.ini, or the folder's name.
        frame_count: from seqinfo.ini; None where there is no such file.
        frame_rate: frames per second, likewise.
    """

    name: str
    folder: Path
    frame_count: int | None
    frame_rate: float | None = None

    @property
    def detections(self) -> Path:
        return self.folder / "det" / "det.txt"

    @property
    def ground_truth(self) -> Path:
        return self.folder / "gt" / "gt.txt"


def read_sequence(folder: Path) -> MotSequence:
    """Raises UserError when seqinfo.ini is there and cannot be used."""
    info = folder / "seqinfo.ini"
    if not info.is_file():
        return MotSequence(folder.resolve().name, folder, None)
    parser = configparser.ConfigParser()
    try:
        parser.read(info, encoding="utf-8-sig")
        section = parser["Sequence"]
        name, frame_count = section.get("name", folder.name), int(section["seqLength"])
        frame_rate = float(section["frameRate"]) if "frameRate" in section else None
    except (configparser.Error, KeyError, ValueError, UnicodeDecodeError):
        remedy = "it needs a [Sequence] section with seqLength=<frames>"
        raise UserError(info, "has no usable seqLength or frameRate", remedy) from None
    if not 1 <= frame_count <= MAX_FRAME:
        raise UserError(info, f"seqLength {frame_count} is not possible", "correct it")
    if frame_rate is not None and not 0 < frame_rate < math.inf:
        raise UserError(info, f"frameRate {frame_rate} is not possible", "correct it")
    return MotSequence(name, folder, frame_count, frame_rate)


def find_sequences(path: Path) -> list[MotSequence]:
    """The sequence at `path`, or all those directly below it, by name.

    Raises:
        UserError: there is no det/det.txt at or below `path`.
    """
    is_sequence = (path / "det" / "det.txt").is_file() or not path.is_dir()
    folders = [path] if is_sequence else sorted(path.iterdir())
    found = [folder for folder in folders if (folder / "det" / "det.txt").is_file()]
    if not found:
        raise UserError(path, "holds no det/det.txt", "give a MOTChallenge folder or a det.txt")
    return [read_sequence(folder) for folder in found]
