"""Files that are no video, each in a run of its own: a crash of a decoder is a failure here."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from phase3_tracking import video_detector
from tests.child_processes import CONTEXT, obey_permissions
from tests.faults.trainings import assert_refused
from tests.phase3_tracking.inputs.test_video_file import no_video
from tests.phase3_tracking.made_videos import FAST_START, encode, noisy_video
from tests.phase3_tracking.video_files import write_detections
from tests.training_runs import ended

OLDER = ("out.mp4", "out.json", "out.mot.txt", "out.csv", "out.heatmap.png")


def track(printed: Path, words: list[str], change: Callable[[], None]) -> None:
    with open(printed, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    change()
    raise SystemExit(video_detector.main(words))


def as_it_is() -> None:
    """The process runs as it is."""


@pytest.fixture
def refuses(tmp_path):
    """A run that is to replace older results ends in one line and leaves them as they were."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in OLDER:
        (folder / name).write_text(f"older {name}")
    detections = write_detections(tmp_path / "det.txt", 3)

    def expect(video: Path | str, says: str, change: Callable[[], None] = as_it_is) -> None:
        printed = tmp_path / "printed.txt"
        words = ["--input", video, "--detections", detections, "--overwrite"]
        words = [*map(str, words), "--output", str(folder / "out.mp4")]
        process = CONTEXT.Process(target=track, args=(printed, words, change))
        process.start()
        status = ended(process)
        assert_refused(status, printed.read_text(encoding="utf-8"), says)
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            name: f"older {name}" for name in OLDER
        }

    return expect


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        pytest.param("absent", "bad.mp4: no such file", id="P3-01"),
        pytest.param("empty", "bad.mp4: is empty", id="P3-03"),
        pytest.param("text", "bad.mp4: is damaged or holds no video", id="P3-04"),
        pytest.param("sound", "bad.m4a: holds sound, but no video", id="P3-08"),
        pytest.param("sound with a cover", "bad.mp3: holds sound, but no video", id="P3-08-cover"),
        pytest.param("picture", "bad.mp4: is a picture", id="P3-09"),
        pytest.param("no frame", "bad.mp4: ", id="P3-12"),
        pytest.param("pipe", "bad.mp4: not a regular file", id="P3-24-pipe"),
        pytest.param("device", "/dev/zero: not a regular file", id="P3-24-device"),
    ],
)
def test_what_is_no_video_leaves_the_older_results(tmp_path, refuses, kind, says):
    refuses(no_video(tmp_path, kind), says)


def test_p3_02_a_folder_without_pictures_leaves_the_older_results(tmp_path, refuses):
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "empty: ")


def test_p3_05_a_video_cut_before_its_header_leaves_the_older_results(tmp_path, refuses):
    path = noisy_video(tmp_path / "bad.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuses(path, "bad.mp4: ")


def test_p3_21_a_camera_that_is_absent_leaves_the_older_results(refuses):
    refuses("99", "camera 99")


def test_p3_26_a_video_without_permission_leaves_the_older_results(tmp_path, refuses):
    path = encode(tmp_path / "bad.mp4", 3, container_options=FAST_START)
    path.chmod(0)
    refuses(path, "bad.mp4: may not be read", obey_permissions)
