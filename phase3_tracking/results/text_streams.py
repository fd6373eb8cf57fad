"""Several text files that grow together and appear together, or not at all."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from common.artifacts import atomic_path
from common.cli import UserError

Place = Callable[[Path], AbstractContextManager[Path]]


class TextStreams:
    """Context manager with an open text file for each of `paths`.

        with TextStreams([path_a, path_b]) as streams:
            streams.append(0, "a line of the first\\n")

    The files appear under their names when the block ends: only after all of them are on the disk.
    If the block raises, or the disk is full, none appears and older files stay. Text is UTF-8 with
    Unix line ends and goes to temporary files in the same folder, so memory stays flat.

    Args:
        place: gives the path to write to for one of `paths`; see `Staging.file` for another.

    Raises:
        UserError: a file cannot be written; names it.
    """

    def __init__(self, paths: Sequence[Path], place: Place = atomic_path):
        self._place = place
        self._paths = [Path(path) for path in paths]
        self._files: list[tuple[Path, TextIO]] = []  # with the temporary path of each

    def __enter__(self) -> "TextStreams":
        for path in filter(Path.is_dir, self._paths):  # renaming would tell only at the end
            raise UserError(path, "is a folder", "choose another --output")
        with contextlib.ExitStack() as stack:
            for path in self._paths:
                temporary = stack.enter_context(self._place(path))
                file = open(
                    temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n"
                )
                self._files.append((temporary, file))
                stack.callback(_abandon, file)
            self._stack = stack.pop_all()
        return self

    def append(self, index: int, text: str) -> None:
        """Appends to the file of `paths[index]`."""
        temporary, file = self._files[index]
        with named(temporary):
            file.write(text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            for temporary, file in self._files:
                with named(temporary):
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()


@contextlib.contextmanager
def named(temporary: Path) -> Iterator[None]:
    """Lets an error of the disk say which file it is about; its place makes it a UserError."""
    try:
        yield
    except OSError as error:
        error.filename = str(temporary)
        raise


def _abandon(file: TextIO) -> None:
    """Closes a file that may hold text the disk has no room for."""
    with contextlib.suppress(OSError):
        file.close()
