"""What comes from outside is data: nothing in it is run, and nothing leads out of its folder."""

import ast
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_layout import MODULES, name_of

FORMATS = "phase4_deployment/formats"
NOWHERE = (
    *("pickle.load", "pickle.loads", "marshal.loads", "shelve.open", "joblib.load"),
    *("torch.hub.load", "torch.package.PackageImporter", "yaml.load", "yaml.unsafe_load"),
    *("eval", "exec", "compile", "os.system", "os.popen", "runpy.run_path"),
    *("shutil.unpack_archive", "tarfile.open"),
)
# What can run code that is in a file or a text, and where it is known to be harmless: the formats
# read back what the same export has just written.
DANGEROUS: dict[str, set[str]] = {
    "torch.load": {"common/artifacts.py"},
    "torch.jit.load": {f"{FORMATS}/torchscript.py"},
    "torch.export.load": {f"{FORMATS}/pytorch_export.py"},
    "torch._inductor.aoti_load_package": {f"{FORMATS}/aot_inductor.py"},
    **{name: set() for name in NOWHERE},
}
FORBIDDEN_KEYWORDS = {"allow_pickle": True, "weights_only": False, "shell": True}


def calls_in(module: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of everything a module calls."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_that_runs_code_of_a_file_is_called_but_where_it_is_known():
    found: dict[str, set[str]] = {name: set() for name in DANGEROUS}
    for module in MODULES:
        for name, _ in calls_in(module):
            if name in found:
                found[name].add(name_of(module))
    assert found == DANGEROUS


def test_no_call_asks_for_pickles_or_a_shell():
    for module in MODULES:
        for name, call in calls_in(module):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            for keyword, value in FORBIDDEN_KEYWORDS.items():
                constant = given.get(keyword)
                assert not (isinstance(constant, ast.Constant) and constant.value is value), name
            if name == "torch.load":
                assert ast.unparse(given["weights_only"]) == "True"


def test_only_an_archive_of_our_own_is_unpacked():
    unpacking = {
        name_of(module)
        for module in MODULES
        for name, _ in calls_in(module)
        if name.rsplit(".", 1)[-1] in ("extractall", "extract")
    }
    assert unpacking == {"phase4_deployment/packing/package_trial.py"}


# --- a file that is an attack -----------------------------------------------------------------


class Malicious:
    """Unpickling it would create the file `target`."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch '{self.target}'",))


def as_pickle(path: Path, attack: object) -> None:
    path.write_bytes(pickle.dumps(attack))


def as_checkpoint(path: Path, attack: object) -> None:
    torch.save({"model_state_dict": attack}, path)


def as_legacy_checkpoint(path: Path, attack: object) -> None:
    torch.save({"model_state_dict": attack}, path, _use_new_zipfile_serialization=False)


def as_arrays(path: Path, attack: object) -> None:
    with open(path, "wb") as file:
        np.savez(file, images=np.array([attack], dtype=object))


def as_program(path: Path, attack: object) -> None:
    """The parts of a .pt2 and of a TorchScript file that hold pickles."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"model/{name}", pickle.dumps(attack))


ATTACKS: dict[str, Callable[[Path, object], None]] = {
    "model.pkl": as_pickle,
    "model.pth": as_checkpoint,
    "legacy.pth": as_legacy_checkpoint,
    "images.npz": as_arrays,
    "model.pt2": as_program,
    "model.ts": as_program,
    "model.onnx": as_pickle,
    "det.txt": as_pickle,
}
READERS = {
    "phase1_training.train": ("--overwrite", "--epochs", "1", "--model-path"),
    "phase1_training.evaluate_detector": ("--model-path",),
    "phase2_optimization.benchmark_inference": ("--model-path",),
    "phase2_optimization.gpu_profiler": ("--model-path",),
    "phase2_optimization.mixed_precision": ("--model-path",),
    "phase3_tracking.video_detector": ("--model-path",),
    "phase3_tracking.video_detector --detections": ("--detections",),
    "phase4_deployment.export_onnx": ("--model-path",),
    "phase4_deployment.export_all": ("--model-path",),
    "phase4_deployment.quantize": ("--model-path",),
    "phase4_deployment.pruning": ("--model-path",),
    "phase4_deployment.test_onnx": ("--onnx-path",),
    "phase4_deployment.web_page": ("--onnx-path",),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from tests.coco_data import write_shapes

    return write_shapes(tmp_path_factory.mktemp("data") / "data", splits={"train": 2, "val": 1})


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("reader", READERS)
def test_no_script_runs_what_is_in_a_file(reader, attack, data, tmp_path, monkeypatch, capsys):
    """Each ends with one line about the file, and the attack has left no trace."""
    path, mark = tmp_path / attack, tmp_path / "executed"
    ATTACKS[attack](path, Malicious(mark))
    module = import_module(reader.split()[0])
    words = [*READERS[reader], str(path)]
    flags = {flag for action in module.build_parser()._actions for flag in action.option_strings}
    if "--data-path" in flags:
        words += ["--data-path", str(data)]
    if "--input" in flags:
        words += ["--input", str(data / "images")]
    output = tmp_path / ("out.mp4" if "video_detector" in reader else "out")
    if reader.endswith(("export_onnx", "quantize", "pruning")):
        output = tmp_path / ("out.pth" if reader.endswith("pruning") else "out.onnx")
    try:
        status = module.main([*words, "--output", str(output)])
    except SystemExit as ended:
        status = ended.code
    assert not mark.exists()
    error = capsys.readouterr().err.strip().splitlines()
    assert (status, len(error)) == (2, 1), error
    assert error[0].startswith("error: ")
    assert attack in error[0]
    assert not output.exists()


def test_the_attacks_work_where_pickles_are_run(tmp_path):
    """Or the tests above would show nothing."""
    mark = tmp_path / "executed"
    readers: dict[str, Callable[[Path], object]] = {
        "model.pkl": lambda path: pickle.loads(path.read_bytes()),
        "model.pth": lambda path: torch.load(path, weights_only=False),
        "legacy.pth": lambda path: torch.load(path, weights_only=False),
        "images.npz": lambda path: np.load(path, allow_pickle=True)["images"],
    }
    for name, read in readers.items():
        ATTACKS[name](tmp_path / name, Malicious(mark))
        read(tmp_path / name)
        assert mark.exists(), name
        mark.unlink()


# --- servers ----------------------------------------------------------------------------------


def test_servers_are_this_machines_only_unless_told_otherwise():
    from phase3_tracking.live.live_address import address
    from phase4_deployment.package import serve

    assert address("8000") == ("127.0.0.1", 8000)
    assert serve.build_parser().get_default("host") == "127.0.0.1"
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            is_everywhere = isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::")
            assert not is_everywhere, f"{name_of(module)}, line {node.lineno}"
