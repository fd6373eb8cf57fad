"""The files of the package follow from the imports, and all of them work without PyTorch."""

import subprocess
import sys
from pathlib import Path

import pytest

from common import paths
from phase4_deployment.packing import clean_environment, package_files, shipped_modules
from phase4_deployment.packing.shipped_modules import DETECT, SERVE, imports_of, shipped_files

PACKAGE_OF = {  # module -> what pip calls it
    "PIL": "Pillow",
    "cv2": "opencv-python",
    "python_multipart": "python-multipart",
}
SOURCE = """
import os.path
from a import b
import torch as t
if TYPE_CHECKING:
    import for_types
else:
    import otherwise
try:
    import tried
except ImportError:
    from c import d as e
class Thing:
    import in_class
    def method(self):
        import in_method
        if TYPE_CHECKING:
            import for_types_too
        return lambda: __import__("not seen")
"""
IMPORT_ALL = """
import importlib, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "matplotlib", "pycocotools"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
failures = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failures[name] = str(error)
print(json.dumps(failures))
"""


def import_without_torch(names: list[str], folder: Path) -> dict[str, str]:
    """name -> why it cannot be imported, for those that cannot."""
    import json

    command = [sys.executable, "-B", "-c", IMPORT_ALL, *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def dotted(file: Path) -> str:
    return file.relative_to(paths.ROOT).with_suffix("").as_posix().replace("/", ".")


def test_imports_of_a_source_file(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE, encoding="utf-8")
    found = imports_of(tmp_path / "a.py")
    assert found.at_import == {
        *("os.path", "a", "a.b", "torch", "otherwise", "tried", "c", "c.d", "in_class")
    }
    assert found.later == {"in_method"}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Writes sources into a project of its own; returns the shipped files of its first."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)

    def write(**sources: str) -> list[str]:
        imports_of.cache_clear()
        (tmp_path / "room").mkdir(exist_ok=True)
        for name, source in sources.items():
            (tmp_path / "room" / f"{name}.py").write_text(source, encoding="utf-8")
        entry = tmp_path / "room" / f"{next(iter(sources))}.py"
        return [file.name for file in shipped_files(entry)]

    yield write
    imports_of.cache_clear()


def test_what_is_imported_is_shipped_wherever_it_is_imported(tree):
    assert tree(
        start="from room import first",
        first="def f():\n    from room.second import anything",
        second="import numpy\nimport room.start",
        unused="",
    ) == ["first.py", "second.py"]


@pytest.mark.parametrize(
    ("helper", "shipped"),
    [
        ("import torch", ["worker.py"]),
        ("from torchvision.ops import nms", ["worker.py"]),
        ("from room import network", ["worker.py"]),
        ("def f():\n    import torch", ["helper.py", "worker.py"]),
        ("def f():\n    from room import network", ["helper.py", "worker.py"]),
        ("import torch_like_name", ["helper.py", "worker.py"]),
    ],
)
def test_only_what_needs_pytorch_to_be_imported_stays_behind(tree, helper, shipped):
    worker = "def f():\n    from room import helper"
    network = "import torch"
    assert (
        tree(start="import room.worker", worker=worker, helper=helper, network=network) == shipped
    )


def test_a_file_that_a_module_names_is_shipped_with_it(tree, tmp_path):
    (tmp_path / "room").mkdir()
    for name in ("page.html", "README.md"):
        (tmp_path / "room" / name).touch()
    sources = {
        "start": "from room import server",
        "server": '"""See README.md."""\nP = "page.html"',
    }
    assert tree(**sources) == ["page.html", "server.py"]


def test_the_tracker_and_the_pages_of_the_project_are_shipped():
    names = {file.relative_to(paths.ROOT).as_posix() for file in shipped_files()}
    assert names >= {
        "common/onnx_detector.py",
        "phase3_tracking/object_tracker.py",
        "phase3_tracking/trackers/cmcsort_tracker.py",
        "phase3_tracking/video_run.py",
        "phase3_tracking/results/track_writers.py",
        "phase3_tracking/live/live_page.html",
        "phase4_deployment/package/file_check.py",
    }
    assert not any(name.startswith(("phase1", "phase2", "tests")) for name in names)
    assert "common/inference_graph.py" not in names


def test_several_entries_need_what_each_of_them_needs(tree, tmp_path):
    tree(
        start="from room import a", other="from room import b, start", a="", b="from room import a"
    )
    entries = [tmp_path / "room" / f"{name}.py" for name in ("start", "other")]
    assert [file.name for file in shipped_files(*entries)] == ["a.py", "b.py"]


def test_the_server_and_its_page_are_shipped_and_detect_does_not_need_them():
    of_the_server = set(shipped_files()) - set(shipped_files(DETECT))
    folder = SERVE.parent / "serving"
    assert of_the_server == {*folder.glob("*.py"), folder / "page.html"} - {folder / "__init__.py"}


def test_every_module_can_be_imported_without_pytorch_in_the_package(package):
    modules = [dotted(file) for file in shipped_files() if file.suffix == ".py"]
    assert len(modules) > 50
    assert import_without_torch(["detect", "serve", *modules], package) == {}


def test_what_stays_behind_could_not_be_imported():
    reached = {
        file
        for shipped in shipped_files()
        if shipped.suffix == ".py"
        for names in (imports_of(shipped).at_import | imports_of(shipped).later,)
        for file in shipped_modules.project_files(names)
    }
    left = sorted(dotted(file) for file in reached - set(shipped_files()) - {DETECT})
    assert "common.inference_graph" in left
    failures = import_without_torch(left, paths.ROOT)
    assert sorted(failures) == left
    assert all("torch" in why and "is blocked" in why for why in failures.values())


def test_requirements_are_what_is_imported_with_the_bounds_of_the_project():
    of_detect, of_serve = package_files.REQUIREMENTS, package_files.REQUIREMENTS_SERVE
    for entry, listed in ((DETECT, of_detect), (SERVE, of_detect + of_serve)):
        modules = shipped_modules.third_party([entry, *shipped_files(entry)])
        names = {PACKAGE_OF.get(module, module) for module in modules}
        assert names == set(clean_environment.requirement_names(listed))
    for name, listed in (("requirements.txt", of_detect), ("requirements-dev.txt", of_serve)):
        theirs = (paths.ROOT / name).read_text(encoding="utf-8").splitlines()
        bounds = {line.split("#")[0].split(";")[0].strip() for line in theirs}
        for line in listed.splitlines():
            if not line.startswith("#"):
                assert line.split("#")[0].strip() in bounds
