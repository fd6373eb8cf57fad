"""The four notebooks: how they are committed, and that each does what it says, from end to end."""

import ast
import base64
import re
import resource

import nbformat
import pytest
from nbclient import NotebookClient

from common.paths import ROOT

FOLDER = ROOT / "notebooks"
PHASES = {
    "phase1": "phase1_training",
    "phase2": "phase2_optimization",
    "phase3": "phase3_tracking",
    "phase4": "phase4_deployment",
}
# What a reader is promised of each, in the field's terms
TOPICS = {
    "phase1": "architecture anchor RPN IoU mAP loss_objectness loss_rpn_box_reg loss_classifier "
    "loss_box_reg optimizer augmentation checkpoint transfer",
    "phase2": "profil synchronize warm-up AMP FP16 BF16 memory throughput latency noise Pareto "
    "waterfall interval",
    "phase3": "OpenCV IoU Hungarian Kalman two-stage HOTA MOTA IDF1 annotat encode",
    "phase4": "ONNX INT8 TorchScript opset parity calibration per-channel prun batch latency "
    "package",
}
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CPU_LIMIT_S = 180  # two cores for 90 seconds
HANGS_S = 3600  # of a cell: on a busy machine only the processor time tells anything
JUPYTER_LIMIT_BYTES = 3_000_000  # of one output, see notebook_tools
UNWANTED = re.compile(r"\w+Warning\b|Traceback|\d%\||\x1b\[|\r")  # bars of tqdm and escape codes

each_notebook = pytest.mark.parametrize("name", PHASES)


def path_of(name):
    return FOLDER / f"{name}_demo.ipynb"


def read(name):
    return nbformat.read(path_of(name), as_version=4)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def calls_of(book, method):
    """The calls `demo.METHOD(...)` of all cells, as syntax trees."""
    trees = [ast.walk(ast.parse(cell.source)) for cell in code_cells(book)]
    calls = [node for tree in trees for node in tree if isinstance(node, ast.Call)]
    return [call for call in calls if getattr(call.func, "attr", "") == method]


# --- as they are committed --------------------------------------------------------------------


def test_there_are_four():
    assert sorted(FOLDER.glob("*.ipynb")) == [path_of(name) for name in PHASES]


@each_notebook
def test_it_is_valid_and_holds_no_results(name):
    book = read(name)
    nbformat.validate(book)
    ids = [cell.id for cell in book.cells]
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    assert len(set(ids)) == len(ids)
    for cell in code_cells(book):
        assert not cell.outputs, cell.id
        assert cell.execution_count is None, cell.id


@each_notebook
def test_it_tells_nothing_of_the_machine_it_was_written_on(name):
    book = read(name)
    assert book.metadata == METADATA  # any Python 3 kernel, no versions, no widgets' state
    tagged = [cell for cell in book.cells if cell.metadata]
    assert [cell.metadata for cell in tagged] == [{"tags": ["parameters"]}]
    text = "\n".join(cell.source for cell in book.cells)
    assert not re.findall(r"(?<![\w.<:/])/(?!/)\w+/\w+|[A-Z]:\\", text), "an absolute path"


@each_notebook
def test_its_parameters_are_near_the_top_and_choose_the_size(name):
    cells = code_cells(read(name))
    tagged = [number for number, cell in enumerate(cells) if cell.metadata]
    assert tagged == [1]  # after the imports
    assert "QUICK = quick_mode(torch.cuda.is_available())" in cells[1].source
    assert f'Demo("{name}")' in cells[1].source


def names_a_gpu(node):
    return isinstance(node, ast.Constant) and str(node.value).startswith("cuda")


@each_notebook
def test_no_cell_asks_for_a_shell_or_a_gpu(name):
    """What is there may be looked at (`device.type == "cuda"`), not demanded."""
    for cell in code_cells(read(name)):
        nodes = list(ast.walk(ast.parse(cell.source)))  # of plain Python: no !command, no %magic
        comparisons = [node for node in nodes if isinstance(node, ast.Compare)]
        looked_at = sum(names_a_gpu(n) for one in comparisons for n in ast.walk(one))
        assert sum(map(names_a_gpu, nodes)) == looked_at, cell.id
        assert ".cuda(" not in cell.source, cell.id


