"""Fleets on Ray, on this machine: processes are killed, signals come, nobody listens elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import environment
from common.models import save_model
from phase3_tracking.fleet.manifest import FILE, FleetManifest
from phase3_tracking.fleet.plan import read_videos
from tests.phase3_tracking.fleet_results import rows, same_but_for_the_fleet
from tests.phase3_tracking.listening import family_of, listening
from tests.phase3_tracking.video_files import write_video
from tests.random_detectors import random_detector

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "phase3_tracking" / "track_fleet.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not environment.is_installed("ray"),
        reason="Ray is not installed: pip install -r requirements-extras.txt",
    ),
]
SHORT, LONG = 8, 60  # frames
OPTIONS = ("--model-path", "model.pth", "--no-fps", "--confidence", "0.1", "--batch-size", "2")


@pytest.fixture(scope="module")
def twenty(tmp_path_factory) -> Path:
    """clips/ with 19 good videos, the last ones longer, one without a video in it; alone/ with what
    the single-process script makes of them."""
    folder = tmp_path_factory.mktemp("fleet")
    model = random_detector("demo", num_classes=3, min_size=64, max_size=128, bounded=False)
    names = {"class_names": ("person", "car"), "category_ids": (1, 18)}
    save_model(folder / "model.pth", model, architecture="demo", summary={}, **names)
    (folder / "clips").mkdir()
    for number in range(19):
        frames = LONG if number > 16 else SHORT + number % 3
        write_video(folder / "clips" / f"v{number:02}.mp4", frames)
    (folder / "clips" / "v05x.mp4").write_text("no video")
    done = subprocess.run(
        [sys.executable, ROOT / "phase3_tracking" / "video_detector.py", "--input", "clips",
         "--output", "alone", *OPTIONS],
        cwd=folder, env=child_environment(folder), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "v05x.mp4" in done.stderr
    return folder


def child_environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "OUTPUTS_DIR": str(folder / "outputs"), "OMP_NUM_THREADS": "1"}


def start(folder: Path, output: str) -> subprocess.Popen:
    command = ["--input", "clips", "--output", output, *OPTIONS, "--cpus-per-task", "0.5"]
    return subprocess.Popen(
        [sys.executable, SCRIPT, *command, "--retries", "1"],
        cwd=folder,
        env=child_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done_in(folder: Path) -> set[str]:
    if not (folder / FILE).exists():
        return set()
    lines = (folder / FILE).read_text(encoding="utf-8").split("\n")[1:-1]
    return {row["name"] for row in map(json.loads, lines) if row["state"] == "done"}


def wait_for(condition, driver: subprocess.Popen, seconds: float = 600):
    """What `condition` returns, once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def worker_of(output: Path) -> int | None:
    """The process that is in the middle of a long video: frames have been detected."""
    for lock in output.glob(".v1[78]_tracked.run/lock"):
        name = lock.parent.name[1:].removesuffix(".run")
        log = output / f"{name}.resume.jsonl"
        try:
            if log.read_bytes().count(b"\n") > 2:
                return int(lock.read_text())
        except (OSError, ValueError):  # it has not begun, or is finished
            continue
    return None


def test_a_fleet_survives_its_driver_and_its_workers(twenty):
    """The driver is killed after some videos, and started again; then a worker is killed in the
    middle of a video. Every good video is done once, as the single-process script does it."""
    out = twenty / "out"
    first = start(twenty, "out")
    wait_for(lambda: len(done_in(out)) >= 4, first)
    family = family_of(first.pid)
    sockets = listening(family)
    first.kill()
    first.communicate()
    assert len(family) > 3
    assert sockets
    assert {address for address, _ in sockets} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    before = done_in(out)
    times = {name: (out / name).stat().st_mtime_ns for name in before}
    assert len(before) < 18
    second = start(twenty, "out")
    os.kill(wait_for(lambda: worker_of(out), second), signal.SIGKILL)
    output, error = second.communicate(timeout=600)
    assert second.returncode == 2, error
    assert error.startswith("error: clips/v05x.mp4: ")
    assert error.count("\n") == 1
    assert "19 of 20 videos are done" in output
    assert same_but_for_the_fleet(out, twenty / "alone")
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    recorded = rows(out)
    finished = [row["name"] for row in recorded if row["state"] == "done"]
    assert len(finished) == len(set(finished)) == 19
    attempts = {row["name"]: row["attempts"] for row in recorded if row["state"] != "planned"}
    assert attempts["v05x_tracked.mp4"] == 2
    assert [name for name, count in attempts.items() if count == 2 and "v05x" not in name]
    assert not list(out.glob("*.resume.jsonl"))
    assert [path.name for path in out.glob(".*")] == []


def test_a_signal_ends_a_fleet_and_all_its_processes(twenty):
    out = twenty / "stopped"
    driver = start(twenty, "stopped")
    wait_for(lambda: len(done_in(out)) >= 2, driver)
    family = family_of(driver.pid)
    driver.send_signal(signal.SIGTERM)
    output, error = driver.communicate(timeout=200)
    assert (driver.returncode, error) == (143, "terminated\n")
    assert "Go on with: python " in output
    kept = done_in(out)
    assert 2 <= len(kept) < 19
    manifest = FleetManifest(out, {}, overwrite=False)
    videos = read_videos([str(twenty / "clips")], out)
    assert {video.name for video in videos if manifest.still_holds(video)} == kept
    assert json.loads((out / "fleet.json").read_text(encoding="utf-8"))["done"] == len(kept)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in family) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
