"""The scripts one after another in surroundings that are as poor as can be, and what they leave.

A copy of the project in a folder with spaces and Unicode, called from a folder where nothing can be
written, with a home folder that is not one, without a network, a terminal, colours or more than
ASCII, and with 64 open files. All tests here start what `chain` runs, once.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from common import paths
from tests.coco_data import write_shapes
from tests.phase3_tracking.made_videos import encode

pytestmark = pytest.mark.slow

ROOMS = ("common", "phase1_training", "phase2_optimization", "phase3_tracking", "phase4_deployment")
SIZE = "--min-size 64 --max-size 96 --architecture demo"
DATA = "--data-path DATA --device cpu"
STEPS = {
    "phase1_training/check_data.py": f"--data-path DATA {SIZE}",
    "phase1_training/setup_model.py": f"{DATA} {SIZE}",
    "phase1_training/train.py": f"{DATA} {SIZE} --epochs 1 --batch-size 2",
    "phase2_optimization/benchmark_inference.py": f"{DATA} --variants channels_last "
    "--batch-sizes 1 --num-iterations 1 --max-images 1",
    "phase2_optimization/gpu_profiler.py": f"{DATA} --steps 1 --batch-size 1 --amp off",
    "phase3_tracking/video_detector.py": "--input VIDEO --confidence 0.01",
    "phase3_tracking/evaluate_tracking.py": "--tracks TRACKS --ground-truth TRACKS",
    "phase4_deployment/export_onnx.py": "",
    "common/report.py": "",
}
LIMITS = 'ulimit -n 64 && cd /proc && exec "$@"'


@dataclass(frozen=True)
class Chain:
    """What the scripts printed, by script, and the copy of the project they ran in."""

    outputs: dict[str, str]
    errors: dict[str, str]
    project: Path


def copied_project(folder: Path) -> Path:
    """Data and a video lie in the project, so that no path outside of it has to be told."""
    project = folder / "Grüße an alle 図" / "my project"
    for room in ROOMS:
        shutil.copytree(
            paths.ROOT / room, project / room, ignore=shutil.ignore_patterns("__pycache__")
        )
    write_shapes(project / "data", splits={"train": 4, "val": 2})
    encode(project / "walk.mp4", 4)
    return project


def without_network() -> list[str]:
    command = ["unshare", "--net", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"]).returncode:
        pytest.skip("this system lets nobody leave the network (unshare)")
    return command


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    if not Path("/proc/self").exists():
        pytest.skip("no folder that root cannot write to")
    project = copied_project(tmp_path_factory.mktemp("chain"))
    told = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    environment = {key: os.environ[key] for key in told if key in os.environ}
    environment |= {
        "HOME": "/proc",
        "NO_COLOR": "1",
        "CI": "1",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
    }
    results = project / "outputs" / "videos" / "walk_tracked.mot.txt"
    places = {"DATA": project / "data", "VIDEO": project / "walk.mp4", "TRACKS": results}
    outputs, errors = {}, {}
    for script, words in STEPS.items():
        options = [str(places.get(word, word)) for word in words.split()]
        line = [*without_network(), "bash", "-c", LIMITS, "-", sys.executable]
        done = subprocess.run(
            [*line, str(project / script), *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
        )
        outputs[script], errors[script] = done.stdout.decode("ascii"), done.stderr.decode("ascii")
        assert done.returncode == 0, (script, outputs[script], errors[script])
    return Chain(outputs, errors, project)


def left_by(chain: Chain) -> list[Path]:
    return [path for path in (chain.project / "outputs").rglob("*") if path.is_file()]


def test_c_06_c_07_every_script_ends_well_wherever_it_runs(chain):
    """`chain` has looked at each exit status."""
    for script, printed in chain.outputs.items():
        assert "Saved " in printed, script
    names = {path.name for path in left_by(chain)}
    assert names >= {"best_model.pth", "training.json", "inference_benchmark.json", "profile.json"}
    assert names >= {"walk_tracked.mp4", "tracking_eval.json", "model.onnx", "report.html"}
    assert not [name for name in names if name.startswith(".tmp-") or name == "crash.log"]


def test_c_07_a_home_that_is_none_is_no_error(chain):
    """Matplotlib tells where its cache is instead."""
    for script, text in chain.errors.items():
        assert "error: " not in text, script
        assert "Traceback" not in text, script


def test_c_04_plain_lines_without_a_terminal(chain):
    """`chain` has decoded everything as ASCII."""
    for printed in (*chain.outputs.values(), *chain.errors.values()):
        assert "\x1b" not in printed
        assert "\r" not in printed


def test_c_11_64_open_files_are_enough(chain):
    assert len(chain.outputs) == len(STEPS)


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_c_14_reports_have_their_schema_and_no_number_json_lacks(chain):
    schemas = {}
    for path in left_by(chain):
        if path.suffix != ".json":
            continue
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        if path.suffixes[-2:] == [".coco", ".json"]:  # a form of others
            continue
        name, version = content["schema"].split("/")
        assert int(version) >= 1
        schemas[name] = content
    reports = schemas.keys() - {"image_cache", "tracks"}
    assert len(reports) >= 9
    for name in reports:
        assert schemas[name]["command"].startswith("python "), name
        assert schemas[name]["environment"]["device"], name


def test_c_14_no_file_tells_where_it_was_made(chain):
    """Of no folder above the project: data and results are told as they lie in it."""
    foreign = [str(chain.project.parent), str(paths.ROOT), str(Path.home()) + "/"]
    texts = [path for path in left_by(chain) if path.suffix in (".json", ".html", ".md", ".csv")]
    assert len(texts) > 10
    for path in texts:
        text = path.read_text(encoding="utf-8")
        assert not [folder for folder in foreign if folder in text], path.name
