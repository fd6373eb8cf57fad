"""The archive: equal bytes for equal files, complete, and in place together with the folder."""

import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import artifacts
from common.cli import UserError
from common.onnx_detector import OnnxDetector
from phase4_deployment import package_files
from phase4_deployment.package.file_check import file_findings
from phase4_deployment.package_files import archive_path, package_folder, write_archive
from tests.phase4_deployment.packages import build_package
from tests.random_detectors import random_scene


def write_tree(folder: Path, order: int = 1) -> Path:
    for name in ["b.txt", "a/z.py", "a.txt", "package_info.json"][::order]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
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


def test_the_golden_image_is_the_one_with_the_most_sure_boxes(exported, tmp_path):
    scenes = [random_scene(np.random.default_rng(seed), 120, 160) for seed in range(4)]
    found = OnnxDetector(exported.onnx_path, "cpu")(scenes)
    counts = [int((one.scores >= package_files.SURE).sum()) for one in found]
    assert counts[0] < max(counts)
    (tmp_path / "model.onnx").write_bytes(exported.onnx_path.read_bytes())
    package_files.write_golden(tmp_path, scenes)
    golden = cv2.imread(str(tmp_path / "golden" / "image.png"))[..., ::-1]
    np.testing.assert_array_equal(golden, scenes[counts.index(max(counts))])
