"""Staging: files that take their places together, what a dead run leaves, and one run at a time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import paths
from common.cli import UserError
from phase3_tracking.results import staging as staging_module
from phase3_tracking.results.staging import Staging

NAMES = ("out.mp4", "out.csv", "out.json")


def write(staging: Staging, content: str) -> list[Path]:
    """Stages NAMES, the report as the last."""
    files = [staging.output_path.with_name(name) for name in NAMES]
    for path in files:
        with staging.file(path) as staged:
            staged.write_text(f"{content} {path.name}")
    return files


def found(folder: Path) -> dict[str, str]:
    """Contents of what lies there, without their own names: `{"out.csv": "new"}`."""
    return {
        path.name: path.read_text().removesuffix(f" {path.name}")
        for path in folder.iterdir()
        if path.is_file()
    }


def publish(folder: Path, content: str, *replaced: str) -> None:
    with Staging(folder / "out.mp4") as staging:
        staging.publish(write(staging, content), [folder / name for name in replaced])


def test_files_appear_when_they_are_published_and_not_before(tmp_path):
    with Staging(tmp_path / "a" / "out.mp4") as staging:
        files = write(staging, "new")
        assert found(tmp_path / "a") == {}
        staging.publish(files)
        assert found(tmp_path / "a") == dict.fromkeys(NAMES, "new")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(NAMES)


def test_without_publishing_nothing_is_left_not_even_a_folder(tmp_path):
    with Staging(tmp_path / "a" / "b" / "out.mp4") as staging:
        write(staging, "new")
    assert list(tmp_path.iterdir()) == []


def test_older_files_are_replaced_and_others_removed_on_demand(tmp_path):
    publish(tmp_path, "old")
    (tmp_path / "out.events.csv").write_text("old out.events.csv")
    (tmp_path / "mine.csv").write_text("mine mine.csv")
    publish(tmp_path, "new", "out.events.csv")
    assert found(tmp_path) == dict.fromkeys(NAMES, "new") | {"mine.csv": "mine"}


class Killed(BaseException):
    """In the place of SIGKILL: nothing that follows has an effect."""


class DiesAfter:
    """os.replace that works so many times, and then not at all."""

    def __init__(self, moves: int):
        self.left = moves

    def __call__(self, source, target):
        self.left -= 1
        if self.left < 0:
            raise Killed
        os.rename(source, target)


MOVES = 4 + 3  # three old files and one that is replaced, then three new ones


@pytest.mark.parametrize("moves", range(MOVES))
def test_whenever_it_dies_a_report_lies_beside_its_own_files_only(tmp_path, monkeypatch, moves):
    folder, dead = tmp_path / "out", tmp_path / "dead"
    publish(folder, "old")
    (folder / "out.events.csv").write_text("old out.events.csv")
    monkeypatch.setattr(staging_module.os, "replace", DiesAfter(moves))
    # what is on the disk at the moment of death
    monkeypatch.setattr(staging_module, "_move_back", lambda *_: snapshot())

    def snapshot():
        if not dead.exists():
            shutil.copytree(folder, dead)

    with pytest.raises(Killed):
        publish(folder, "new", "out.events.csv")
    left = found(dead)
    assert len(set(left.values())) <= 1  # never old and new ones together
    if "out.json" in left:
        assert set(left) >= set(NAMES)
    monkeypatch.undo()
    with Staging(dead / "out.mp4"):
        pass
    if moves < MOVES:  # all was whole, so the next run lets it come to its end
        assert {name: found(dead)[name] for name in NAMES} == dict.fromkeys(NAMES, "new")
    assert not list(dead.glob(".*"))


def test_what_could_not_be_moved_back_is_not_lost(tmp_path, monkeypatch):
    """The next run puts it where it was, as the report in place tells of it."""
    publish(tmp_path, "old")
    before, calls = found(tmp_path), iter(range(99))

    def replace(source, target):
        if next(calls) >= 2:  # two of the older files have moved away by then
            raise PermissionError(13, "Permission denied", str(source))
        os.rename(source, target)

    monkeypatch.setattr(staging_module.os, "replace", replace)
    with pytest.raises(UserError, match="cannot be replaced"):
        publish(tmp_path, "new")
    assert found(tmp_path) != before
    monkeypatch.undo()
    with Staging(tmp_path / "out.mp4"):
        assert found(tmp_path) == before
    assert found(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moves", range(MOVES))
def test_what_cannot_take_its_place_leaves_all_as_it_was(tmp_path, monkeypatch, moves):
    publish(tmp_path, "old")
    (tmp_path / "out.events.csv").write_text("old out.events.csv")
    before = found(tmp_path)
    calls = iter(range(99))

    def replace(source, target):
        if next(calls) == moves:  # as on Windows while a player has the video open
            raise PermissionError(13, "Permission denied", str(source))
        os.rename(source, target)

    monkeypatch.setattr(staging_module.os, "replace", replace)
    with pytest.raises(UserError, match=r"out\.\w+(\.csv)?: cannot be replaced \(Permission"):
        publish(tmp_path, "new", "out.events.csv")
    assert found(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_has_come_into_a_place_is_not_moved(tmp_path):
    with Staging(tmp_path / "out.mp4") as staging:
        files = write(staging, "new")
        (tmp_path / "out.csv").mkdir()
        (tmp_path / "out.csv" / "mine").touch()
        with pytest.raises(UserError, match=r"out\.csv: is a folder"):
            staging.publish(files)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv" / "mine").exists()


# --- one run at a time --------------------------------------------------------------------------

RUN = """
import sys
from pathlib import Path
from phase3_tracking.results.staging import Staging
with Staging(Path(sys.argv[1])) as staging, staging.file(Path("out.csv")) as path:
    path.write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process with a run to out.mp4."""
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "out.mp4")],
        cwd=paths.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    yield child
    child.kill()
    child.communicate()


def test_the_second_run_is_refused_and_the_first_keeps_its_files(tmp_path, other):
    before = sorted(tmp_path.rglob("*"))
    for name in ("out.mp4", "out.MP4"):  # both would write out.csv
        with pytest.raises(UserError) as caught, Staging(tmp_path / name):
            pass
        assert str(caught.value) == (
            f"{tmp_path / name}: in use by another run (process {other.pid}) – "
            "wait for its end, or choose another --output"
        )
    assert sorted(tmp_path.rglob("*")) == before
    with Staging(tmp_path / "out.take2.mp4"), Staging(tmp_path / "other.mp4"):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_run_left_is_removed_by_the_next_one_only(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / ".out.run" / "out.csv").read_text() == "half"
    publish(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    assert found(tmp_path) == dict.fromkeys(NAMES, "new")


def test_without_locks_the_files_of_a_run_that_may_be_alive_stay(tmp_path, monkeypatch, caplog):
    (tmp_path / ".out.run").mkdir()
    (tmp_path / ".out.run" / "out.csv").write_text("half")

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("msvcrt.locking" if sys.platform == "win32" else "fcntl.lockf", unsupported)
    with Staging(tmp_path / "out.mp4"):
        assert (tmp_path / ".out.run" / "out.csv").read_text() == "half"
    assert "start no other run to it" in caplog.text


@pytest.mark.parametrize("name", ["file", "file/inner"])
def test_a_file_in_the_folder_s_place_is_one_line(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"out\.mp4: cannot be written \("):
        Staging(tmp_path / name / "out.mp4").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_errors_name_the_file_that_was_to_be(tmp_path):
    with Staging(tmp_path / "out.mp4") as staging:

        def full():
            with staging.file(tmp_path / "out.csv"):
                raise OSError(28, "No space left on device")

        with pytest.raises(UserError) as caught:
            full()
    expected = "cannot be written (No space left on device) – free some space there"
    assert str(caught.value) == f"{tmp_path / 'out.csv'}: {expected}"
    assert list(tmp_path.iterdir()) == []
