"""The archive: equal bytes for equal files, complete, and in place together with the folder."""

import errno
import json
import os
import re
import shlex
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common import artifacts
from common.cli import UserError
from phase4_deployment.package.file_check import INFO, file_findings
from phase4_deployment.packing.package_files import (
    NotMovedBackError,
    archive_path,
    package_folder,
    write_archive,
)
from tests.phase4_deployment.packages import build_package
from tests.random_detectors import random_scene

LISTED = '{"files": {"a/z.py": {}, "a.txt": {}, "b.txt": {}}}'


def write_tree(folder: Path, order: int = 1) -> Path:
    for name in ["b.txt", "a/z.py", "a.txt", "package_info.json"][::order]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    (folder / INFO).write_text(LISTED, encoding="utf-8")
    return folder


def test_equal_files_give_equal_bytes(tmp_path):
    first = write_tree(tmp_path / "1" / "new")
    second = write_tree(tmp_path / "2" / "another name", order=-1)
    os.utime(second / "a.txt", (0, 0))
    (second / "b.txt").chmod(0o600)
    (second / "empty").mkdir()
    archives = [write_archive(folder, "deployment") for folder in (first, second)]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    (second / "b.txt").write_text("{ }", encoding="utf-8")
    assert write_archive(second, "deployment").read_bytes() != archives[0].read_bytes()


def test_an_archive_holds_every_file_below_one_folder(tmp_path):
    with zipfile.ZipFile(write_archive(write_tree(tmp_path / "new"), "deployment")) as archive:
        assert archive.namelist() == [
            f"deployment/{name}" for name in ("a/z.py", "a.txt", "b.txt", "package_info.json")
        ]
        assert archive.testzip() is None
        assert {info.external_attr >> 16 for info in archive.infolist()} == {0o100644}


def test_folder_and_archive_take_their_places_together(tmp_path):
    target = tmp_path / "deployment"
    for text in ("first", "second"):
        with package_folder(target) as folder:
            write_tree(folder)
            (folder / "b.txt").write_text(text, encoding="utf-8")
            write_archive(folder, "deployment")
        assert (target / "b.txt").read_text(encoding="utf-8") == text
        with zipfile.ZipFile(archive_path(target)) as archive:
            assert archive.read("deployment/b.txt").decode() == text
        assert sorted(path.name for path in tmp_path.iterdir()) == ["deployment", "deployment.zip"]


@pytest.mark.fault("P4-17")
def test_a_failure_leaves_the_older_two(tmp_path):
    target = tmp_path / "deployment"
    with package_folder(target) as folder:
        write_archive(write_tree(folder), "deployment")
    before = archive_path(target).read_bytes()

    def fail():
        with package_folder(target) as folder:
            (write_tree(folder) / "b.txt").write_text("new", encoding="utf-8")
            write_archive(folder, "deployment")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert archive_path(target).read_bytes() == before
    assert (target / "b.txt").read_text(encoding="utf-8") == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deployment", "deployment.zip"]


