"""An environment that holds the packages asked for and what they require, nothing else."""

import importlib.metadata
import json
import subprocess

import pytest

from phase4_deployment.packing import clean_environment


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("numpy>=1.26", ["numpy"]),
        ("# a comment\n\n  opencv-python ~= 4.8  # pictures\n", ["opencv-python"]),
        ("onnxruntime-gpu[cuda]>=1.31; python_version >= '3.11'\nav", ["onnxruntime-gpu", "av"]),
        ("", []),
    ],
)
def test_names_in_a_requirements_file(text, names):
    assert clean_environment.requirement_names(text) == names


def ask(python, code: str):
    command = [python, "-I", "-c", f"import json; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_it_holds_what_was_asked_for_and_what_that_requires(clean_python):
    code = "from importlib import metadata; print(json.dumps(sorted({d.name.lower() for d in "
    found = set(ask(clean_python, f"{code} metadata.distributions()}})))"))
    onnxruntime = {"onnxruntime", "onnxruntime-gpu"} & found
    opencv = {"opencv-python", "opencv-python-headless"} & found
    assert len(onnxruntime) == len(opencv) == 1
    required = {"flatbuffers", "packaging", "protobuf"}  # by onnxruntime
    assert found - onnxruntime - opencv >= {"av", "numpy", "pillow", "scipy", "tqdm"} | required
    assert not found & {"torch", "torchvision", "matplotlib", "pytest", "onnx", "nvidia-cudnn-cu13"}


def test_nothing_else_can_be_imported(clean_python):
    installed = importlib.metadata.packages_distributions()
    assert {"torch", "torchvision", "matplotlib", "onnx", "pytest"} <= set(installed)
    code = (
        "from importlib.util import find_spec; print(json.dumps([n for n in {} if find_spec(n)]))"
    )
    names = [name for name in installed if name.isidentifier()]
    found = set(ask(clean_python, code.format(names)))
    assert found >= {"numpy", "cv2", "onnxruntime", "scipy", "av", "PIL", "tqdm"}
    assert not found & {"torch", "torchvision", "matplotlib", "onnx", "pytest", "jinja2"}


def test_only_its_own_folder_and_the_standard_library_are_searched(clean_python):
    code = "import sys; print(json.dumps([p for p in sys.path if 'site-packages' in p]))"
    (site,) = ask(clean_python, code)
    assert site.startswith(str(clean_python.parents[1]))


def test_a_package_that_is_not_installed_is_an_error(tmp_path):
    with pytest.raises(importlib.metadata.PackageNotFoundError, match="no-such-package"):
        clean_environment.make(tmp_path, ["no-such-package"])
