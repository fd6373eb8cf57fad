"""Every known way of a run of phase 2 to fail, by the number of its case: what a person gives.

What goes wrong while a run measures is in test_faults_phase2_measuring.py, what it leaves in
test_faults_phase2_results.py, signals and odd surroundings are in test_faults_phase2_processes.py.
Two cases have no place in phase 2:

- P2-16, a warm-up of 0: there is no option. Arms are warmed up until their times are stable, and
  at least twice (tests/common/test_timing.py).
- P2-40, hostile class names in a report: the page is common/report.py's (tests/common/
  test_report.py). That the benchmark's JSON keeps such names whole is tested with the results.
"""

import dataclasses
import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common import artifacts, environment
from common.cli import UserError
from phase2_optimization import benchmark_plot, profiling
from phase2_optimization.amp_arm import TrainingArm
from phase2_optimization.arms import Arm, ArmFailedError
from phase2_optimization.batch_search import MAX_BATCH_SIZE
from phase2_optimization.variants import BASELINE, VARIANTS
from tests.phase2_runs import SCRIPTS, contents, run, write_older

each_script = pytest.mark.parametrize("script", SCRIPTS)
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture
def refuses(model_path, data_path, tmp_path, capsys):
    """Runs a script that must end in one line which says `where: what` and touch nothing."""
    output = tmp_path / "metrics"
    older = write_older(output)

    def expect(script: str, says: str, *more: object) -> str:
        status = run(script, model_path, data_path, output, *more)
        line = capsys.readouterr().err
        assert status == 2, line
        assert line.startswith(f"error: {says}"), line
        assert line.count("\n") == 1
        assert contents(output) == older
        return line

    return expect


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than measuring does here."""
    monkeypatch.setattr(benchmark_plot, "draw", lambda report, path: None)


# --- devices ------------------------------------------------------------------------------------


@no_cuda
@each_script
def test_p2_01_a_missing_gpu_is_refused(refuses, script):
    line = refuses(script, "--device cuda: no CUDA device found", "--device", "cuda")
    assert "use --device auto or cpu" in line


@each_script
def test_p2_03_a_gpu_too_many_is_refused(refuses, script):
    number = max(7, torch.cuda.device_count())
    line = refuses(script, f"--device cuda:{number}: ", "--device", f"cuda:{number}")
    assert "found – use --device auto or cpu" in line
    refuses(script, "--device gpu9: unknown – use auto, cpu", "--device", "gpu9")


# --- models -------------------------------------------------------------------------------------


@each_script
def test_p2_04_a_missing_model_is_refused(refuses, script, tmp_path):
    for missing, what in ((tmp_path / "none.pth", "no such file"), (tmp_path, "not a file")):
        says = f"{missing}: {what} – train one with: python phase1_training/train.py"
        refuses(script, says, "--model-path", missing)


NOT_OURS = "not a checkpoint, damaged, or holds code that is never executed – give a .pth"


@each_script
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_p2_05_a_truncated_model_is_refused(refuses, script, model_path, tmp_path, share):
    content = model_path.read_bytes()
    bad = tmp_path / "bad.pth"
    bad.write_bytes(content[: int(share * len(content))])
    refuses(script, f"{bad}: {NOT_OURS}", "--model-path", bad)


@each_script
def test_p2_06_an_empty_model_is_refused(refuses, script, tmp_path):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"")
    refuses(script, f"{bad}: {NOT_OURS}", "--model-path", bad)


@each_script
def test_p2_07_a_text_for_a_model_is_refused(refuses, script, tmp_path):
    bad = tmp_path / "bad.pth"
    bad.write_text("epoch,loss\n1,0.5\n")
    refuses(script, f"{bad}: {NOT_OURS}", "--model-path", bad)


class Malicious:
    """Unpickling it makes a file, if somebody lets it."""

    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self):
        return (open, (str(self.trap), "w"))


@each_script
def test_p2_08_code_in_a_model_is_never_run(refuses, script, tmp_path):
    bad, trap = tmp_path / "bad.pth", tmp_path / "trap"
    torch.save({"model_state_dict": Malicious(trap)}, bad)
    refuses(script, f"{bad}: {NOT_OURS}", "--model-path", bad)
    assert not trap.exists()


@each_script
def test_p2_09_a_model_of_another_project_is_refused(refuses, script, tmp_path, monkeypatch):
    """A whole pickled model of a package that is not there, and plain weights."""
    module = types.ModuleType("ultralytics.nn.tasks")
    module.DetectionModel = type("DetectionModel", (), {"__module__": module.__name__})
    bad = tmp_path / "yolo.pt"
    with monkeypatch.context() as patch:
        for name in ("ultralytics", "ultralytics.nn", module.__name__):
            patch.setitem(sys.modules, name, module)
        torch.save({"epoch": -1, "model": module.DetectionModel(), "train_args": {}}, bad)
    refuses(script, f"{bad}: {NOT_OURS}", "--model-path", bad)
    torch.save({"backbone.weight": torch.zeros(3)}, bad)
    says = f"{bad}: not a checkpoint of this project – give one by phase1_training"
    refuses(script, says, "--model-path", bad)


@each_script
def test_p2_10_a_model_of_other_classes_is_refused(
    refuses, script, model_path, data_path, tmp_path
):
    other = tmp_path / "other.pth"
    content = artifacts.load_checkpoint(model_path)
    artifacts.save_checkpoint(other, {**content, "class_names": ["disc", "ball"]}, {})
    says = f"{other}: knows the classes disc, ball, the data has disc, box – give the data"
    refuses(script, says, "--model-path", other)


@each_script
def test_p2_11_a_model_unlike_its_sha256_is_refused(refuses, script, model_path, tmp_path):
    for file in (model_path, artifacts.sidecar(model_path)):
        shutil.copy(file, tmp_path / file.name)
    changed = tmp_path / model_path.name
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    says = f"{changed}: differs from the sha256 in its .json – restore it or train again"
    refuses(script, says, "--model-path", changed)


# --- options ------------------------------------------------------------------------------------

BATCH_SIZES = [
    ("", "the list is empty"),
    ("0", "0 is not 1 or more"),
    ("-1", "-1 is not 1 or more"),
    ("a,b", "'a' is not a whole number"),
    ("1,,2", "'' is not a whole number"),
    ("1000000", f"1000000 is above {MAX_BATCH_SIZE}"),
]


@pytest.mark.parametrize(("sizes", "what"), BATCH_SIZES)
def test_p2_12_impossible_batch_sizes_are_refused(refuses, sizes, what):
    refuses("benchmark_inference", f"--batch-sizes: {what}", f"--batch-sizes={sizes}")


@pytest.mark.parametrize("script", ["mixed_precision", "gpu_profiler"])
@pytest.mark.parametrize("size", ["", "0", "-1", "a", "1,2"])
def test_p2_12_an_impossible_batch_size_is_refused(refuses, script, size):
    refuses(script, "--batch-size: ", f"--batch-size={size}")


@pytest.mark.usefixtures("no_picture")
def test_p2_12_a_repeated_batch_size_is_measured_once(model_path, data_path, tmp_path):
    assert run("benchmark_inference", model_path, data_path, tmp_path, "--batch-sizes", "1,1") == 0
    report = json.loads((tmp_path / "inference_benchmark.json").read_text(encoding="utf-8"))
    measured = [(row["variant"], row["batch_size"]) for row in report["results"]]
    assert measured == [(BASELINE, 1), ("channels_last", 1)]


def test_p2_12_a_batch_beyond_the_data_is_one_of_all_images(
    model_path, data_path, tmp_path, monkeypatch
):
    asked: list[int] = []

    def measure(*_: object, batch_size: int, **__: object) -> None:
        asked.append(batch_size)
        raise UserError("this test", "has seen enough", "ask no more")

    monkeypatch.setattr(profiling, "measure", measure)
    monkeypatch.setattr(
        "phase2_optimization.amp_comparison.AmpComparison.check",
        lambda self: measure(batch_size=self.settings.batch_size),
    )
    for script in ("mixed_precision", "gpu_profiler"):
        assert run(script, model_path, data_path, tmp_path, "--batch-size", "1000000") == 2
    assert asked == [6, 6]


ZEROS = {
    "benchmark_inference": ("--num-iterations", "--time-budget-s", "--max-images"),
    "mixed_precision": ("--steps", "--seeds", "--max-images"),
    "gpu_profiler": ("--steps", "--max-trace-mib"),
}


@each_script
def test_p2_15_no_iterations_are_refused(refuses, script):
    for option in ZEROS[script]:
        for value in ("0", "-1", "nan"):
            refuses(script, f"{option}: ", option, value)


@pytest.mark.parametrize("size", ["0", "0x64", "1000000", "64x1000000", "-5", "640x", "1x2x3"])
def test_p2_17_impossible_image_sizes_are_refused(refuses, size):
    refuses("benchmark_inference", "--image-size: ", f"--image-size={size}")


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("size", [(1, 1), (31, 31), (33, 47)])
def test_p2_17_odd_image_sizes_are_measured(model_path, data_path, tmp_path, size):
    """The graph resizes and pads them to what the network takes."""
    more = ["--variants", "inference_graph", "--image-size", "{}x{}".format(*size)]
    assert run("benchmark_inference", model_path, data_path, tmp_path, *more) == 0
    report = json.loads((tmp_path / "inference_benchmark.json").read_text(encoding="utf-8"))
    assert report["image_size"] == list(size)
    assert [row["status"] for row in report["results"]] == ["ok", "ok"]


# --- memory that never suffices ------------------------------------------------------------------


def fails(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


@pytest.mark.parametrize(
    ("script", "says", "remedy"),
    [
        ("benchmark_inference", "--batch-sizes 1: the model does not", "smaller --image-size"),
        ("mixed_precision", "--batch-size 1: the FP32 training does not", "smaller --batch-size"),
        ("gpu_profiler", "--batch-size 1: does not fit into the memory", "give a smaller one"),
    ],
)
def test_p2_14_out_of_memory_from_the_first_batch_is_refused(
    refuses, monkeypatch, script, says, remedy
):
    monkeypatch.setitem(VARIANTS, BASELINE, with_builder(BASELINE, lambda m, w: fails))
    monkeypatch.setattr(TrainingArm, "step", fails)
    monkeypatch.setattr(profiling, "measure", fails)
    assert remedy in refuses(script, says)


def with_builder(name: str, build: Callable) -> object:
    return dataclasses.replace(VARIANTS[name], build=build)


def test_p2_14_out_of_memory_in_every_timed_round_is_refused(refuses, monkeypatch):
    """The checks fit one by one; all arms together never do."""

    def fill(self) -> None:
        raise ArmFailedError(self._pair, MemoryError())

    monkeypatch.setattr(Arm, "__call__", fill)
    line = refuses("benchmark_inference", "--batch-sizes 1: nothing could be timed (oom)")
    assert "use smaller ones" in line


# --- what the machine cannot do -------------------------------------------------------------------


def test_p2_19_float16_training_steps_need_a_gpu(refuses):
    refuses("gpu_profiler", "--amp fp16: needs a GPU – use --amp bf16 or off", "--amp", "fp16")


@pytest.fixture
def no_work(monkeypatch):
    """Makes the beginning of the work a bug."""

    def begin(name: str) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(environment, "select_device", begin)


@each_script
@pytest.mark.usefixtures("no_work")
def test_p2_30_an_unwritable_folder_is_refused_before_the_work(refuses, script, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "metrics" / "today"):
        line = refuses(
            script, f"{folder}: cannot be written to (Not a directory)", "--output", folder
        )
        assert "choose another --output" in line
    assert file.read_text() == "mine"


@each_script
@pytest.mark.usefixtures("no_work")
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that root cannot write to")
def test_p2_30_a_folder_that_nobody_can_write_to_is_refused(refuses, script):
    refuses(script, "/proc/metrics: cannot be written to", "--output", "/proc/metrics")
