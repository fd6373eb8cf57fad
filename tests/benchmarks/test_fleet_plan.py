"""The arithmetic of docs/scale.md, against figures worked out by hand, and the page itself."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import fleet_plan
from benchmarks.fleet_plan import RESULTS, STAGES, build_parser, read_costs, scenarios, tables
from common.cli import UserError
from common.paths import ROOT

MACHINE = {"device": "cpu", "device_name": "a processor", "cpu_count": 4}
BENCHMARK = {
    "schema": "video_pipeline_benchmark/1",
    "environment": MACHINE,
    "cores": 4,
    "cpu_ms_per_frame": {"decode": 2, "detect": 14, "track": 1, "draw": 1, "encode": 2, "ours": 9},
    "ms_per_frame": {"ours": 7.5},
}
RUN = {
    "schema": "video_tracking/1",
    "environment": MACHINE,
    "stage_ms": {"decode": 2.0, "detect": 14.0, "track": 1.0, "draw": 1.0, "encode": 2.0},
    "fps_end_to_end": 100.0,
    "frames_read": 250,
    "video": {"fps": 25.0},
    "files": {"a.mp4": {"bytes": 2_000_000}, "a.csv": {"bytes": 500_000}},
}


def write(tmp_path: Path, report: dict) -> Path:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(report))
    return path


def printed(path: Path, *options: str) -> str:
    return tables([read_costs(path)], build_parser().parse_args(list(options)))


def row(text: str, name: str) -> list[str]:
    (line,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", text, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_the_page_shows_what_the_script_prints():
    reports = sorted(RESULTS.glob("*.json"))
    assert len(reports) == 2
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    shown = tables([read_costs(path) for path in reports], build_parser().parse_args([]))
    assert f"\n\n{shown}\n\n" in page
    of_run = printed(RESULTS.parent / "fleet" / "street_tracked.json")
    assert f"\n\n{of_run[of_run.rindex('41,667 videos') :]}\n\n" in page


def test_the_links_of_the_page_lead_somewhere():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert len(targets) > 3
    for target in targets:
        path, _, heading = target.partition("#")
        assert (ROOT / "docs" / path).is_file(), target
        text = (ROOT / "docs" / path).read_text(encoding="utf-8").lower()
        assert f"\n## {heading.replace('-', ' ')}\n" in text or not heading


def test_a_benchmark(tmp_path):
    """Stages of 20 core-ms; the run occupies 4 cores for 7.5 ms = 30, one and a half times as much.

    A node of 10 cores does 10 * 1000 / 30 = 333.3 frames/s, so 333.3 / 25 * 24 = 320 hours a day.
    """
    path = write(tmp_path, BENCHMARK)
    assert read_costs(path).overhead == pytest.approx(1.5)
    text = printed(path, "--fps", "25", "--node-cores", "10", "--hours-a-day", "3200")
    assert row(text, "as measured") == ["30.00", "detect 70%", "33", "320", "10"]
    # 1.5 * (2 + 14 + 1) = 25.5 -> 392 frames/s, 376 hours, 8.5 nodes
    assert row(text, "`--no-video`") == ["25.50", "detect 82%", "39", "376", "9"]
    # every frame is decoded, a third goes on: 1.5 * (2 + 18 / 3) = 12
    assert row(text, "`--frame-skip 3`") == ["12.00", "detect 58%", "83", "800", "4"]
    # without detection 1.5 * 6 = 9; a GPU below 9 ms / 10 cores waits
    assert row(text, "detection on a GPU: the rest") == ["9.00", "decode 33%", "111", "1,067", "3"]
    assert "a GPU that takes less than 0.90 ms a frame waits for them. No GPU has been m" in text
    assert "133 videos at a time; `--mbit-in` and" in text


def test_a_gpu_of_the_reader(tmp_path):
    """At 3 ms a frame: 9 / 3 = 3 cores, 1000 / 3 / 25 * 24 = 320 hours a day. At 0.5 ms the ten
    cores are the limit, with 0.9 ms: 1067 hours."""
    options = ("--fps", "25", "--node-cores", "10", "--hours-a-day", "3200")
    text = printed(write(tmp_path, BENCHMARK), *options, "--gpu-ms", "3")
    assert "one GPU keeps 3.0 cores busy, and a node with one GPU finishes 320 hours" in text
    assert text.count("10 nodes.") == 1
    text = printed(write(tmp_path, BENCHMARK), *options, "--gpu-ms", "0.5")
    assert "keeps 18.0 cores busy, and a node with one GPU finishes 1,067 hours" in text


def test_a_run_of_video_detector(tmp_path):
    """10 ms a frame on 4 cores are 40 core-ms, twice the stages. 2.5 MB in 10 s are 2 Mbit/s; 1000
    videos at a time make 2 Gbit/s, or 21.6 TB a day."""
    path = write(tmp_path, RUN)
    text = printed(path, "--hours-a-day", "24000", "--mbit-in", "4")
    assert row(text, "as measured")[0] == "40.00"
    assert "at 25 frames/s" in text
    assert row(text, "out") == ["2.00", "2.0", "21.6"]
    assert row(text, "in") == ["4.00", "4.0", "43.2"]


def test_a_run_over_a_file_tells_what_flows_in(tmp_path):
    """1.5 MB of 300 frames, half of which were read: 12 Mbit in 10 s."""
    video = {"fps": 30.0, "source_fps": 30.0, "bytes": 1_500_000}
    run = RUN | {"video": video, "frames_read": 150, "frames_promised": 300}
    text = printed(write(tmp_path, run), "--hours-a-day", "24000")
    assert row(text, "in") == ["1.20", "1.2", "13.0"]
    assert row(text, "out")[0] == "4.00"
    live = printed(write(tmp_path, run | {"frames_promised": None}))
    assert "| in |" not in live


def test_a_run_without_video_tells_nothing_of_runs_with_one(tmp_path):
    """17 ms of stages; the run itself 40 core-ms."""
    stages = RUN["stage_ms"] | {"draw": 0.0, "encode": 0.0}
    text = printed(write(tmp_path, RUN | {"stage_ms": stages}))
    assert "as measured" not in text
    assert "`--frame-skip 3`" not in text
    assert row(text, "`--no-video`")[0] == "40.00"
    assert row(text, "detection on a GPU, `--no-video`")[0] == f"{40 * 3 / 17:.2f}"


def test_a_run_that_left_frames_out_is_refused(tmp_path):
    """Its frames hold the decoding of others, and the rows of --frame-skip would skip once more."""
    skipped = RUN | {"video": {"fps": 10.0, "source_fps": 30.0}}
    with pytest.raises(UserError, match=r"took 10 of 30 frames/s – measure without --frame-skip"):
        read_costs(write(tmp_path, skipped))
    whole = RUN | {"video": {"fps": 30.0, "source_fps": 30.0}}
    assert read_costs(write(tmp_path, whole)).fps == 30.0


def test_a_few_hours_a_day_are_not_told_as_none(tmp_path):
    assert "\n\n0.2 videos at a time" in printed(write(tmp_path, BENCHMARK), "--hours-a-day", "5")


def test_a_run_on_a_gpu_tells_what_the_gpu_sustains(tmp_path):
    """10 ms a frame from end to end; detection is not work of the cores: 6 ms."""
    gpu = {"device": "cuda:0", "device_name": "a GPU", "cpu_count": 4}
    text = printed(write(tmp_path, RUN | {"environment": gpu}), "--node-cores", "4")
    assert (
        "At 10 ms a frame one GPU keeps 0.6 cores busy, and a node with one GPU finishes 96" in text
    )
    assert "as measured" not in text
    assert row(text, "detection on a GPU: the rest")[0] == "6.00"


def test_a_change_saves_and_never_costs():
    changes = scenarios()
    costs = fleet_plan.read_costs(RESULTS / "demo.json")
    whole = costs.total_ms(changes["as measured"])
    assert all(set(shares) == set(STAGES) for shares in changes.values())
    assert all(
        costs.total_ms(shares) < whole for name, shares in changes.items() if name != "as measured"
    )


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"schema": "training/1"}, "holds no times of stages"),
        ({"schema": "video_tracking/1"}, "lacks something"),
        (RUN | {"fps_end_to_end": 0.0}, "lacks something"),
    ],
)
def test_a_report_of_another_kind_is_refused(tmp_path, report, reason):
    with pytest.raises(UserError, match=reason):
        read_costs(write(tmp_path, report))


def test_the_command(capsys):
    assert fleet_plan.main(["--gpu-ms", "5"]) == 0
    assert "At 5 ms a frame" in capsys.readouterr().out
    assert fleet_plan.main(["missing.json"]) == 2
    assert capsys.readouterr().err == "error: missing.json: no such file – check the path\n"
