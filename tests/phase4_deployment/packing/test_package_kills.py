"""Packages whose making is killed: at random moments, and between any two moves."""

import json
import os
import random
import signal
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest

from common import artifacts
from phase4_deployment.package.file_check import INFO, file_findings
from phase4_deployment.packing.package_files import (
    ABANDONED_S,
    archive_path,
    list_files,
    package_folder,
    write_archive,
)
from tests.child_processes import CONTEXT
from tests.long_runs import count, times

MINE = ("results/a.csv", "z.txt", "common/mine.txt")
SIZE = 2 << 20


def build(target: Path, version: int) -> None:
    """A package of some files that are all of this version."""
    with package_folder(target) as folder:
        for name in ("detect.py", "model.onnx", "common/cli.py"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(str(version), encoding="utf-8")
        (folder / "model.pth").write_bytes(bytes([version % 256]) * SIZE)
        info = {"version": version, "files": list_files(folder)}
        artifacts.write_json(folder / INFO, info)
        write_archive(folder, target.name)


def version_of(target: Path) -> int:
    """Of a package that verifies, and of its archive."""
    unlisted = [f"{name}: is not part of the package – move it elsewhere" for name in MINE]
    assert set(file_findings(target)) <= set(unlisted)
    with zipfile.ZipFile(archive_path(target)) as archive:
        assert archive.testzip() is None
        packed = json.loads(archive.read(f"{target.name}/{INFO}"))
    assert packed == artifacts.read_json(target / INFO)
    return packed["version"]


@pytest.fixture
def older(tmp_path) -> Path:
    """A package of version 1, and what a person keeps in its folder."""
    target = tmp_path / "deployment"
    build(target, 1)
    for name in MINE:
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text("mine", encoding="utf-8")
    return target


def assert_nothing_is_lost(target: Path) -> None:
    assert all((target / name).read_text(encoding="utf-8") == "mine" for name in MINE)


def stop_in_the_midst(target: Path) -> None:
    """A further attempt that comes to nothing: what was killed before it is mended first."""
    with pytest.raises(KeyboardInterrupt), package_folder(target):
        raise KeyboardInterrupt


def kill_at_replacement(target: Path, number: int) -> None:
    """In a child process: it is killed in the place of the n-th move, from 0."""
    original, left = os.replace, number

    def replace(source, place, **more):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(source, place, **more)

    os.replace = replace
    build(target, 2)


def test_killed_between_any_two_moves_nothing_is_lost(older):
    """In place of each move: the older package comes back, or the new one is whole."""
    versions, number = [], 0
    while True:
        child = CONTEXT.Process(target=kill_at_replacement, args=(older, number))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        stop_in_the_midst(older)
        assert_nothing_is_lost(older)
        versions.append(version_of(older))
        for left in older.parent.glob(".tmp-*"):
            assert not (left / "old").exists()
        number += 1
    assert set(versions) == {1, 2}
    assert len(versions) >= 5
    assert_nothing_is_lost(older)
    assert version_of(older) == 2


def test_rubbish_of_killed_processes_goes_in_time(older):
    rubbish, recent = (older.with_name(f".tmp-deployment-{name}") for name in ("a", "b"))
    for folder in (rubbish, recent):
        (folder / "new").mkdir(parents=True)
        (folder / "new" / "model.pth").touch()
    long_ago = time.time() - ABANDONED_S - 1
    for path in (rubbish / "new" / "model.pth", rubbish / "new", rubbish):
        os.utime(path, (long_ago, long_ago))
    stop_in_the_midst(older)
    assert (rubbish.exists(), recent.exists()) == (False, True)


def build_forever(target: Path, first: int, built) -> None:
    version = first
    while True:
        build(target, version)
        built.value = version
        version += 1


@pytest.mark.slow
@pytest.mark.long
def test_killed_at_any_moment_what_was_built_verifies(older):
    """Each child goes on with what the killed one left."""
    built, chance, kills = CONTEXT.RawValue("i", 1), random.Random(3), times(3, 50)
    for _ in range(kills):
        first = built.value + 1
        child = CONTEXT.Process(target=build_forever, args=(older, first, built))
        child.start()
        while built.value < first and child.is_alive():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.2))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        count("kills")
        stop_in_the_midst(older)
        assert version_of(older) in (built.value, built.value + 1)
        assert_nothing_is_lost(older)
    clean = partial(older.parent.glob, ".tmp-*")
    assert len(list(clean())) <= kills  # none of them has an older package in it
    assert not any((left / "old").exists() for left in clean())
