"""The lock keeps others out while its process lives, and nobody afterwards."""

import contextlib
import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common import paths
from common.file_lock import InUseError, locked

HOLD = """
import sys
from pathlib import Path
from common.file_lock import locked
with locked(Path(sys.argv[1])) as is_locked:
    print(is_locked, flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that has the lock until its stdin is closed."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        cwd=paths.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "True\n"
    return child


def test_another_process_is_kept_out_and_told_whom_to_wait_for(tmp_path):
    path = tmp_path / "new" / "lock"
    child = holder(path)
    with pytest.raises(InUseError, match=f"^{child.pid}$"), locked(path):
        pass
    assert path.exists()
    child.communicate()
    assert not path.exists()
    with locked(path) as is_locked:
        assert is_locked


def test_a_killed_process_keeps_nobody_out(tmp_path):
    path = tmp_path / "lock"
    child = holder(path)
    child.kill()
    child.communicate()
    assert path.exists()
    with locked(path) as is_locked:
        assert is_locked
    assert not path.exists()


def test_a_second_lock_in_the_same_process_is_refused_and_the_first_holds(tmp_path):
    path = tmp_path / "lock"
    with locked(path):
        for _ in range(2):
            with pytest.raises(InUseError), locked(path):
                pass
        assert path.exists()
    with locked(path):
        pass


def test_one_at_a_time_whoever_makes_and_removes_the_folder(tmp_path):
    """Threads that take turns; each finds the file or folder made or removed between its steps."""
    path, inside, seen, turns = tmp_path / "a" / "lock", [], [], []

    def work():
        while len(turns) < 200:
            try:
                with locked(path):
                    inside.append(1)
                    seen.append(len(inside))
                    inside.pop()
                    turns.append(1)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()
            except InUseError:
                pass

    with ThreadPoolExecutor() as pool:
        for worker in [pool.submit(work) for _ in range(4)]:
            worker.result()
    assert set(seen) == {1}
    assert not path.exists()


def test_a_disk_without_locks_is_told(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("msvcrt.locking" if sys.platform == "win32" else "fcntl.lockf", unsupported)
    with locked(tmp_path / "lock") as is_locked:
        assert not is_locked


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "lock"):
        pass
