"""The README's figures are those of the committed results, and its commands exist; those of phase 3
are run."""

import doctest
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.formats_table import DEFAULT, formats_table
from benchmarks.ladder_table import default_reports, ladder_tables
from benchmarks.readme_table import RESULTS, results_table
from common.comparison import interval_text
from common.environment import is_installed
from common.paths import ROOT
from common.video import VideoWriter
from phase3_tracking.counting.counting import CountingOptions
from phase3_tracking.counting.line_crossing import LineCounter
from phase3_tracking.counting.regions import Region, parse_line, place
from phase3_tracking.detection_log import log_file
from phase3_tracking.results.output_files import result_files
from phase3_tracking.run_options import OutputOptions
from tests.exported_detector import exported_once
from tests.phase3_tracking import explained_scene
from tests.random_detectors import random_scene

GUIDES = [ROOT / "README.md", *sorted(ROOT.glob("phase*/README_*.md"))]


def test_the_results_table_is_what_the_script_prints():
    assert results_table(RESULTS) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ladders_are_what_the_script_prints():
    reports = default_reports()
    page = (ROOT / "phase2_optimization" / "README_PHASE2.md").read_text(encoding="utf-8")
    assert ladder_tables(reports) in page
    front = sorted(path for path in reports if path.match("cpu_amx/trained_*.json"))  # as a shell
    assert front
    assert ladder_tables(front) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("report", [DEFAULT, DEFAULT.with_name("penn_fudan_demo.json")])
def test_the_tables_of_formats_are_what_the_script_prints(report):
    page = (ROOT / "phase4_deployment" / "README_PHASE4.md").read_text(encoding="utf-8")
    assert formats_table(report) in page