@pytest.fixture
def older(tmp_path) -> Path:
    """A package with its archive, and what a person keeps in its folder."""
    target = tmp_path / "deployment"
    with package_folder(target) as folder:
        write_archive(write_tree(folder), "deployment")
    for name in ("results/a.csv", "results/b.mp4", "z.txt", "a/mine.txt", "a/__pycache__/z.pyc"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(f"my {name}", encoding="utf-8")
    return target


def build_newer(target: Path, at_the_end: Callable[[], None] = lambda: None) -> None:
    """Calls `at_the_end` before anything takes its place."""
    with package_folder(target) as folder:
        (write_tree(folder) / "b.txt").write_text("new", encoding="utf-8")
        write_archive(folder, "deployment")
        at_the_end()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def deny(monkeypatch, *names: str) -> None:
    """os.replace and os.rename refuse what would come to lie at these names, once each, in turn."""
    left = list(names)

    def refusing(original):
        def move(source, place, **more):
            if left and Path(place).name == left[0]:
                del left[0]
                raise PermissionError(1, "Operation not permitted", source, None, place)
            return original(source, place, **more)

        return move

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def test_what_a_person_keeps_in_the_folder_moves_over(older, tmp_path):
    before = contents(older)
    build_newer(older)
    after = contents(older)
    mine = {name for name in before if before[name].startswith(b"my")} - {"a/__pycache__/z.pyc"}
    assert after == {
        **{"a/z.py": b"{}", "a.txt": b"{}", "b.txt": b"new", INFO: LISTED.encode()},
        **{name: before[name] for name in mine},
    }
    assert len(mine) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deployment", "deployment.zip"]


@pytest.mark.parametrize(
    "place", ["deployment.zip", "results", "z.txt", "mine.txt", "old", "deployment"]
)
def test_a_move_that_fails_loses_nothing(older, tmp_path, monkeypatch, place):
    """deployment.zip open on Windows, somebody's file on a disk that refuses, …"""
    before = contents(tmp_path)
    assert len(before) == 10
    with monkeypatch.context() as patch, pytest.raises(UserError, match="Operation not permitted"):
        build_newer(older, lambda: deny(patch, place))
    assert contents(tmp_path) == before
    build_newer(older)
    assert (older / "b.txt").read_text(encoding="utf-8") == "new"


def test_ctrl_c_between_two_moves_loses_nothing(older, tmp_path, monkeypatch):
    before = contents(tmp_path)
    original = os.replace

    def interrupted(source, place):
        original(source, place)
        if Path(place).name == "old":
            monkeypatch.undo()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_newer(older, lambda: monkeypatch.setattr(os, "replace", interrupted))
    assert contents(tmp_path) == before


def test_what_cannot_be_moved_back_is_left_where_the_message_says(older, tmp_path, monkeypatch):
    kept = {content for content in contents(tmp_path).values() if content.startswith(b"my")}
    told = r"\.tmp-deployment-.*could not be moved back \(results\)"
    with pytest.raises(NotMovedBackError, match=told):
        build_newer(older, lambda: deny(monkeypatch, "deployment.zip", "results"))
    assert kept <= set(contents(tmp_path).values())


def test_somebodys_file_is_not_replaced_by_one_of_the_new_package(older, tmp_path):
    before = contents(tmp_path)
    with (
        pytest.raises(UserError, match=r"z\.txt: is no file of the older package"),
        package_folder(older) as folder,
    ):
        (folder / "z.txt").touch()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("files", [{"../mine.txt": {}}, {"/mine.txt": {}}, ["a.txt"], 3])
def test_p4_49_a_list_with_names_outside_of_the_folder_costs_nobody_a_file(older, tmp_path, files):
    """It would make files beside the package some of it, which move when it is replaced."""
    (tmp_path / "mine.txt").write_text("years", encoding="utf-8")
    (older / INFO).write_text(json.dumps({"files": files}), encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"package_info\.json: is damaged"):
        build_newer(older)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["../package_info.json", "/package_info.json", "a/package.json"])
def test_p4_49_an_archive_is_looked_at_and_never_unpacked(tmp_path, name):
    """200 MB of zeros in an archive of somebody else cost neither memory nor the archive."""
    path = archive_path(tmp_path / "deployment")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, "{}")
        with archive.open("a/zeros", "w", force_zip64=True) as bomb:
            for _ in range(200):
                bomb.write(bytes(1 << 20))
    before = path.read_bytes()
    assert len(before) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"deployment\.zip: is in the way and no package"):
            build_newer(tmp_path / "deployment")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert contents(tmp_path) == {"deployment.zip": before}


def test_p4_17_a_full_disk_leaves_the_older_package(older, tmp_path):
    def fill() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.pth", None, "new/model.pth")

    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"deployment: cannot be written \(No space left"):
        build_newer(older, fill)
    assert contents(tmp_path) == before


