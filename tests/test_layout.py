"""The rules of the tree, for every script and module there is."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PHASES = sorted(path.name for path in ROOT.glob("phase*") if path.is_dir())
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
HEAVY = {"ray", "torch", "torchvision", "cv2", "onnx", "onnxruntime", "matplotlib", "scipy", "av"}
FIRST_LINES = [
    "ROOT = Path(__file__).resolve().parents[1]",
    "sys.path.insert(0, str(ROOT))",
]


def tracked(pattern: str) -> list[Path]:
    """Files of the tree below ROOT that git knows or would add; all of them without git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git working tree", allow_module_level=True)
    return sorted(ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_script(path: Path) -> bool:
    """What people run; a module that only a child process runs has no options."""
    return "def build_parser(" in path.read_text(encoding="utf-8")


SOURCES = tracked("*.py")
MODULES = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in {*PHASES, "common"}]
PACKAGES = sorted({path.parent for path in [*MODULES, *tracked("benchmarks/*.py")]})
SCRIPTS = [path for path in MODULES if is_script(path) and path.parent.name != "package"]
TEXTS = [
    path
    for pattern in ("*.py", "*.md", "*.toml", "*.txt", "*.ipynb", "*.j2", "Makefile", ".ci/run")
    for path in tracked(pattern)
]

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
each_module = pytest.mark.parametrize("module", MODULES, ids=name_of)
each_source = pytest.mark.parametrize("source", SOURCES, ids=name_of)


def test_something_is_checked():
    assert ROOT / "common" / "cli.py" in MODULES
    assert Path(__file__).resolve() in SOURCES


# --- scripts ----------------------------------------------------------------------------------


@each_script
def test_a_script_finds_the_project_from_anywhere(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    positions = [
        next((number for number, line in enumerate(lines) if line.startswith(first)), None)
        for first in FIRST_LINES
    ]
    assert None not in positions, f"missing: {FIRST_LINES}"
    project = re.compile(r"from (common|phase\d)|import (common|phase\d)")
    first_import = next(n for n, line in enumerate(lines) if project.match(line))
    assert positions == sorted(positions)
    assert positions[-1] < first_import, "the two lines stand before the project's imports"


@each_script
def test_a_script_says_how_to_run_it(script):
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    command = f"python {name_of(script)}"
    as_module = f"python -m {name_of(script).removesuffix('.py').replace('/', '.')}"
    assert command in docstring or as_module in docstring


def heavy_imports_of(script: Path, argument: str, cwd: Path) -> tuple[set[str], int, str, str]:
    """Runs the script and reads from `-X importtime` what it loaded."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(script), argument],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "OUTPUTS_DIR": str(cwd / "outputs"), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    lines = done.stderr.splitlines()
    imports = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time:")}
    messages = "\n".join(line for line in lines if not line.startswith("import time:"))
    heavy = {name for name in imports if name.split(".")[0] in HEAVY}
    return heavy, done.returncode, done.stdout, messages


@each_script
@pytest.mark.fault("C-01")
def test_help_answers_before_anything_heavy_is_loaded(script, tmp_path):
    heavy, status, output, messages = heavy_imports_of(script, "--help", tmp_path)
    assert (status, messages) == (0, "")
    assert output.startswith("usage:")
    assert not heavy
    assert list(tmp_path.iterdir()) == []
    common = {"--device", "--seed", "--output", "--quiet", "--debug"}
    assert common <= set(re.findall(r"--[a-z-]+", output))
    assert str(ROOT) not in output


@each_script
@pytest.mark.fault("C-02")
def test_an_unknown_option_is_one_line_and_status_2(script, tmp_path):
    heavy, status, output, messages = heavy_imports_of(script, "--no-such-option", tmp_path)
    assert (status, output) == (2, "")
    assert re.fullmatch(r"error: .+", messages), messages
    assert not heavy
    assert list(tmp_path.iterdir()) == []


# --- rooms ------------------------------------------------------------------------------------


def imported_rooms(module: Path) -> set[str]:
    """The first part of every project import, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
            assert node.level == 0, "imports name the room in full"
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found & {*PHASES, "common"}


@each_module
def test_a_phase_imports_common_and_itself_only(module):
    room = module.relative_to(ROOT).parts[0]
    allowed = {"common"} if room == "common" else {"common", room}
    if module.parent.name == "package":  # what is shipped runs the pipeline of phase 3
        allowed |= {"phase3_tracking"}
    assert imported_rooms(module) <= allowed


@each_source
def test_a_file_is_read_in_one_sitting(source):
    lines = source.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES


@each_source
def test_a_function_fits_on_a_screen(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    too_long = [
        f"{node.name}: {lines}"
        for node in ast.walk(tree)
        if isinstance(node, functions)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not too_long


@each_module
def test_library_code_logs(module):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not calls


@pytest.mark.parametrize("folder", PACKAGES, ids=name_of)
def test_every_folder_of_modules_is_a_package_and_an_empty_one(folder):
    """Without the file any installed package of the same name would be imported in its place."""
    assert (folder / "__init__.py").read_bytes() == b""


def test_nothing_beside_a_script_hides_an_installed_package():
    """Python looks for imports in the folder of the script first."""
    installed = {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names}
    folders = {path.parent for path in SCRIPTS}
    beside = [entry for folder in folders for entry in folder.iterdir()]
    modules = [entry for entry in beside if entry.suffix == ".py" or entry.is_dir()]
    assert len(modules) > 50
    assert [name_of(module) for module in modules if module.stem in installed] == []


@pytest.mark.parametrize("room", [*PHASES, "common"])
def test_an_installed_package_of_the_same_name_is_not_taken(room, tmp_path):
    for name in (*PHASES, "common"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a foreign package')")
    script = next(path for path in SCRIPTS if path.relative_to(ROOT).parts[0] == room)
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@each_source
def test_a_skipped_test_tells_what_to_install(source):
    """The package, where a program or library is missing; -ra shows the reasons."""
    reasons = [
        keyword.value.value
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant)
    ]
    wanting = [reason for reason in reasons if "installed" in str(reason)]
    names_it = re.compile(r"(apt|pip) install \S|requirements-\w+\.txt|\([\w-]+\) is not installed")
    assert all(names_it.search(reason) for reason in wanting)


# --- what is committed ------------------------------------------------------------------------


def test_only_the_folders_of_outputs_are_committed():
    names = [name_of(path) for path in tracked("outputs")]
    assert all(name.endswith("/.gitkeep") for name in names), names


@pytest.mark.parametrize("notebook", tracked("*.ipynb"), ids=name_of)
def test_notebooks_are_committed_without_results(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("text", TEXTS, ids=name_of)
def test_no_path_of_one_machine(text):
    pattern = re.compile(r"(?<![\w.$}/])/(home|root|Users|work|content|mnt/data)/\w+")
    assert not pattern.findall(text.read_text(encoding="utf-8"))
