"""README_PHASE4.md: each command runs, those of the package in a copy of the package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.environment import is_installed
from common.models import load_model
from common.onnx_detector import OnnxDetector
from common.paths import ROOT
from phase4_deployment.quantization import load_dynamic
from tests import readme_pages
from tests.phase4_deployment.browsers import fake_runtime, why_not
from tests.phase4_deployment.packages import run_detect
from tests.phase4_deployment.test_detect import write_picture
from tests.phase4_deployment.test_serve import serving
from tests.readme_pages import Command, Folder, commands_of, committed, no_rule

TEXT = (ROOT / "phase4_deployment" / "README_PHASE4.md").read_text(encoding="utf-8")
LEFT_OUT = {
    "pip install": "needs the package index",
    "npm install": "needs npm's registry",
    "python -m http.server": "serves until it is stopped, and is Python's own",
    "python benchmarks/serving_load.py": "needs ab; see tests/benchmarks/test_serving_load.py",
    "curl -F file=@photo.jpg": "part of a sentence; see serving/test_bodies.py",
}
IN_THE_PACKAGE = dict.fromkeys(("python detect.py", "python serve.py"), "run in a copy of it")
IN_THE_PACKAGE["curl --data-binary"] = "asks its server"
REST, OUT = readme_pages.split(commands_of(TEXT), LEFT_OUT)
RUN, PACKAGE = readme_pages.split(REST, IN_THE_PACKAGE)

HAS_A_BROWSER = not why_not()
MEASURED = "--max-images 1 --max-map-drop 1"
INT8 = f"{MEASURED} --num-iterations 1 --calibration-images 2"
SMALL = {
    "export_all.py": f"{INT8} --time-budget-s 0.1 --batch-sizes 1,2 "
    "--formats pytorch_fp32,onnx_fp32",
    "export_onnx.py": "",
    "test_onnx.py": "--max-images 1",
    "quantize.py": INT8,
    "quantization.py": INT8,
    "pruning.py": f"{MEASURED} --num-iterations 7 --time-budget-s 0.1 --amounts 0.5",
    "web_page.py": "" if HAS_A_BROWSER else "--web-runtime onnxruntime-web",
    "triton_repository.py": "",
}


def small(words: list[str]) -> Command:
    """The command, shrunk; ValueError for one that is not known here."""
    if words[:2] == ["python", "benchmarks/formats_table.py"]:
        return Command(committed(words))
    name = words[1].removeprefix("phase4_deployment/")
    if words[0] != "python" or name not in SMALL:
        raise no_rule(words)
    more = SMALL[name].split()
    if "--finetune-epochs" in words:
        more += ["--finetune-epochs", "1"]
    return Command([*words, *more], statuses(words))


def statuses(words: list[str]) -> tuple[int, ...]:
    """A runtime that is named and not there is an error, as the page says."""
    if words[1].endswith("test_onnx.py") and "cuda" in words:
        return (0, 2) if torch.cuda.is_available() else (2,)  # onnxruntime-gpu may be missing
    if any(word.endswith(",web") for word in words):
        return (0,) if HAS_A_BROWSER and is_installed("openvino") else (2,)
    return (0,)


def test_each_command_is_run_or_left_out_for_a_reason():
    assert len([small(words) for words in RUN]) > 13
    assert all({**OUT, **PACKAGE}.values())  # nothing is left out that is not there
    with pytest.raises(ValueError, match=r"no rule for: python phase4_deployment/new\.py"):
        small(["python", "phase4_deployment/new.py"])


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Folder:
    """The folder of somebody who has run the commands outside the package."""
    folder = readme_pages.prepare(tmp_path_factory.mktemp("page"), tmp_path_factory)
    folder.model("best_model.pth")
    (folder.path / "test_data").mkdir()
    write_picture(folder.path / "test_data" / "a.png")
    fake_runtime(folder.path)
    readme_pages.run(folder, [small(words) for words in RUN])
    return folder


@pytest.fixture
def copied(followed, tmp_path) -> Path:
    """Its package on another machine."""
    return Path(shutil.copytree(followed.path / "outputs" / "deployment", tmp_path / "deployment"))


@pytest.mark.slow
def test_the_commands_end_well(followed):
    path, outputs = followed.path, followed.path / "outputs"
    for name in ("quantized_model.onnx", "model_300.onnx"):
        assert OnnxDetector(path / name, "cpu", threads=1).class_names
    load_dynamic(path / "quantized_model.pth")
    assert parameters(path / "pruned_model.pth") < parameters(followed.checkpoint)
    for name in ("export", "onnx_test", "quantization", "pruning"):
        assert json.loads((outputs / "metrics" / f"{name}.json").read_text("utf-8"))
    assert (outputs / "web" / "index.html").is_file()
    assert (outputs / "triton" / "model_repository" / "detector" / "config.pbtxt").is_file()
    assert (outputs / "deployment.zip").is_file()


def parameters(checkpoint: Path) -> int:
    model = load_model(checkpoint, torch.device("cpu")).model
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
def test_the_package_runs(followed, copied):
    followed._replace(path=copied.parent).video("street.mp4")
    for _, _, *options in PACKAGE["python detect.py"]:
        done = run_detect(Path(sys.executable), copied, *options, cwd=copied)
        assert (done.status, done.error) == (0, ""), options
    assert (copied.parent / "tracked.mp4").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="apt install curl: it is not installed")
@pytest.mark.skipif(not is_installed("fastapi"), reason="pip install fastapi: it is not installed")
def test_the_server_answers(copied):
    ((_, _, *options),) = PACKAGE["python serve.py"]
    ((*request, address),) = PACKAGE["curl --data-binary"]
    assert "8000" in options
    write_picture(copied / "photo.jpg")
    with serving(copied, *[option.replace("8000", "0") for option in options]) as server:
        address = address.replace("8000", str(server.port))
        done = subprocess.run(
            [*request, "--silent", "--show-error", "--noproxy", "*", address],
            cwd=copied,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"width", "height", "detections"}
