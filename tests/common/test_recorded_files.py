"""Whether the files beside a report are its own."""

import pytest

from common import recorded_files
from common.artifacts import sha256


@pytest.fixture
def report(tmp_path):
    """Of a.mp4 and a.csv, which lie in the folder."""
    for name, content in (("a.mp4", b"video"), ("a.csv", b"")):
        (tmp_path / name).write_bytes(content)
    return {"files": recorded_files.record([tmp_path / "a.mp4", tmp_path / "a.csv"])}


def test_the_record(report, tmp_path):
    digest = sha256(tmp_path / "a.mp4")
    assert report["files"]["a.mp4"] == {"bytes": 5, "sha256": digest}
    assert list(report["files"]) == ["a.mp4", "a.csv"]
    assert recorded_files.others(report, tmp_path) == []
    assert recorded_files.own(report, tmp_path) == [tmp_path / "a.mp4", tmp_path / "a.csv"]


def test_only_files_that_are_wanted_are_read(report, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(recorded_files, "sha256", lambda path: read.append(path) or sha256(path))
    found = recorded_files.own(report, tmp_path, lambda path: path.suffix == ".csv")
    assert found == read == [tmp_path / "a.csv"]


@pytest.mark.parametrize("content", [b"other", b"longer than that", None])
def test_another_file_or_none_is_told(report, tmp_path, content):
    """The first has the size of the file it replaces."""
    (tmp_path / "a.mp4").unlink()
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    assert recorded_files.others(report, tmp_path) == ["a.mp4"]
    assert recorded_files.own(report, tmp_path) == [tmp_path / "a.csv"]


def test_a_file_is_known_by_its_content(report, tmp_path):
    (tmp_path / "a.mp4").rename(tmp_path / "b.mp4")
    assert recorded_files.tells_of(report, tmp_path / "b.mp4")
    (tmp_path / "b.mp4").write_bytes(b"other")
    for name in ("a.mp4", "b.mp4"):
        assert not recorded_files.tells_of(report, tmp_path / name)
        assert recorded_files.tells_of({}, tmp_path / name)


@pytest.mark.parametrize(
    "edited", [{}, {"files": None}, {"files": ["a.mp4"]}, {"files": {"../a": {}, "b": 1}}]
)
def test_a_report_without_a_record_contradicts_nothing(report, tmp_path, edited):
    assert recorded_files.others(edited, tmp_path) == []
    assert recorded_files.own(edited, tmp_path) == []