def test_p4_17_where_nothing_may_be_written_nothing_is_begun(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .* choose another --output-dir"):
        build_newer(tmp_path / "file" / "deployment")


@pytest.mark.parametrize("content", [b"years of work", None])
def test_an_archive_of_somebody_else_is_not_replaced(tmp_path, content):
    path = tmp_path / "deployment.zip"
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("thesis.tex", "years")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with (
        pytest.raises(UserError, match=r"deployment\.zip: is in the way"),
        package_folder(tmp_path / "deployment"),
    ):
        pass
    assert path.read_bytes() == before


def test_a_package_verifies_its_own_files_and_keeps_both_batch_sizes(exported, tmp_path):
    images = [random_scene(np.random.default_rng(0), 400, 700)]
    folder = tmp_path / "new"
    build_package(folder, exported, images, batch_size_within_budget=None)
    assert file_findings(folder) == []
    info = artifacts.read_json(folder / "package_info.json")
    assert info["batch_sizes"]["model.onnx"] == {"throughput": 3, "latency": None}
    assert info["batch_sizes"]["model_int8.onnx"] == {"throughput": 3, "latency": 2}
    assert info["latency_budget_ms"] == 100.0
    assert "| model.onnx | 3 | 33.0 | 120.0 | none | – | – |" in (folder / "README.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("reason", [None, "no venv here"])
def test_the_readme_tells_in_which_python_the_package_was_tried(exported, tmp_path, reason):
    images = [random_scene(np.random.default_rng(0), 120, 160)]
    build_package(tmp_path / "new", exported, images, reason=reason)
    text = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert ("in a Python without PyTorch." in text) is (reason is None)
    assert ("could not be made there (no venv here)" in text) is (reason is not None)
    info = artifacts.read_json(tmp_path / "new" / INFO)
    assert info["tried_in"] == {"clean": reason is None, "reason": reason}


@pytest.mark.parametrize(
    ("names", "one_class"),
    [
        (("a\n```\nrm -rf ~", "<script>x</script>", "$(id) b"), "'<script>x</script>'"),
        (("`id`", "a\tb", "![x](javascript:y)"), "'![x](javascript:y)'"),
        (("\x1b[2J", "```", "\n"), "3"),
    ],
)
def test_hostile_class_names_are_words_in_the_readme(exported, tmp_path, names, one_class):
    """A person copies its commands into a shell: a name is one word there, or its id is."""
    hostile = SimpleNamespace(**vars(exported))
    hostile.loaded = replace(exported.loaded, class_names=names)
    build_package(tmp_path / "package", hostile, [random_scene(np.random.default_rng(0), 120, 160)])
    text = (tmp_path / "package" / "README.md").read_text(encoding="utf-8")
    (command,) = (line for line in text.splitlines() if "--classes" in line)
    assert f"--classes {one_class} --max-frames 100" in command
    assert len(shlex.split(command)) == 10
    (first,) = (line for line in text.splitlines() if ", 3 classes: " in line)
    assert "<script>" not in first
    assert "[x](" not in first.replace("\\[", "")
    assert not re.search(r"(?<!\\)```", first)


@pytest.mark.usefixtures("blind_in_the_dark")
def test_without_boxes_the_readme_does_not_promise_to_compare_any(exported, tmp_path):
    build_package(tmp_path / "new", exported, [np.zeros((64, 64, 3), np.uint8)])
    assert artifacts.read_json(tmp_path / "new" / INFO)["golden_boxes"] == 0
    text = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert "`--verify` compares files only" in text
    assert "in score." not in text


def test_every_folder_of_the_program_is_a_regular_package(package):
    listed = artifacts.read_json(package / INFO)["files"]
    folders = {path.parent for path in package.rglob("*.py")} - {package}
    assert {folder.relative_to(package).as_posix() for folder in folders} >= {
        *("common", "phase3_tracking", "phase3_tracking/live", "phase4_deployment/package")
    }
    for folder in folders | {parent for one in folders for parent in one.parents}:
        if package in folder.parents:
            marker = folder / "__init__.py"
            assert marker.read_bytes() == b""
            assert marker.relative_to(package).as_posix() in listed
