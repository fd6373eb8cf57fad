"""An exclusive lock on a file that the system releases however the process ends.

    with held(Path("outputs/models/.lock"), of=Path("outputs/models")):
        ...

The file itself keeps nobody out: left behind by a process that was killed, it is taken over by the
next one. It holds the number of the process that has it.
"""

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from common.artifacts import DISK_ERRORS
from common.cli import UserError, log

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# What a system answers when somebody else has the lock.
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
# Windows locks bytes, and nobody else may read these then: one far behind the process number.
LOCKED_BYTE = 1 << 20
ATTEMPTS = 1000  # with so many it is not another process that is in the way

_own: set[Path] = set()  # those that this process has: the system would grant it a second one
_guard = threading.Lock()


class InUseError(Exception):
    """Somebody else has the lock; the text is the number of that process, or `unknown`."""


@contextlib.contextmanager
def held(lock: Path, *, of: Path) -> Iterator[bool]:
    """`locked`, for a run that writes to `of`; a disk without locks is warned of.

    Raises:
        UserError: another run has it, or nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        try:
            is_locked = stack.enter_context(locked(lock))
        except InUseError as error:
            what = f"in use by another run (process {error})"
            remedy = "wait for its end, or choose another --output"
            raise UserError(of, what, remedy) from None
        except OSError as error:
            is_full = error.errno in DISK_ERRORS
            remedy = "free some space there" if is_full else "choose another --output"
            what = "cannot be written to" if of == lock.parent else "cannot be written"
            raise UserError(of, f"{what} ({error.strerror})", remedy) from error
        if not is_locked:
            log.warning("%s cannot be locked on this disk: start no other run to it", of)
        yield is_locked


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds the lock on `path`, and removes the file at the end.

    The folder is made where it is missing. A second lock by the same process is refused like that
    of another one. Forked processes do not inherit it: loaders may outlive a killed run by seconds.
    Nothing in this process may open the file while it is locked: closing it would release the lock.

    Yields:
        False where the disk has no locks, as some network disks: nobody is kept out then.

    Raises:
        InUseError: somebody else has it.
        OSError: the file cannot be made or written.
    """
    name = Path(os.path.realpath(path.parent), path.name)
    with _guard:
        if name in _own:
            raise InUseError(os.getpid())
        _own.add(name)
    try:
        file, is_locked = _open_locked(path)
        try:
            yield is_locked
        finally:
            if sys.platform == "win32":
                file.close()  # an open file cannot be removed there
            with contextlib.suppress(OSError):
                path.unlink()  # locked until then, so it is nobody else's
            file.close()
    finally:
        with _guard:
            _own.discard(name)


def _open_locked(path: Path) -> tuple[FileIO, bool]:
    for attempt in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(path, "a+")
        except (FileNotFoundError, FileExistsError):  # its last owner has just removed the folder
            if attempt == ATTEMPTS - 1:
                raise
            continue
        try:
            is_locked = _lock(file)
            if _is_at(file, path):
                _put_number(file)
                return file, is_locked
        except BaseException:
            file.close()
            raise
        file.close()  # its last owner has just removed it
    raise InUseError("unknown")


def _lock(file: FileIO) -> bool:
    try:
        if sys.platform == "win32":
            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in HELD:
            return False
        file.seek(0)
        raise InUseError(file.read(20).decode("ascii", "replace").strip() or "unknown") from None
    return True


def _put_number(file: FileIO) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        file.truncate(0)
        file.write(b"%d\n" % os.getpid())


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
