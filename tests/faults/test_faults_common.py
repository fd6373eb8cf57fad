"""What any script has to bear, whatever it does; the long ones are in test_faults_pipeline.py."""

import argparse
import importlib
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import artifacts, errors, paths
from common.errors import UserError
from tests.child_processes import CONTEXT, obey_permissions
from tests.coco_data import write_shapes
from tests.faults.trainings import assert_refused
from tests.test_layout import SCRIPTS, name_of
from tests.training_runs import checksums, copy_of, ended, equal, metrics, run_training, weights

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=name_of)


def module_of(script: Path):
    return importlib.import_module(name_of(script).removesuffix(".py").replace("/", "."))


# --- --help -----------------------------------------------------------------------------------


@each_script
def test_c_01_every_default_is_shown(script):
    parser = module_of(script).build_parser()
    formatter = parser._get_formatter()
    for action in parser._actions:
        shown = formatter._get_help_string(action)
        assert shown, f"{action.dest} has no help"
        if action.option_strings and action.default not in (None, False, argparse.SUPPRESS):
            assert "default" in shown, action.option_strings


@each_script
def test_c_01_help_takes_less_than_a_second(script, run_script):
    """Of the processor: a busy machine is no failure."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run_script(script, "--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@each_script
@pytest.mark.parametrize("words", [["--help"], ["--no-such-option"]], ids=" ".join)
def test_c_04_no_escape_codes_without_a_terminal(script, words, run_script):
    done = run_script(script, *words, env={"NO_COLOR": "1", "CI": "1", "TERM": "xterm-256color"})
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


@each_script
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_c_05_a_reader_that_has_gone_is_no_error(script, unbuffered, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, str(script), "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, b"")


# --- packages that are missing ----------------------------------------------------------------


def lack(packages: tuple[str, ...]) -> None:
    for name in [*sys.modules]:
        if name.split(".")[0] in packages or "tensorboard" in name:
            del sys.modules[name]
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type] # None: not installed


def test_c_08_a_training_needs_no_optional_package(shapes, straight, tmp_path, train):
    optional = ("tensorboard", "pycocotools", "onnx", "onnxruntime", "openvino", "seaborn", "cuda")
    words = (shapes, tmp_path / "run", "--epochs", 2)
    status, printed = train(*words, change=lack, at=optional)
    assert status == 0, printed
    assert "pip install tensorboard" in printed
    assert metrics(tmp_path / "run") == metrics(straight)


def test_c_06_an_output_whose_name_is_no_utf_8_is_trained_into(shapes, straight, tmp_path, train):
    output = tmp_path / os.fsdecode(b"caf\xe9")
    status, printed = train(shapes, output, "--epochs", 2)
    assert status == 0, printed
    assert "No TensorBoard log" in printed
    assert metrics(output) == metrics(straight)


# --- permissions and limits -------------------------------------------------------------------


def limit_memory(mib: int) -> None:
    """So much more than the process has already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def limit_files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


LARGE = ("--epochs", 1, "--min-size", 320, "--max-size", 640)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit needs /proc")
@pytest.mark.parametrize("mib", [1, 16])
def test_c_11_little_memory_is_one_line(older_run, shapes, train, mib):
    before = checksums(older_run)
    words = (shapes, older_run, *LARGE, "--overwrite")
    status, printed = train(*words, change=limit_memory, at=mib)
    assert_refused(status, printed, "error: ")
    assert printed.splitlines()[-1].startswith(("error: threads: ", "error: memory: ")), printed
    assert checksums(older_run) == before


def test_c_11_few_open_files_are_one_line(older_run, shapes, train):
    before = checksums(older_run)
    words = (shapes, older_run, *LARGE, "--overwrite")
    status, printed = train(*words, change=limit_files, at=3)
    assert_refused(status, printed, "error: ")
    assert checksums(older_run) == before


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (TypeError("Couldn't build proto file into descriptor pool: out of memory"), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
        (OSError(24, "Too many open files", "a.png"), "open files"),
        (RuntimeError("the size of tensor a must match"), None),
        (OSError(2, "No such file or directory", "a.png"), None),
    ],
    ids=repr,
)
def test_c_11_what_a_machine_lacks_is_told_and_a_bug_stays_one(error, where):
    told = errors.shortage(error)
    assert (told and told.where) == where
    assert isinstance(told, UserError | None)


def main_without_permission(printed: Path, module: str, words: list[str]) -> None:
    with open(printed, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main = importlib.import_module(module).main
    obey_permissions()
    raise SystemExit(main(words))


# module, options (names in capitals lie in the test's folder), output below the locked folder
WRITERS = [
    ("phase1_training.check_data", ["--data-path", "DATA"], ""),
    ("phase1_training.setup_model", ["--num-classes", "3", "--min-size", "64"], ""),
    ("phase1_training.make_demo_data", [], "demo"),
    ("phase3_tracking.evaluate_tracking", ["--ground-truth", "GT", "--tracks", "GT"], "a.json"),
    ("common.report", [], ""),
]


@pytest.mark.parametrize(("module", "words", "name"), WRITERS, ids=[row[0] for row in WRITERS])
def test_c_12_without_permission_to_write_it_is_one_line(tmp_path, module, words, name):
    write_shapes(tmp_path / "DATA", splits={"train": 2, "val": 1})
    (tmp_path / "GT").write_text("1,1,10,10,20,20,1,1,1\n")
    words = [str(tmp_path / word) if word.isupper() else word for word in words]
    output = tmp_path / "locked"
    output.mkdir()
    (output / "older.txt").write_text("mine")
    output.chmod(0o555)
    printed = tmp_path / "printed.txt"
    arguments = (printed, module, [*words, "--output", str(output / name)])
    process = CONTEXT.Process(target=main_without_permission, args=arguments)
    process.start()
    assert_refused(ended(process), printed.read_text(), "cannot be written")
    output.chmod(0o755)
    assert [file.name for file in output.iterdir()] == ["older.txt"]


# --- clocks -----------------------------------------------------------------------------------


def test_c_10_a_clock_that_was_set_back_costs_no_run(straight, shapes, tmp_path):
    """What is written last, by the clock, is older than what it was made from; some of it is of
    next year."""
    output = copy_of(straight, tmp_path / "run")
    year_s = 365 * 86400
    for name, when in (("trained_model.pth", -year_s), ("last.pth", year_s), ("a.png", year_s)):
        (output / name).touch()
        os.utime(output / name, (time.time() + when,) * 2)
    assert run_training(shapes, output, "--epochs", 2, "--resume") == 0
    assert metrics(output) == metrics(straight)
    for name in ("last", "best_model", "trained_model"):
        assert equal(weights(output / f"{name}.pth"), weights(straight / f"{name}.pth"))
    assert run_training(shapes, output, "--epochs", 2, "--overwrite") == 0
    assert metrics(output) == metrics(straight)


def test_c_10_a_temporary_file_of_the_future_is_nobodys_and_harms_nobody(tmp_path):
    left = tmp_path / ".tmp-last-abcd1234.pth"
    left.touch()
    os.utime(left, (time.time() + 1e8,) * 2)
    artifacts.save_checkpoint(tmp_path / "last.pth", {"model_state_dict": {}}, {})
    artifacts.load_checkpoint(tmp_path / "last.pth")
    assert left.exists()


def test_there_are_scripts():
    assert paths.ROOT / "phase1_training" / "train.py" in SCRIPTS
