"""Checkpoints: killed, damaged or malicious, they load whole and unexecuted or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common import artifacts, paths
from common.cli import UserError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def checkpoint(value: float = 0.0, size: int = 4) -> dict:
    return {"model_state_dict": {"weight": torch.full((size,), value)}, "class_names": ["a"]}


def save(path: Path, value: float = 0.0) -> None:
    artifacts.save_checkpoint(path, checkpoint(value), {"epoch": 1})


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


SAVE_WITH_LITTLE_SPACE = """
import resource, sys, torch
from pathlib import Path
from common import artifacts
from common.cli import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
state = {"weight": torch.zeros(100_000)}
try:
    artifacts.save_checkpoint(Path(sys.argv[1]), {"model_state_dict": state}, {})
except UserError as error:
    print(error)
"""


def test_a_checkpoint_on_a_full_disk_leaves_the_old_one(tmp_path):
    path = tmp_path / "best.pth"
    save(path, 1.0)
    done = subprocess.run(
        [sys.executable, "-c", SAVE_WITH_LITTLE_SPACE, str(path)],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
    )
    assert "best.pth: cannot be written (File too large)" in done.stdout, done.stderr
    assert artifacts.load_checkpoint(path)["model_state_dict"]["weight"][0] == 1.0
    assert artifacts.sidecar(path).is_file()
    assert names(tmp_path) == ["best.json", "best.pth"]


def test_a_checkpoint_that_cannot_be_pickled_is_a_bug_not_a_full_disk(tmp_path):
    with pytest.raises(Exception, match=r"pickle|local") as caught:
        artifacts.save_checkpoint(tmp_path / "a.pth", {"f": lambda: None}, {})
    assert not isinstance(caught.value, UserError)
    assert names(tmp_path) == []


SAVE_FOREVER = """
import sys, torch
from pathlib import Path
from common import artifacts
path, value = Path(sys.argv[1]), 0.0
while True:
    value += 1
    state = {"weight": torch.full((400_000,), value)}
    artifacts.save_checkpoint(path, {"model_state_dict": state}, {"value": value})
    if value == 1:
        print("saved once", flush=True)
"""


def test_killed_while_saving_a_whole_checkpoint_is_left(tmp_path):
    """One child per delay, killed at another moment of its endless saving."""
    for trial in range(6):
        path = tmp_path / str(trial) / "best.pth"
        child = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(path)], cwd=paths.ROOT, stdout=subprocess.PIPE
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"saved once\n"
            time.sleep(0.007 * trial)
            child.send_signal(signal.SIGKILL)
        weight = artifacts.load_checkpoint(path)["model_state_dict"]["weight"]
        assert weight.min() == weight.max() >= 1


@pytest.mark.parametrize("stop_before", ["unlink", "replace", "write_json"])
def test_stopped_between_the_two_files_the_checkpoint_still_loads(
    tmp_path, monkeypatch, stop_before
):
    """The three moments at which the pair could disagree, each hit exactly."""
    path = tmp_path / "best.pth"
    save(path, 1.0)

    def stop(*args, **kwargs):
        raise SystemExit

    owner = {"unlink": Path, "replace": artifacts.os, "write_json": artifacts}[stop_before]
    with monkeypatch.context() as patch:
        patch.setattr(owner, stop_before, stop)
        with pytest.raises(SystemExit):
            save(path, 2.0)
    expected = 2.0 if stop_before == "write_json" else 1.0
    assert artifacts.load_checkpoint(path)["model_state_dict"]["weight"][0] == expected
