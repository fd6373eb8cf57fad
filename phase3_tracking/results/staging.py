"""Where the files of a run are until all of them are whole: a hidden folder beside NAME.mp4.

    with Staging(Path("out.mp4")) as staging:
        with staging.file(Path("out.csv")) as path:
            path.write_text(...)
        ...
        staging.publish([Path("out.csv"), ..., Path("out.json")])

The folder `.NAME.run` belongs to one run at a time, by a lock that ends with the process. What it
holds when a run begins is of one that was killed.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from common import recorded_files
from common.artifacts import make_durable, read_json, sync_folder, told_as
from common.cli import UserError
from common.file_lock import held

LOCK, EARLIER = "lock", "earlier"  # in the folder


class Staging:
    """Context manager over the hidden folder of the run to NAME.mp4.

    Args:
        output_path: NAME.mp4, whose folder is made where it is missing, and goes again if nothing
            is put there.

    Raises:
        UserError: another run to NAME.mp4 is going on, or nothing can be written there.
    """

    def __init__(self, output_path: Path):
        self.output_path = output_path
        self._folder = output_path.with_name(f".{output_path.stem}.run")

    def __enter__(self) -> "Staging":
        parent = self.output_path.parent
        missing = [folder for folder in (parent, *parent.parents) if not os.path.exists(folder)]
        with contextlib.ExitStack() as stack:
            stack.callback(_remove_empty, [self._folder, *missing])
            is_locked = stack.enter_context(held(self._folder / LOCK, of=self.output_path))
            stack.callback(self._clear)
            if is_locked:
                self._end_dead_run()
            self._stack = stack.pop_all()
        return self

    def _end_dead_run(self) -> None:
        """Clears the folder; but a run that died while its files took their places had all of them
        whole, so they go on to there first. Older files that could not be moved back do so now."""
        earlier = self._folder / EARLIER
        if earlier.is_dir():
            names = {path.name for path in self._folder.iterdir()} - {LOCK, EARLIER}
            report = self.output_path.with_suffix(".json").name
            for name in sorted(names, key=lambda name: name == report):
                _move(self._folder / name, self.output_path.with_name(name))
            for path in self._missing(earlier):
                _move(path, self.output_path.with_name(path.name))
            shutil.rmtree(earlier, ignore_errors=True)
        self._clear()

    def _missing(self, earlier: Path) -> list[Path]:
        """Files of `earlier` that the report in place tells of, or that no report replaced."""
        missing = [p for p in earlier.iterdir() if not self.output_path.with_name(p.name).exists()]
        report_path = self.output_path.with_suffix(".json")
        if not report_path.is_file():
            return missing
        try:
            report = read_json(report_path)
        except UserError:  # damaged: it tells of nothing
            return missing
        return [path for path in missing if recorded_files.tells_of(report, path)]

    def _clear(self) -> None:
        for path in self._folder.iterdir():
            if path.name != LOCK:
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()

    @contextlib.contextmanager
    def file(self, path: Path) -> Iterator[Path]:
        """Where to write what is to become `path`; on the disk when the block ends.

        It can be used in the place of `artifacts.atomic_path`.

        Raises:
            UserError: about `path`, when the disk is full.
        """
        staged = self._folder / path.name
        with told_as(path, staged):
            staged.touch()
            yield staged
            make_durable(staged)

    def staged(self, path: Path) -> Path:
        """Where the file that is to become `path` is now."""
        return self._folder / path.name

    def publish(self, files: Sequence[Path], replaced: Sequence[Path] = ()) -> None:
        """Lets files take their places, the last of `files`, the report, as the last.

        Everything older goes out of the way first, and of that the report first: whenever the
        process dies, a report lies beside its own files only.

        Args:
            files: each has been written to `file`.
            replaced: further files that go.

        Raises:
            UserError: a file cannot take its place; then all are as they were.
        """
        for path in filter(Path.is_dir, files):
            raise UserError(path, "is a folder", "choose another --output")
        earlier = self._folder / EARLIER
        with told_as(self.output_path, earlier):
            earlier.mkdir(exist_ok=True)
        old = [path for path in (*reversed(files), *replaced) if path.exists()]
        away = [(path, earlier / path.name) for path in old]
        in_place = [(self.staged(path), path) for path in files]
        with contextlib.ExitStack() as undo:
            for moves in (away, in_place):
                for source, target in moves:
                    undo.callback(_move_back, source, target)
                    _move(source, target)
                sync_folder(self.output_path.parent)
            undo.pop_all()
        shutil.rmtree(earlier, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _move(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        path = source if target.parent.name == EARLIER else target
        what = f"cannot be replaced ({error.strerror})"
        raise UserError(path, what, "close it where it is open, and start again") from error


def _move_back(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # it has not been moved yet
        os.replace(target, source)


def _remove_empty(folders: Sequence[Path]) -> None:
    """The folder of the run, and those that were made for nothing, the innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
