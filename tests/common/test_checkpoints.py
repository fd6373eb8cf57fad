"""Checkpoints: damaged or malicious ones are refused unexecuted, and the one before is kept."""

import os
from pathlib import Path

import pytest
import torch

from common import artifacts
from common.cli import UserError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def checkpoint(value: float = 0.0, size: int = 4) -> dict:
    return {"model_state_dict": {"weight": torch.full((size,), value)}, "class_names": ["a"]}


def save(path: Path, value: float = 0.0, *, keep_previous: bool = False) -> None:
    artifacts.save_checkpoint(path, checkpoint(value), {"epoch": 1}, keep_previous=keep_previous)


def value_of(path: Path) -> float:
    weight = artifacts.load_checkpoint(path)["model_state_dict"]["weight"]
    assert weight.min() == weight.max()
    return weight[0].item()


@pytest.mark.parametrize(
    ("file", "beside"),
    [("best.pth", "best.json"), ("model.onnx", "model.onnx.json"), ("a.b.pth", "a.b.json")],
)
def test_sidecar(file, beside):
    assert artifacts.sidecar(Path("x") / file) == Path("x") / beside


def test_checkpoint_round_trip(tmp_path):
    save(tmp_path / "best.pth", 2.5)
    loaded = artifacts.load_checkpoint(tmp_path / "best.pth")
    assert torch.equal(loaded["model_state_dict"]["weight"], torch.full((4,), 2.5))
    beside = artifacts.read_json(tmp_path / "best.json")
    assert beside["sha256"] == artifacts.sha256(tmp_path / "best.pth")
    assert beside["epoch"] == 1
    assert names(tmp_path) == ["best.json", "best.pth"]


def test_a_checkpoint_without_its_sidecar_loads(tmp_path):
    save(tmp_path / "best.pth")
    (tmp_path / "best.json").unlink()
    artifacts.load_checkpoint(tmp_path / "best.pth")


def test_another_checkpoint_under_the_same_sidecar_is_refused(tmp_path):
    save(tmp_path / "best.pth", 1.0)
    torch.save(checkpoint(2.0), tmp_path / "best.pth")
    with pytest.raises(UserError, match="differs from the sha256"):
        artifacts.load_checkpoint(tmp_path / "best.pth")


@pytest.mark.fault("P1-52")
def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "best.pth"
    save(path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="differs from the sha256"):
            artifacts.load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04", b"\x80\x02}q\x00.", None])
def test_what_is_no_checkpoint_is_one_line(tmp_path, content):
    path = tmp_path / "best.pth"
    if content is None:  # a truncated one
        save(path)
        content = path.read_bytes()[:-200]
        (tmp_path / "best.json").unlink()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.pth: not a checkpoint"):
        artifacts.load_checkpoint(path)


def test_a_missing_checkpoint_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"no such file.*phase1_training/train\.py"):
        artifacts.load_checkpoint(tmp_path / "best.pth")
    with pytest.raises(UserError, match="not a file"):
        artifacts.load_checkpoint(tmp_path)


class Malicious:
    """Unpickling it would create the file `target`."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch '{self.target}'",))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.fault("P1-52")
def test_code_in_a_checkpoint_never_runs(tmp_path, legacy):
    path, mark = tmp_path / "best.pth", tmp_path / "executed"
    content = {"model_state_dict": {"weight": Malicious(mark)}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    torch.load(path, weights_only=False)
    assert mark.exists(), "the attack itself has to work, or this test shows nothing"
    mark.unlink()
    with pytest.raises(UserError, match="code that is never executed"):
        artifacts.load_checkpoint(path)
    assert not mark.exists()


def test_a_checkpoint_that_cannot_be_pickled_is_a_bug_not_a_full_disk(tmp_path):
    with pytest.raises(Exception, match=r"pickle|local") as caught:
        artifacts.save_checkpoint(tmp_path / "a.pth", {"f": lambda: None}, {})
    assert not isinstance(caught.value, UserError)
    assert names(tmp_path) == []


# --- the previous one -------------------------------------------------------------------------


def test_the_previous_checkpoint_is_kept_with_its_sidecar(tmp_path):
    last, previous = tmp_path / "last.pth", tmp_path / "last.previous.pth"
    assert artifacts.previous_checkpoint(last) == previous
    save(last, 1.0, keep_previous=True)
    assert names(tmp_path) == ["last.json", "last.pth"]
    for value in (2.0, 3.0, 4.0):
        save(last, value, keep_previous=True)
        assert (value_of(last), value_of(previous)) == (value, value - 1)
        for path in (last, previous):
            assert artifacts.read_json(artifacts.sidecar(path))["sha256"] == artifacts.sha256(path)
    kept = ["last.json", "last.previous.json", "last.previous.pth", "last.pth"]
    assert names(tmp_path) == kept
    save(last, 5.0)  # another writer, to whom the previous one means nothing
    assert (value_of(last), value_of(previous)) == (5.0, 3.0)


def test_without_its_sidecar_a_checkpoint_becomes_the_previous_one_without(tmp_path):
    last, previous = tmp_path / "last.pth", tmp_path / "last.previous.pth"
    for value in (1.0, 2.0):
        save(last, value, keep_previous=True)
    artifacts.sidecar(last).unlink()
    save(last, 3.0, keep_previous=True)
    assert (value_of(last), value_of(previous)) == (3.0, 2.0)
    assert names(tmp_path) == ["last.json", "last.previous.pth", "last.pth"]


def test_keeping_what_is_kept_already_leaves_nothing_behind(tmp_path):
    """As after a kill between the two: both names lead to one file."""
    last, previous = tmp_path / "last.pth", tmp_path / "last.previous.pth"
    save(last, 1.0)
    os.link(last, previous)
    os.link(artifacts.sidecar(last), artifacts.sidecar(previous))
    save(last, 2.0, keep_previous=True)
    assert (value_of(last), value_of(previous)) == (2.0, 1.0)
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "unknown"])
def test_a_damaged_checkpoint_names_the_previous_one(tmp_path, damage):
    last = tmp_path / "last.pth"
    save(last, 1.0, keep_previous=True)
    save(last, 2.0, keep_previous=True)
    whole = last.read_bytes()
    if damage == "unknown":  # no sha256 to compare with
        artifacts.sidecar(last).unlink()
    flipped = bytes([*whole[:500], whole[500] ^ 1, *whole[501:]])
    last.write_bytes({"flip": flipped, "empty": b""}.get(damage, whole[:-50]))
    if damage == "remove":
        last.unlink()
    delete = {"remove": r"delete last\.json, ", "unknown": r"delete last\.pth, "}.get(
        damage, r"delete last\.pth and last\.json, "
    )
    remedy = (
        rf"last\.pth: .* – go back to the one before it: {delete}"
        r"rename last\.previous\.\* to last\.\*"
    )
    with pytest.raises(UserError, match=remedy):
        artifacts.load_checkpoint(last)
    for old in (last, artifacts.sidecar(last)):  # what the message says
        old.unlink(missing_ok=True)
    for kept in sorted(tmp_path.glob("last.previous.*")):
        kept.rename(tmp_path / kept.name.replace(".previous", ""))
    assert value_of(last) == 1.0
