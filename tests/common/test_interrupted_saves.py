"""Checkpoints whose saving is cut short: by SIGKILL, at every single step, by a full disk."""

import errno
import os
import random
import resource
import signal
import subprocess
import time
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
import torch

from common import artifacts
from common.cli import UserError
from tests.child_processes import CONTEXT, run_ranks


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def save(path: Path, value: float, size: int = 4, *, keep_previous: bool = False) -> None:
    content = {"model_state_dict": {"weight": torch.full((size,), float(value))}}
    artifacts.save_checkpoint(path, content, {"value": value}, keep_previous=keep_previous)


def value_of(path: Path) -> float:
    """The value a whole checkpoint is filled with; a sidecar beside it must be its own."""
    weight = artifacts.load_checkpoint(path)["model_state_dict"]["weight"]
    assert weight.min() == weight.max()
    if artifacts.sidecar(path).is_file():
        assert artifacts.read_json(artifacts.sidecar(path))["value"] == weight[0].item()
    return weight[0].item()


# --- SIGKILL ----------------------------------------------------------------------------------

KILLS, SIZE = 50, 200_000
LAST, PREVIOUS, BEST = "last.pth", "last.previous.pth", "best_model.pth"


def save_forever(folder: Path, first: int, saved) -> None:
    """Saves 1, 2, 3, ... and every third one as the best; `saved` tells how far it has come."""
    value = first
    while True:
        save(folder / LAST, value, SIZE, keep_previous=True)
        if value % 3 == 0:
            save(folder / BEST, value, SIZE)
        saved.value = value
        value += 1


@pytest.mark.fault("P1-51")
def test_50_kills_leave_50_whole_checkpoints(tmp_path):
    """Each child goes on with what the killed one left."""
    saved, generator = CONTEXT.RawValue("i", 0), random.Random(0)
    best, killed_while_writing = 0, 0
    for path, value in ((LAST, 1), (LAST, 2), (BEST, best)):
        save(tmp_path / path, value, SIZE, keep_previous=path == LAST)
    for _ in range(KILLS):
        first = int(value_of(tmp_path / LAST)) + 1
        saved.value = 0
        child = CONTEXT.Process(target=save_forever, args=(tmp_path, first, saved))
        child.start()
        while not saved.value and child.is_alive():
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        last = value_of(tmp_path / LAST)
        assert last in (saved.value, saved.value + 1)
        assert value_of(tmp_path / PREVIOUS) in (last - 1, last)
        assert value_of(tmp_path / BEST) in range(int(best), int(last) + 1, 3)
        best = value_of(tmp_path / BEST)
        half_written = list(tmp_path.glob(".tmp-*-*.pth"))
        killed_while_writing += len(half_written)
        for path in half_written:
            path.unlink()
    assert killed_while_writing >= KILLS // 4, "most were killed somewhere else"


def test_what_killed_processes_left_is_removed_in_time(tmp_path):
    left, copied, of_another, recent = (
        tmp_path / f".tmp-{name}.pth"
        for name in ("last-abcd1234", "last.previous-abcd1234", "best-abcd1234", "last-efgh5678")
    )
    for file in (left, copied, of_another, recent):
        file.touch()
    for file in (left, copied, of_another):
        two_hours_ago = time.time() - 7200
        os.utime(file, (two_hours_ago, two_hours_ago))
    save(tmp_path / LAST, 1.0)
    assert names(tmp_path) == sorted([copied.name, of_another.name, recent.name, "last.json", LAST])
    save(tmp_path / LAST, 2.0, keep_previous=True)
    kept = ["last.previous.json", PREVIOUS]
    assert names(tmp_path) == sorted([of_another.name, recent.name, "last.json", LAST, *kept])


# --- stopped before each file operation -------------------------------------------------------

OPERATIONS = [
    *((os, "link"), (os, "replace"), (Path, "unlink"), (Path, "chmod")),
    *((torch, "save"), (artifacts, "write_json"), (artifacts.shutil, "copyfileobj")),
]


class Dead:
    """From the n-th file operation on, every one fails, as if the process were gone."""

    def __init__(self, patch: pytest.MonkeyPatch, survived: int):
        self.left = survived
        for owner, name in OPERATIONS:
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, operation):
        def run(*arguments, **keywords):
            self.left -= 1
            if self.left < 0:
                raise SystemExit
            return operation(*arguments, **keywords)

        return run


def no_link(*arguments, **keywords):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_stopped_before_any_operation_a_whole_checkpoint_is_there(tmp_path, monkeypatch, links):
    if not links:  # as on FAT and some network disks
        monkeypatch.setattr(os, "link", no_link)
    survived = finished = 0
    while not finished:
        folder = tmp_path / str(survived)
        last, previous = folder / LAST, folder / PREVIOUS
        for value in (1.0, 2.0):
            save(last, value, keep_previous=True)
        with monkeypatch.context() as patch:
            Dead(patch, survived)
            try:
                save(last, 3.0, keep_previous=True)
                finished = True
            except SystemExit:
                survived += 1
        value = value_of(last)
        assert value in (2.0, 3.0)
        assert value_of(previous) in (value, value - 1)
        save(last, 4.0, keep_previous=True)  # the next save goes on from any of these states
        assert value_of(last) == 4.0
        assert value_of(previous) in (2.0, 3.0)
    assert survived >= 8, "these operations were not all there are"
    assert names(folder) == sorted([LAST, PREVIOUS, "last.json", "last.previous.json"])


