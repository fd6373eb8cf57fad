"""An exclusive lock on a file that the system releases however the process ends.

    with locked(Path("out.lock")) as is_locked:
        ...

The file itself keeps nobody out: left behind by a process that was killed, it is taken over by the
next one. It holds the number of the process that has it.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# What a system answers when somebody else has the lock.
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
# Windows locks bytes, and nobody else may read these then: one far behind the process number.
LOCKED_BYTE = 1 << 20
ATTEMPTS = 1000  # with so many it is not another process that is in the way


class InUseError(Exception):
    """Somebody else has the lock; the text is the number of that process, or `unknown`."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds the lock on `path`, and removes the file at the end.

    The folder is made where it is missing, and removed at the end if it is empty by then. A second
    lock by the same process is refused like that of another one.

    Yields:
        False where the disk has no locks, as some network disks: nobody is kept out then.

    Raises:
        InUseError: somebody else has it.
        OSError: the file cannot be made or written.
    """
    file, is_locked = _open_locked(path)
    try:
        yield is_locked
    finally:
        if sys.platform == "win32":
            file.close()  # an open file cannot be removed there
        with contextlib.suppress(OSError):
            path.unlink()  # locked until then, so it is nobody else's
        file.close()
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _open_locked(path: Path) -> tuple[FileIO, bool]:
    attempts = ATTEMPTS
    while True:
        attempts -= 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(path, "a+")
        except (FileNotFoundError, FileExistsError):  # its last owner has just removed the folder
            if attempts <= 0:
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


def _lock(file: FileIO) -> bool:
    try:
        if sys.platform == "win32":
            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            # Unlike a lock by lockf, this one also keeps out another thread of the same process.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
