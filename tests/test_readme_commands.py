"""The figures of the README are those of the committed results. Its commands are run, and those of
docs/scale.md and phase 3; the other guides have tests of their own."""

import doctest
import importlib
import json
import re
import shlex
import shutil
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
from tests import readme_pages
from tests.exported_detector import exported_once
from tests.phase3_tracking import explained_scene
from tests.random_detectors import random_scene
from tests.readme_pages import Command, commands_of, committed, no_rule

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


# --- README.md and docs/scale.md: their commands are run --------------------------------------


def test_commands_are_found_in_blocks_and_in_sentences():
    page = "`pip\ninstall a` `python` `x`\n```bash\n# why\nnew \\\n  'a b'  # so\n```\n"
    page += "```\nfolder/\ncurl x\n```\n```python\nmake = 1\n```\n"
    found = commands_of(page)
    assert found == [["pip", "install", "a"], ["new", "a b"], ["curl", "x"]]
    others, left = readme_pages.split(found, ["pip install", "npm"])
    assert others == found[1:]
    assert left == {"pip install": found[:1], "npm": []}


FRONT = [ROOT / "README.md", ROOT / "docs" / "scale.md"]
LEFT_OUT = {
    "make": "installs, and runs what other tests run",
    "jupyter lab": "a server; tests/test_notebooks.py runs the notebooks",
    "python phase1_training/setup_model.py --list": "run by phase1_training/test_readme_phase1.py",
    "python3 -m venv": "sets up an environment",
    "pip install": "needs the package index",
}
SMALL = {  # at 1e-300, which is 0 in float32, a training leaves each weight as it is
    "phase1_training/check_data.py": "--architecture demo",
    "phase1_training/train.py": "--model-path {checkpoint} --lr 1e-300 --epochs 1 --workers 0 "
    "--amp off",
    "phase2_optimization/benchmark_inference.py": "--variants inference_graph --batch-sizes 1,2 "
    "--num-iterations 1 --max-images 1",
    "phase3_tracking/video_detector.py": "",
    "phase4_deployment/export_onnx.py": "",
    "phase4_deployment/export_all.py": "--formats pytorch_fp32,onnx_fp32 --batch-sizes 1,2 "
    "--num-iterations 1 --max-images 1 --time-budget-s 0.1",
}
AS_THEY_ARE = ("-c", "-m", "benchmarks/readme_table.py", "benchmarks/ladder_table.py")
AS_THEY_ARE += ("benchmarks/fleet_plan.py",)


def front_commands() -> tuple[list[list[str]], dict[str, list[list[str]]]]:
    """The words of the commands to be run, and of those left out."""
    texts = [page.read_text(encoding="utf-8") for page in FRONT]
    return readme_pages.split([one for text in texts for one in commands_of(text)], LEFT_OUT)


def small(words: list[str], checkpoint: Path, data: Path) -> Command:
    """The command, shrunk; ValueError for one that is not known here."""
    here = {"/path/to/coco": str(data), "RUN_A": "outputs", "RUN_B": "outputs/mine"}
    words = committed([here.get(word, word) for word in words])
    if words[0] == "export" or (words[0] == "python" and words[1] in AS_THEY_ARE):
        return Command(words)
    if words[0] != "python" or words[1] not in SMALL:
        raise no_rule(words)
    more = SMALL[words[1]].format(checkpoint=checkpoint).split()
    return Command([*words, "--device", "cpu", *more])


def test_each_command_of_the_readme_is_run_or_left_out_for_a_reason(tmp_path):
    run, left_out = front_commands()
    assert len([small(words, tmp_path, tmp_path) for words in run]) > 14
    assert all(left_out.values())
    for words in (["python", "new.py"], ["nohup", "phase1_training/train.py"]):
        with pytest.raises(ValueError, match="no rule for: "):
            small(words, tmp_path, tmp_path)


@pytest.mark.slow
def test_the_commands_of_the_readme_end_well(tmp_path, tmp_path_factory):
    folder = readme_pages.prepare(tmp_path, tmp_path_factory)
    for name in ("sample_video.mp4", "video.mp4", "yours.mp4", "street.mp4"):
        folder.video(name)
    (tmp_path / "street.det.txt").write_text("1,-1,10,10,20,30,0.9,-1,-1,-1\n")
    run, _ = front_commands()
    readme_pages.run(folder, [small(words, folder.checkpoint, folder.data) for words in run])
    assert (tmp_path / "tracked.mp4").is_file()
    outputs = tmp_path / "outputs"
    assert (outputs / "models" / "model.onnx").is_file()
    mine = outputs / "mine"  # as the page's OUTPUTS_DIR says
    for name in ("models/best_model.pth", "deployment.zip", "videos/video_tracked.events.csv"):
        assert (mine / name).is_file(), name
    assert {"report.html", "comparison.html"} <= {p.name for p in (mine / "metrics").iterdir()}


# --- phase 3: its commands are run, on videos of two seconds ----------------------------------

PHASE3 = ROOT / "phase3_tracking" / "README_PHASE3.md"
# a camera, a desktop, a stopped run, a cluster
NEEDS_MORE = ("rtsp://", "--input 0 ", "--show", "--resume", "--address")


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
    outputs = a_persons_folder / "outputs"
    model, exported = outputs / "models" / "best_model.pth", outputs / "deployment" / "model.onnx"
    folder = readme_pages.Folder(a_persons_folder, model, exported, outputs / "demo")
    words = [["python", *shlex.split(command)] for command in commands]
    asked = [Command([here.get(word, word) for word in one]) for one in words]
    told = "".join(result.out for result in readme_pages.run(folder, asked))
    assert (outputs / "metrics" / "tracking_explained" / "2_assignment.png").is_file()
    events = outputs / "videos" / "street_tracked.events.csv"
    assert f"Saved {events}" in told  # by the runs with --line, and replaced by later ones
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