# --- a full disk ------------------------------------------------------------------------------


class DiskThatFills:
    """A binary file that takes so many bytes."""

    def __init__(self, path: Path, mode: str, room: int):
        self.file, self.room = open(path, mode, buffering=0), room  # noqa: SIM115

    def write(self, block) -> int:
        self.room -= len(block)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(block)

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return self.file.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()


@pytest.mark.fault("P1-48")
def test_a_disk_that_fills_at_any_byte_is_one_line(tmp_path, monkeypatch):
    last = tmp_path / LAST
    for value in (1.0, 2.0):
        save(last, value, keep_previous=True)
    before = names(tmp_path)
    for room in range(0, last.stat().st_size, 41):
        with monkeypatch.context() as patch:
            filling = partial(DiskThatFills, room=room)
            patch.setattr(artifacts, "open", filling, raising=False)
            with pytest.raises(UserError, match=r"last\.pth: cannot be written \(No space left"):
                save(last, 3.0, keep_previous=True)
        assert names(tmp_path) == before
    assert (value_of(last), value_of(tmp_path / PREVIOUS)) == (2.0, 1.0)


def test_a_disk_that_fills_while_the_previous_one_is_copied(tmp_path, monkeypatch):
    def fill(source, copy, length):
        copy.write(source.read(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for value in (1.0, 2.0):
        save(tmp_path / LAST, value, keep_previous=True)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(artifacts.shutil, "copyfileobj", fill)
    with pytest.raises(UserError, match=r"last\.previous\.pth: cannot be written \(No space left"):
        save(tmp_path / LAST, 3.0, keep_previous=True)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
@pytest.mark.fault("P1-48")
def test_a_real_full_disk_leaves_every_checkpoint(small_disk, monkeypatch, foreseen):
    size = 120_000  # floats: 0.46 MiB
    for name, value in ((LAST, 1), (LAST, 2), (BEST, 1)):
        save(small_disk / name, value, size, keep_previous=name == LAST)
    before = {name: (small_disk / name).read_bytes() for name in names(small_disk)}
    if not foreseen:  # as with a quota, or somebody else's file in the meantime
        plenty = artifacts.shutil._ntuple_diskusage(2**40, 0, 2**40)
        monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda path: plenty)
    message = r"needs 0\.8 MiB, 0\.\d MiB are free" if foreseen else r"\(No space left on device\)"
    for name in (LAST, BEST):
        with pytest.raises(UserError, match=rf"{name}: .*{message} – free some space there"):
            save(small_disk / name, 3, 200_000, keep_previous=name == LAST)
    assert {name: (small_disk / name).read_bytes() for name in names(small_disk)} == before
    assert value_of(small_disk / BEST) == 1


def save_within_a_size_limit(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(path, 3, 100_000, keep_previous=True)


@pytest.mark.fault("C-11")
def test_a_size_limit_leaves_every_checkpoint(tmp_path):
    for value in (1, 2):
        save(tmp_path / LAST, value, keep_previous=True)
    before = names(tmp_path)
    (failure,) = run_ranks(save_within_a_size_limit, 1, tmp_path / LAST)
    assert failure.kind == "UserError"
    assert "last.pth: cannot be written (File too large) – free some space there" in failure.text
    assert names(tmp_path) == before
    assert value_of(tmp_path / LAST) == 2


def test_only_what_is_sure_not_to_fit_is_refused(tmp_path, monkeypatch):
    usage = artifacts.shutil._ntuple_diskusage
    shared = torch.zeros(1000)
    content = {"model_state_dict": {"a": shared, "b": shared[:10]}, "ema": [(shared,)], "n": 1}
    for disk, refused in [
        (usage(10_000, 6_000, 4_000), False),  # the shared memory is saved once: 4,000 bytes
        (usage(10_000, 6_001, 3_999), True),
        (usage(0, 0, 0), False),  # a disk that does not tell
    ]:
        monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda path, disk=disk: disk)
        if refused:
            with pytest.raises(UserError, match=r"needs 0\.0 MiB"):
                artifacts.save_checkpoint(tmp_path / LAST, content, {})
        else:
            artifacts.save_checkpoint(tmp_path / LAST, content, {})


def test_weights_are_not_copied_to_be_saved(tmp_path):
    """Torch's own memory is not traced, a copy as bytes would be."""
    save(tmp_path / LAST, 1.0)
    tracemalloc.start()
    save(tmp_path / LAST, 2.0, size=10_000_000)  # 40 MB
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