@each_notebook
def test_every_step_is_explained(name):
    """A text before each cell; titles of sections are what the table of contents links to."""
    cells = read(name).cells
    assert cells[0].cell_type == "markdown"
    kinds = "".join(cell.cell_type[0] for cell in cells)
    assert kinds.startswith("mcc")
    assert "cc" not in kinds[2:]
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(#([^)]+)\)", cells[0].source)
    titles = re.findall(r"^## (\d.*)$", text, re.MULTILINE)
    assert [link.replace("-", " ") for link in links] == [t.replace("-", " ") for t in titles]
    assert len(links) >= 6


@each_notebook
def test_its_topics_are_those_of_its_phase(name):
    text = "\n".join(cell.source for cell in read(name).cells).lower()
    assert [topic for topic in TOPICS[name].split() if topic.lower() not in text] == []


@each_notebook
def test_it_runs_scripts_that_exist_and_writes_nowhere_else(name):
    scripts = [
        call.args[0].value
        for call in calls_of(read(name), "run")
        if isinstance(call.args[0], ast.Constant)
    ]
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script
        assert script.startswith(PHASES[name]), script


@each_notebook
def test_it_ends_in_checks_that_can_fail(name):
    tree = ast.parse(code_cells(read(name))[-1].source)
    checks = [node.test for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert len(checks) >= 6
    compared = [c for c in checks if any(isinstance(n, ast.Compare) for n in ast.walk(c))]
    assert len(compared) >= 4
    assert not [check for check in checks if isinstance(check, ast.Constant | ast.Tuple)]


# --- from end to end --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_outputs(tmp_path_factory):
    """Phases 2 and 4 follow phase 1 here; 3 stands alone."""
    return tmp_path_factory.mktemp("outputs")


def cpu_seconds():
    """Of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def execute(name, folder):
    """The notebook with its outputs, and the processor's seconds it took."""
    book, began = read(name), cpu_seconds()
    context = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=HANGS_S, kernel_name="python3", resources=context).execute()
    return book, cpu_seconds() - began


def printed(book, stream):
    outputs = [output for cell in code_cells(book) for output in cell.outputs]
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == stream)


def shown(book, kind):
    """What was displayed of this MIME type."""
    outputs = [output for cell in code_cells(book) for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def embedded_video(html):
    found = re.search(r"<video controls[^>]*>\s*<source src=\"data:video/mp4;base64,([^\"]+)", html)
    return base64.b64decode(found[1]) if found else b""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "working_directory"),
    [("phase1", FOLDER), ("phase2", ROOT), ("phase3", FOLDER), ("phase4", ROOT / "docs")],
)
def test_it_runs_from_end_to_end(name, working_directory, shared_outputs, tmp_path, monkeypatch):
    outputs = tmp_path if name == "phase3" else shared_outputs
    earlier = {path.name for path in (outputs / "notebooks").glob("phase*")}
    monkeypatch.setenv("OUTPUTS_DIR", str(outputs))
    monkeypatch.setenv("DEMO_QUICK", "1")
    committed = path_of(name).read_bytes()

    book, cpu_s = execute(name, working_directory)

    assert cpu_s < CPU_LIMIT_S
    assert path_of(name).read_bytes() == committed
    assert printed(book, "stderr") == ""
    assert not UNWANTED.search(printed(book, "stdout"))
    assert printed(book, "stdout").splitlines()[-1].startswith("All is well")
    pictures = [*shown(book, "image/png"), *shown(book, "image/jpeg")]
    assert len(pictures) >= 3
    assert max(map(len, pictures)) < JUPYTER_LIMIT_BYTES
    assert [path.name for path in outputs.iterdir()] == ["notebooks"]
    written = {path.name for path in (outputs / "notebooks").iterdir()}
    assert written == earlier | {name}
    follows = "phase1" in earlier
    says = "Taking the detector" if follows else "phase1_demo.ipynb has left no detector"
    assert name == "phase1" or says in printed(book, "stdout")
    videos = [embedded_video(html) for html in shown(book, "text/html")]
    assert any(b"avc1" in video for video in videos) == (name == "phase3")  # H.264
