"""Video runs that are killed again and again, over the results of an older one."""

import sys
from pathlib import Path

import pytest

from common import artifacts, recorded_files
from tests.child_processes import CONTEXT
from tests.killing import TIMEOUT_S, Moments, duration_of, ended_by_itself
from tests.long_runs import times
from tests.phase3_tracking.test_resume import BATCH, FRAMES, OF_THE_MOMENT
from tests.phase3_tracking.video_files import decoded, write_video

PAUSE_S = 0.01
MAY_DIFFER = {*OF_THE_MOMENT, "environment"}  # in which the commit of the tree is told


def track(folder: Path, words: list[str]) -> None:
    """In a child process."""
    from tests.phase3_tracking import stub_run

    with open(folder / "printed.txt", "a", encoding="utf-8") as printed:
        sys.stdout = sys.stderr = printed
        status = stub_run.main(folder / "calls.txt", PAUSE_S, words)
    raise SystemExit(status)


def results(folder: Path) -> dict[str, object]:
    """Every file, and the entries of the report that are not of the moment."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.glob("out.*")}
    del found["out.json"]
    report = artifacts.read_json(folder / "out.json")
    return found | {key: report[key] for key in report.keys() - MAY_DIFFER}


def assert_report_and_files_belong_together(folder: Path) -> None:
    """An older result is whole until a newer one is: never a report beside files of another."""
    if (folder / "out.json").exists():
        report = artifacts.read_json(folder / "out.json")
        assert recorded_files.others(report, folder) == []
        assert len(decoded(folder / "out.mp4")) == report["frames_written"] == FRAMES


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.fault("P3-35")
def test_killed_at_any_moment_it_goes_on_to_the_same_results(tmp_path):
    video = write_video(tmp_path / "walk.mp4", FRAMES)
    options = ["--line", "0.4,0,0.4,1", "--batch-size", str(BATCH), "--no-fps"]

    def start(folder: Path, *more: str):
        folder.mkdir(exist_ok=True)
        words = ["--input", str(video), "--output", str(folder / "out.mp4"), *options, *more]
        process = CONTEXT.Process(target=track, args=(folder, words))
        process.start()
        return process

    moments = Moments(2, duration_of(lambda: start(tmp_path / "whole", "--overwrite")))
    expected, killed, runs = results(tmp_path / "whole"), 0, 0
    while killed < times(3, 50):
        runs += 1
        folder, is_finished = tmp_path / f"run {runs}", False
        assert ended_by_itself(start(folder, "--max-age", "7", "--no-heatmap"), TIMEOUT_S)
        while not is_finished:
            is_over = killed >= times(3, 50)
            goes_on = (folder / "out.resume.jsonl").exists()
            process = start(folder, "--resume" if goes_on else "--overwrite")
            is_finished = ended_by_itself(process, TIMEOUT_S if is_over else moments.draw())
            killed += not is_finished
            assert_report_and_files_belong_together(folder)
        found = results(folder)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
