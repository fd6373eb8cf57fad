"""Every known way of a run of phase 2 to fail, by the number of its case: in other processes.

Signals reach forked children that stand still at a known place. The surroundings a Python starts in
(locale, streams, display, working directory) need a new one: all three scripts run in it in turn.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common import paths
from tests.child_processes import CONTEXT
from tests.phase2_runs import SCRIPTS, STAND_INS, arguments, contents, read, run, write_older

each_script = pytest.mark.parametrize("script", SCRIPTS)
WAIT_S = 60


# --- signals --------------------------------------------------------------------------------------


def stand_still(reached: Path) -> None:
    reached.touch()
    time.sleep(WAIT_S)


def stop_benchmark(reached: Path) -> None:
    """In the sweep: after the first batch size."""
    from phase2_optimization.measuring import Benchmark

    measured = Benchmark.time

    def time_or_stop(self: Any, batch_size: int, *names: Any) -> None:
        if batch_size == 2:
            stand_still(reached)
        measured(self, batch_size, *names)

    Benchmark.time = time_or_stop  # type: ignore[method-assign]


def stop_comparison(reached: Path) -> None:
    """After the first of the timed parts, which have one step each."""
    from common import timing
    from phase2_optimization import amp_comparison
    from phase2_optimization.amp_arm import TrainingArm

    step, made = TrainingArm.step, []

    def step_or_stop(self: Any) -> None:
        if self._precision.tf32:
            made.append(1)
            if len(made) == 4:  # one for the memory, one to warm up, one timed
                stand_still(reached)
        step(self)

    amp_comparison.precisions = lambda device: dict(STAND_INS)
    amp_comparison.MIN_ROUNDS = 1
    timing.release_free_memory = lambda device: None
    TrainingArm.step = step_or_stop  # type: ignore[method-assign]


def stop_profiler(reached: Path) -> None:
    """Between the warm-up and the timed steps."""
    from phase2_optimization import profiling

    profiling.measure_pair = lambda *_: stand_still(reached)


STOPS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "benchmark_inference": (stop_benchmark, ("--variants", "eager_fp32", "--batch-sizes", "1,2")),
    "mixed_precision": (stop_comparison, ("--steps", "3")),
    "gpu_profiler": (stop_profiler, ()),
}


def run_and_stop(printed: Path, reached: Path, script: str, *words: Any) -> None:
    """The child: runs a script until it stands still at its place."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a forked server's child ignores it
    with open(printed, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    stop, more = STOPS[script]
    stop(reached)
    sys.exit(run(script, *words, *more))


@pytest.fixture
def stopped(model_path, data_path, tmp_path):
    """Sends a signal to a script in the midst of its work; returns its exit status, the last line
    it printed and its folder, which held older results of all scripts."""

    def stop(script: str, number: signal.Signals) -> tuple[int, str, Path]:
        output, printed, reached = (tmp_path / name for name in ("metrics", "printed", "reached"))
        write_older(output)
        words = (printed, reached, script, model_path, data_path, output)
        child = CONTEXT.Process(target=run_and_stop, args=words)
        child.start()
        end = time.monotonic() + WAIT_S
        while not reached.exists() and child.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        assert reached.exists(), printed.read_text()
        os.kill(child.pid, number)
        child.join(WAIT_S)
        assert child.exitcode is not None, "it goes on"
        return child.exitcode, printed.read_text(encoding="utf-8").splitlines()[-1], output

    return stop


def assert_partial(script: str, folder: Path) -> None:
    """What is measured before the signal is kept and told to be a part; nothing else changed."""
    older, left = b'{"older": true}', contents(folder)
    changed = {name for name in left if left[name] != older}
    assert len(left) == len(write_older(folder.with_name("as before")))  # nothing half-written
    if script == "gpu_profiler":  # without all its parts it is no profile
        assert not changed
        return
    pictures = {"inference_benchmark.png"} if script == "benchmark_inference" else set()
    assert changed == {f"{SCRIPTS[script].report}.json", *pictures}
    report = read(folder, script)
    assert report["complete"] is False
    if script == "benchmark_inference":
        assert [row["batch_size"] for row in report["results"]] == [1]
        assert report["results"][0]["latency_ms"]["p50"] > 0
    else:
        assert report["timed_steps"] == 1
        assert [len(arm["step_times_ms"]) for arm in report["arms"]] == [1, 1]


@each_script
def test_p2_37_sigint_in_the_midst_keeps_what_is_measured(stopped, script):
    status, line, folder = stopped(script, signal.SIGINT)
    assert (status, line) == (130, "interrupted")
    assert_partial(script, folder)


@each_script
def test_p2_38_sigterm_in_the_midst_keeps_what_is_measured(stopped, script):
    status, line, folder = stopped(script, signal.SIGTERM)
    assert (status, line) == (143, "terminated")
    assert_partial(script, folder)


# --- surroundings ---------------------------------------------------------------------------------

IN_TURN = """
import json, os, runpy, sys
sys.path.insert(0, {root!r})
# Without what takes long (see tests/phase2_runs.py, which would load the pictures' library).
from phase2_optimization import amp_comparison, flops
from phase2_optimization.amp_arm import Precision
flops.MATMUL_SIDES, flops.CONVOLUTIONS = (64,), ((1, 8, 16),)
stand_ins = {{"fp32": Precision("the baseline"), "amp_bf16": Precision("a stand-in", tf32=True)}}
amp_comparison.precisions = lambda device: stand_ins
amp_comparison.INFERENCE_ROUNDS = 2
for name, script, *words in json.loads(sys.argv[1]):
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(f"--- {{name}} {{end.code}}", flush=True)
"""


@dataclass(frozen=True)
class Surrounded:
    """What the scripts printed and left: name -> lines, name -> folder, all messages."""

    printed: dict[str, list[str]]
    folders: dict[str, Path]
    messages: str


@pytest.fixture(scope="module")
def surrounded(model_path, data_path, tmp_path_factory):
    """All scripts without a display, a terminal, colours, or more than ASCII, where no file can be
    made: with --help, on little, and with a mistake."""
    nowhere = Path("/proc")
    if not (nowhere / "self").exists():
        pytest.skip("no folder that root cannot write to")
    folders = {name: tmp_path_factory.mktemp(name) for name in SCRIPTS}
    calls = []
    for name, folder in folders.items():
        script = str(paths.ROOT / "phase2_optimization" / f"{name}.py")
        words = arguments(name, model_path, data_path, folder)
        calls += [[f"{name} --help", script, "--help"], [name, script, *words]]
        calls += [[f"{name} --model-path", script, *words, "--model-path", "キ.pth"]]
    odd = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1", "MPLBACKEND": "TkAgg"}
    display = ("DISPLAY", "WAYLAND_DISPLAY", "LANG", "PYTHONUTF8")
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN.format(root=str(paths.ROOT)), json.dumps(calls)],
        cwd=nowhere,
        env={key: value for key, value in os.environ.items() if key not in display} | odd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    parts, lines = {}, []
    for line in done.stdout.decode("ascii").splitlines():
        lines.append(line)
        if line.startswith("--- "):
            _, name = line.rsplit(" ", 1)[0].split(" ", 1)
            parts[name], lines = lines, []
    return Surrounded(parts, folders, done.stderr.decode("ascii"))


