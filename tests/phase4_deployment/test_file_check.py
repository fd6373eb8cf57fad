"""Every file that is missing, changed or of somebody else has its line."""

import json
import subprocess
import sys

import pytest

from common import artifacts
from phase4_deployment.package import file_check
from phase4_deployment.packing.package_files import list_files


@pytest.fixture
def folder(tmp_path):
    """A package of four files."""
    for name in ("detect.py", "model.onnx", "common/cli.py", "phase3/room/page.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    artifacts.write_json(tmp_path / "package_info.json", {"files": list_files(tmp_path)})
    return tmp_path


def test_an_untouched_package_has_none(folder):
    assert file_check.file_findings(folder) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: (f / "model.onnx").unlink(), "model.onnx: is missing – "),
        (lambda f: (f / "common" / "cli.py").unlink(), "common/cli.py: is missing – "),
        (
            lambda f: (f / "common" / "cli.py").write_text("common/clj.py"),
            "common/cli.py: differs from its sha256 – ",
        ),
        (lambda f: (f / "numpy.py").touch(), "numpy.py: is not part of the package – "),
        (lambda f: (f / "notes.txt").touch(), "notes.txt: is not part of the package – "),
        (
            lambda f: (f / "phase3" / "room" / "more.py").touch(),
            "phase3/room/more.py: is not part of the package – ",
        ),
        (
            lambda f: ((f / "numpy").mkdir(), (f / "numpy" / "__init__.py").touch()),
            "numpy/__init__.py: is not part of the package – ",
        ),
    ],
)
@pytest.mark.fault("P4-27")
def test_a_change_is_one_line_that_names_the_file(folder, change, line):
    change(folder)
    (found,) = file_check.file_findings(folder)
    assert found.startswith(line)


def test_every_file_has_its_line(folder):
    (folder / "detect.py").unlink()
    (folder / "model.onnx").write_bytes(b"")
    (folder / "extra").touch()
    names = [finding.split(":")[0] for finding in file_check.file_findings(folder)]
    assert names == ["detect.py", "model.onnx", "extra"]


def test_folders_of_its_user_and_what_python_compiled_are_no_findings(folder):
    for name in (
        "results/tracked.mp4",
        ".venv/lib/site.py",
        ".gitkeep",
        "common/__pycache__/a.pyc",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert file_check.file_findings(folder) == []


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "/etc/passwd", "C:\\x", "..\\secret", "a//b", "", "."]
)
def test_p4_49_a_list_with_names_outside_of_the_folder_is_damaged(folder, name):
    (folder.parent / "secret").touch()
    listed = json.loads((folder / "package_info.json").read_text(encoding="utf-8"))
    listed["files"][name] = {"sha256": "0" * 64}
    artifacts.write_json(folder / "package_info.json", listed)
    (found,) = file_check.file_findings(folder)
    assert found.startswith("package_info.json: is damaged – ")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"detect.py": 1}}']
)
def test_a_damaged_list_is_the_finding(folder, text):
    (folder / "package_info.json").write_text(text, encoding="utf-8")
    (found,) = file_check.file_findings(folder)
    assert found.startswith("package_info.json: is damaged – ")


@pytest.mark.parametrize("name", ["model.onnx", "common/cli.py"])
def test_a_file_that_may_not_be_read_is_one_line(folder, monkeypatch, name):
    def deny(path, *rest):
        if path == folder / name:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *rest)

    monkeypatch.setattr(file_check, "open", deny, raising=False)
    (found,) = file_check.file_findings(folder)
    assert found.startswith(f"{name}: cannot be read (Permission denied) – ")


@pytest.mark.parametrize("method", ["read_text", "iterdir"])
def test_a_list_or_a_folder_that_may_not_be_read_is_one_line(folder, monkeypatch, method):
    def deny(path, *rest, **more):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(file_check.Path, method, deny)
    (found,) = file_check.file_findings(folder)
    name = folder / "package_info.json" if method == "read_text" else folder
    assert found.startswith(f"{name}: cannot be read (Permission denied) – ")


def test_without_a_list_that_is_the_finding(folder):
    (folder / "package_info.json").unlink()
    (found,) = file_check.file_findings(folder)
    assert found.startswith("package_info.json: is missing – ")


def test_it_needs_python_alone():
    """So that it can be loaded when everything else is damaged."""
    code = f"""
import runpy, sys
names = runpy.run_path({file_check.__file__!r})
print([name for name in sys.modules if name.split(".")[0] not in sys.stdlib_module_names])
"""
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == ["__main__"]
