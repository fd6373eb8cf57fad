"""common.artifacts: files are whole or absent, and loading one never runs what is inside it."""

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import artifacts, environment, paths
from common.cli import UserError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- atomic_path ------------------------------------------------------------------------------


def test_the_file_appears_whole_with_its_folder(tmp_path):
    target = tmp_path / "new" / "folder" / "a.mp4"
    with artifacts.atomic_path(target) as temporary:
        assert temporary.parent == target.parent, "a rename must stay on one disk"
        assert temporary.suffix == ".mp4"
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert names(target.parent) == ["a.mp4"]
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "failure", [ValueError("x"), KeyboardInterrupt(), UserError("a", "b", "c")]
)
def test_a_failure_leaves_the_old_file_alone(tmp_path, failure):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(failure)), artifacts.atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise failure
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_the_users_to_mend(tmp_path, code):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UserError, match=r"a\.txt: cannot be written .* free some space"):  # noqa: SIM117
        with artifacts.atomic_path(target):
            raise OSError(code, os.strerror(code))
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(errno.EPIPE, "gone"), FileNotFoundError(errno.ENOENT, "none", "/other/file")],
)
def test_an_error_of_something_else_is_not_blamed_on_the_output(tmp_path, error):
    with pytest.raises(type(error)), artifacts.atomic_path(tmp_path / "a.txt"):
        raise error
    assert names(tmp_path) == []


WRITE_WITH_LITTLE_SPACE = """
import resource, sys
from pathlib import Path
from common import artifacts
from common.cli import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    artifacts.write_json(Path(sys.argv[1]), {"numbers": list(range(10_000))})
except UserError as error:
    print(error)
"""


def test_a_real_size_limit_leaves_the_old_file_alone(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITH_LITTLE_SPACE, str(target)],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
    )
    assert "a.json: cannot be written (File too large) – free some space there" in done.stdout
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_file_in_place_of_the_folder(tmp_path, depth):
    (tmp_path / "file").write_text("")
    target = tmp_path.joinpath("file", *["sub"] * (depth - 1), "a.json")
    with pytest.raises(UserError, match="cannot be written"):
        artifacts.write_json(target, {})


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "a.json" / "kept").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written"):
        artifacts.write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("function", ["mkdir", "mkstemp"])
def test_a_folder_without_permission(tmp_path, monkeypatch, function):
    """Root may write anywhere, so the refusal itself is played."""

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/other/name")

    owner = Path if function == "mkdir" else artifacts.tempfile
    monkeypatch.setattr(owner, function, refuse)
    with pytest.raises(UserError, match=r"Permission denied.*--output"):
        artifacts.write_text(tmp_path / "sub" / "a.txt", "x")


# --- write_together ---------------------------------------------------------------------------


def put(content: str):
    return lambda path: path.write_text(content)


def write_three(folder: Path, last) -> None:
    """b, c and the report a, in this order; b and a of an earlier run are there."""
    (folder / "a.json").write_text("old")
    (folder / "b.png").write_text("old")
    writers = {folder / "b.png": put("new"), folder / "c.gz": put("new"), folder / "a.json": last}
    artifacts.write_together(writers)


def test_files_that_belong_together_appear_in_their_order_once_all_are_whole(tmp_path, monkeypatch):
    placed, replace = [], os.replace

    def last(path: Path) -> None:
        assert path.parent == tmp_path
        assert [file.read_text() for file in (tmp_path / "a.json", tmp_path / "b.png")] == [
            "old"
        ] * 2
        path.write_text("new")

    monkeypatch.setattr(
        artifacts.os, "replace", lambda *to: placed.append(Path(to[1]).name) or replace(*to)
    )
    write_three(tmp_path, last)
    assert placed == ["b.png", "c.gz", "a.json"]
    assert names(tmp_path) == sorted(placed)
    for file in tmp_path.iterdir():
        assert file.read_text() == "new"
        assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x")])