@pytest.mark.slow  # all of them start what `surrounded` runs
@each_script
def test_p2_32_pictures_need_no_display(surrounded, script):
    assert surrounded.printed[script][-1] == f"--- {script} 0"
    with Image.open(surrounded.folders[script] / SCRIPTS[script].picture) as picture:
        picture.load()
        assert picture.width > 1000


@pytest.mark.slow
@each_script
@pytest.mark.fault("C-06")
def test_p2_41_a_working_directory_that_is_read_only_is_never_needed(surrounded, script):
    assert surrounded.printed[script][-1] == f"--- {script} 0"
    assert read(surrounded.folders[script], script)["schema"] == f"{SCRIPTS[script].report}/1"
    assert any(line.startswith("Saved ") for line in surrounded.printed[script])


@pytest.mark.slow
@each_script
@pytest.mark.fault("C-04")
def test_p2_42_ascii_without_a_terminal_is_enough(surrounded, script):
    """`surrounded` decodes what was printed as ASCII."""
    printed = surrounded.printed
    assert printed[f"{script} --help"][-1] == f"--- {script} --help 0"
    assert printed[script][-1] == f"--- {script} 0"
    assert printed[f"{script} --model-path"][-1] == f"--- {script} --model-path 2"
    messages = surrounded.messages.splitlines()
    errors = [line for line in messages if line.startswith("error: ")]
    assert len(errors) == len(SCRIPTS), messages
    assert all(line.startswith("error: \\u30ad.pth: no such file \\u2013 ") for line in errors)
    assert not any("Traceback" in line for line in messages)
    assert not any("\x1b" in line for lines in (messages, *printed.values()) for line in lines)