@pytest.mark.parametrize("name", ["demo", "mobilenet"])
def test_the_pipeline_table_is_of_the_committed_results(name):
    report = json.loads((RESULTS.parent / "pipeline" / f"{name}.json").read_text("utf-8"))
    ratios = (report["speedup_over_loop"], report["times_the_limit"])
    cells = [f"{report['ms_per_frame']['ours']:.1f}"]
    cells += [interval_text(one["ratio"], one["ci95"]) for one in ratios]
    assert f" | {' | '.join(cells)} |" in PHASE3.read_text(encoding="utf-8")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_scripts_and_options_in_the_guide_exist(guide):
    text = re.sub(r"\\\n\s*", "", guide.read_text(encoding="utf-8"))
    commands = re.findall(r"^python (\S+\.py)([^#\n]*)", text, re.MULTILINE)
    for script, arguments in commands:
        source = ROOT / script
        if not source.is_file():  # the package's own detect.py is named without its folder
            source = ROOT / "phase4_deployment" / "package" / script
        assert source.is_file(), script
        known = source.read_text(encoding="utf-8")
        known += "".join(path.read_text(encoding="utf-8") for path in source.parent.rglob("*.py"))
        known += (ROOT / "common" / "cli.py").read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z][a-z-]*", arguments):
            assert f'"{option}"' in known, f"{script} {option}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_links_and_pictures_of_the_guide_exist(guide):
    for target in re.findall(r"\]\(([^)#]+)\)", guide.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (guide.parent / target).exists(), target


# --- phase 3: its commands are run, on videos of two seconds ----------------------------------

PHASE3 = ROOT / "phase3_tracking" / "README_PHASE3.md"
# a camera, a desktop, a stopped run, a cluster
NEEDS_MORE = ("rtsp://", "--input 0 ", "--show", "--resume", "--address")
CHILD = """
import importlib, json, os, sys
statuses = {}
for name, arguments in json.loads(sys.stdin.read()):
    sys.argv = [name, *arguments]
    statuses[" ".join(sys.argv)] = importlib.import_module(name).main(arguments)
print("STATUSES " + json.dumps(statuses))
"""


def phase3_commands() -> list[str]:
    """The arguments after `python` of each command in the guide, in order."""
    text = re.sub(r"\\\n\s*", "", PHASE3.read_text(encoding="utf-8"))
    return re.findall(r"^python (phase3_tracking/\S+\.py[^#\n]*)", text, re.MULTILINE)


def module_and_arguments(command: str) -> tuple[str, list[str]]:
    script, *arguments = shlex.split(command)
    return script.removesuffix(".py").replace("/", "."), arguments


def test_the_guide_of_phase_3_has_commands_of_every_kind():
    commands = phase3_commands()
    names = {module_and_arguments(command)[0].split(".")[1] for command in commands}
    assert names == {"video_detector", "track_fleet", "evaluate_tracking", "explain_tracking"}
    for option in NEEDS_MORE:
        assert any(option in command for command in commands), option


@pytest.mark.parametrize("command", phase3_commands())
def test_a_parser_takes_the_command(command):
    name, arguments = module_and_arguments(command)
    importlib.import_module(name).build_parser().parse_args(arguments)


@pytest.mark.parametrize(
    "script", ["video_detector", "track_fleet", "evaluate_tracking", "explain_tracking"]
)
def test_the_guide_of_phase_3_names_every_option(script):
    """One that can be switched on or off by either name."""
    parser = importlib.import_module(f"phase3_tracking.{script}").build_parser()
    text = PHASE3.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    options = [action.option_strings for action in parser._actions if action.option_strings]
    assert [names for names in options if not named & set(names)] == []


@pytest.fixture
def a_persons_folder(tmp_path, tmp_path_factory):
    """What the guide's commands name: videos, pictures, detections, ground truth, models."""
    demo, models, deployment = (tmp_path / "outputs" / n for n in ("demo", "models", "deployment"))
    for folder in (demo, models, deployment, tmp_path / "clips", tmp_path / "pictures"):
        folder.mkdir(parents=True)
    exported = exported_once(tmp_path_factory)
    for end in (".pth", ".json"):
        shutil.copy(exported.model_path.with_suffix(end), models / f"best_model{end}")
    for file in exported.onnx_path.parent.glob("model.onnx*"):
        shutil.copy(file, deployment)
    video, detections = explained_scene.write(tmp_path)
    video.rename(tmp_path / "street.mp4")
    detections.rename(tmp_path / "street.det.txt")
    picture = random_scene(np.random.default_rng(1), 120, 160)
    for name in ("clips/a.mp4", "clips/b.mp4", "outputs/demo/demo_video.mp4"):
        with VideoWriter(tmp_path / name, 160, 120, 10) as writer:
            for _ in range(4):
                writer.write(picture)
    cv2.imwrite(str(tmp_path / "pictures" / "1.png"), picture)
    gt = "".join(f"{frame},1,10,10,30,40,1,1,1\n" for frame in range(1, 5))
    sequence = tmp_path / "MOT17" / "train" / "MOT17-02"
    for file in ("outputs/demo/demo_video_gt.txt", "gt.txt", "tracked.mot.txt"):
        (tmp_path / file).write_text(gt)
    for file in ("gt/gt.txt", "det/det.txt"):
        (sequence / file).parent.mkdir(parents=True)
        (sequence / file).write_text(gt if "gt" in file else gt.replace(",1,10,", ",-1,10,"))
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_phase_3_end_well(a_persons_folder):
    needs_more = NEEDS_MORE if is_installed("ray") else (*NEEDS_MORE, "track_fleet.py")
    commands = [one for one in phase3_commands() if not any(more in one for more in needs_more)]
    assert len(commands) > 10
    here = {"cuda": "cpu", "8000": "0", "/path/to/MOT17/train": "MOT17/train"}
    asked = []
    for command in commands:
        name, arguments = module_and_arguments(command)
        asked.append((name, [here.get(argument, argument) for argument in arguments]))
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(asked),
        cwd=a_persons_folder,
        env={
            **os.environ,
            "OUTPUTS_DIR": str(a_persons_folder / "outputs"),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    last = done.stdout.splitlines()[-1]
    assert last.startswith("STATUSES "), done.stderr
    failed = {what: status for what, status in json.loads(last[9:]).items() if status}
    assert not failed, done.stderr
    made = a_persons_folder / "outputs"
    assert (made / "metrics" / "tracking_explained" / "2_assignment.png").is_file()
    events = made / "videos" / "street_tracked.events.csv"
    assert f"Saved {events}" in done.stdout  # by the runs with --line, and replaced by later ones
    assert not events.exists()
    assert (a_persons_folder / "tracked_output.mp4").is_file()
    assert {path.stem for path in (a_persons_folder / "results").glob("*.mp4")} == {
        "street_tracked",
        "a_tracked",
        "b_tracked",
    }


def test_the_examples_of_phase_3_are_right():
    outcome = doctest.testfile(str(PHASE3), module_relative=False)
    assert outcome.attempted > 10
    assert outcome.failed == 0


def test_every_file_that_a_run_writes_is_in_the_table_of_phase_3():
    options = OutputOptions(CountingOptions(lines=(Region("gate", ((0, 0), (1, 1))),)))
    files = result_files(Path("NAME.mp4"), options)
    assert len(files) > 8
    text = PHASE3.read_text(encoding="utf-8")
    for file in (*files, log_file(Path("NAME.mp4"))):
        assert f"| `{file.name}` |" in text, file.name


def directions() -> list[tuple[str, str]]:
    """The rows of the guide's table: a line, and where `left_to_right` moves."""
    text = PHASE3.read_text(encoding="utf-8")
    return re.findall(r"^\| from [\w ]+, `([\d.,]+)` \| (?:to the )?(\w+) \|$", text, re.MULTILINE)


def test_the_table_of_directions_is_whole():
    assert sorted(way for _, way in directions()) == ["down", "left", "right", "up"]


@pytest.mark.parametrize(("line", "way"), directions())
def test_the_directions_of_a_line_are_as_the_guide_says(line, way):
    x, y = {"down": (0, 1), "up": (0, -1), "left": (-1, 0), "right": (1, 0)}[way]
    placed = place([parse_line(line)], "line", 200, 200)[0]
    counter = LineCounter(placed, margin=2)
    assert counter.update([7], ["car"], [(100 - 50 * x, 100 - 50 * y)]) == []
    assert counter.update([7], ["car"], [(100 + 50 * x, 100 + 50 * y)]) == [
        (7, "car", "left_to_right")
    ]