def test_one_that_fails_leaves_all_the_old_files_alone(tmp_path, failure):
    def fail(path: Path) -> None:
        raise failure

    expected = UserError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected, match=r"a\.json: cannot" if expected is UserError else None):
        write_three(tmp_path, fail)
    assert names(tmp_path) == ["a.json", "b.png"]
    assert {file.read_text() for file in tmp_path.iterdir()} == {"old"}


def test_json_among_others_is_what_write_json_writes(tmp_path):
    content = {"b": 1, "a": ["ü", np.float32(0.5)]}
    artifacts.write_json(tmp_path / "alone.json", content)
    artifacts.write_together({tmp_path / "a.json": lambda path: artifacts.put_json(path, content)})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "alone.json").read_bytes()


# --- JSON -------------------------------------------------------------------------------------


def test_json_is_plain_utf8_in_the_order_given(tmp_path):
    content = {"z": "犬 <é>", "a": np.float32(0.5), "list": np.arange(3), "path": paths.ROOT / "x"}
    artifacts.write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert "犬 <é>" in text
    assert "\r" not in text
    assert list(json.loads(text).items()) == [
        *(("z", "犬 <é>"), ("a", 0.5), ("list", [0, 1, 2]), ("path", "x"))
    ]


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.array([1, np.inf])]
)
def test_numbers_json_does_not_have_are_refused(tmp_path, value):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(tmp_path / "a.json", {"deep": [{"value": value}]})
    assert (tmp_path / "a.json").read_text() == "{}"


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="set cannot be written"):
        artifacts.write_json(tmp_path / "a.json", {"value": {1, 2}})


def test_an_undecodable_file_name_survives(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    artifacts.write_json(tmp_path / "a.json", {"file": name})
    (tmp_path / "a.json").read_bytes().decode("utf-8", errors="strict")
    assert artifacts.read_json(tmp_path / "a.json") == {"file": name}


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False).filter(math.isfinite),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    artifacts.write_json(path, content)
    assert artifacts.read_json(path) == content


def test_a_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert artifacts.read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1,\n"b": ', "not valid JSON .* at line 2"),
        ('{"a": "é"}'.encode("latin-1"), "not UTF-8 at byte 7"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8 at byte 0"),
        (b"[1, 2]", "does not hold a JSON object"),
        (b"[" * 200_000 + b"]" * 200_000, "not readable as JSON .*recursion"),
        (b'{"a":' * 200_000, "not readable as JSON .*recursion"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable as JSON .*4300 digits"),
    ],
)
def test_unreadable_json_is_one_line_naming_the_file(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: {message}") as caught:
        artifacts.read_json(tmp_path / "a.json")
    assert len(str(caught.value)) < 300


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        (tmp_path / "none.json", "no such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ]:
        with pytest.raises(UserError, match=message):
            artifacts.read_json(path)


# --- provenance -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, (1 << 20) - 1, (1 << 20) + 1])
def test_sha256_agrees_with_hashlib(tmp_path, size):
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(content[:size])
    assert artifacts.sha256(tmp_path / "a") == hashlib.sha256(content[:size]).hexdigest()


@pytest.mark.fault("C-14")
def test_provenance_can_be_written_and_hides_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("x")
    monkeypatch.setattr(sys, "argv", [str(paths.ROOT / "phase1_training" / "train.py")])
    inputs = [paths.ROOT / "pyproject.toml", tmp_path / "in.txt", tmp_path / "absent"]
    report = artifacts.provenance("training", "cpu", inputs)
    artifacts.write_json(tmp_path / "a.json", report)
    assert report["schema"] == "training/1"
    assert report["command"] == "python phase1_training/train.py"
    assert set(report["inputs"]) == {"pyproject.toml", str(tmp_path / "in.txt")}
    assert report["created"].endswith("+00:00")
    assert report["environment"] == environment.describe("cpu")
