"""VideoWriter when the process is killed or the disk is full: what can be played afterwards."""

import errno
import re
import subprocess
import sys

import pytest

from common import paths
from common.cli import UserError
from tests.common.test_video import frames, read_with_opencv, times_in, write

CHILD = """
import os, signal, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from common.cli import UserError
from common.video import VideoWriter
noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
if "full" in sys.argv:
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    with VideoWriter(Path(sys.argv[1]), 320, 240, Fraction(25)) as writer:
        for index in range(200):
            writer.write(np.roll(noise, index, axis=1))
            if index == 150 and "kill" in sys.argv:
                os.kill(os.getpid(), signal.SIGKILL)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def run_child(path, *arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(path), *map(str, arguments)]
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)


def test_p3_35_what_was_encoded_before_a_kill_can_be_played(tmp_path):
    path, partial = tmp_path / "a.mp4", tmp_path / "a.partial.mp4"
    path.write_bytes(b"older")
    assert run_child(path, "kill").returncode == -9
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "a.partial.mp4"]
    assert path.read_bytes() == b"older"
    assert len(read_with_opencv(partial)) >= 100  # of 151: a second, and what x264 has in work
    write(path, frames(5))  # the next run replaces it
    assert not partial.exists()
    assert len(read_with_opencv(path)) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the file size are POSIX's")
@pytest.mark.parametrize("limit", [0, 1000, 50_000])
def test_p3_33_a_full_disk_is_one_line_and_the_older_file_stays(tmp_path, limit):
    """What fits is less than a second of video, which cannot be played."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    done = run_child(path, "full", limit)
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large) – free some space there" in done.stdout
    assert done.stdout.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"older"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the file size are POSIX's")
def test_p3_33_what_was_encoded_before_the_disk_was_full_can_be_played(tmp_path):
    """Whole seconds, 25 frames each; then the next one that writes there replaces them."""
    path, partial = tmp_path / "a.mp4", tmp_path / "a.partial.mp4"
    path.write_bytes(b"older")
    done = run_child(path, "full", 1_000_000)
    assert done.returncode == 2, done.stderr
    told = re.fullmatch(
        rf"{path}: cannot be written \(File too large\); (\d+) of (\d+) frames can be played in "
        rf"{partial} – free some space there\n",
        done.stdout,
    )
    assert told, done.stdout
    played, written = map(int, told.groups())
    assert played in (25, 50, 75)
    assert played < written < 200
    assert len(read_with_opencv(partial)) == len(times_in(partial)) == played
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "a.partial.mp4"]
    assert path.read_bytes() == b"older"
    write(path, frames(5))
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def full_disk(path) -> UserError:
    """What `artifacts.told_as` makes of a disk that is full."""
    error = UserError(path, "cannot be written (No space left on device)", "free some space there")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


def test_p3_33_another_file_may_be_the_first_to_find_the_disk_full(tmp_path):
    path, partial = tmp_path / "a.mp4", tmp_path / "a.partial.mp4"
    with pytest.raises(UserError) as caught:
        write(path, frames(13) * 10, then=full_disk(tmp_path / "a.csv"))
    told = re.fullmatch(
        rf"{tmp_path / 'a.csv'}: cannot be written \(No space left on device\); (\d+) of 130 "
        rf"frames can be played in {partial} – free some space there",
        str(caught.value),
    )
    assert told, str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert [file.name for file in tmp_path.iterdir()] == ["a.partial.mp4"]
    assert len(read_with_opencv(partial)) == int(told[1]) > 50


@pytest.mark.parametrize("error", [UserError("x", "is damaged", "mend it"), OSError(28, "full")])
def test_after_other_errors_nothing_is_kept(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        write(tmp_path / "a.mp4", frames(13), then=error)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_p3_33_a_disk_that_is_full_in_the_end_only(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("common.video_remux.remux", full)
    path, partial = tmp_path / "a.mp4", tmp_path / "a.partial.mp4"
    path.write_bytes(b"older")
    with pytest.raises(UserError) as caught:
        write(path, frames(13))
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device); 13 of 13 frames can be played in "
        f"{partial} – free some space there"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "a.partial.mp4"]
    assert path.read_bytes() == b"older"
    assert len(read_with_opencv(partial)) == 13
    monkeypatch.undo()
    write(path, frames(4))
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert len(read_with_opencv(path)) == 4


@pytest.mark.parametrize("lost", [200, 2000])
def test_p3_33_fragments_that_lack_a_part_are_not_kept(tmp_path, monkeypatch, lost):
    """FFmpeg's muxer does not tell that the disk was full, so the end is the first to notice."""

    def full(partial, *_):
        partial.write_bytes(partial.read_bytes()[:-lost])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("common.video_remux.remux", full)
    with pytest.raises(UserError, match=r"left on device\) – free some space"):
        write(tmp_path / "a.mp4", frames(13))
    assert list(tmp_path.iterdir()) == []
