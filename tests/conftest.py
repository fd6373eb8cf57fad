"""What all tests share: one thread, no result folder of a person touched, scripts in a child."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Before anything imports torch, matplotlib or common.paths, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["OUTPUTS_DIR"] = tempfile.mkdtemp(prefix="outputs-of-tests-")

# A shell starts what runs in its background without Ctrl-C, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("project", deadline=None)  # a busy machine is no failure
settings.load_profile("project")

pytest_plugins = ["tests.faults.fault_table", "tests.long_runs"]

RunScript = Callable[..., subprocess.CompletedProcess[str]]


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["OUTPUTS_DIR"], ignore_errors=True)


@pytest.fixture
def outputs_dir(tmp_path: Path) -> Path:
    """Where `run_script` lets a script write."""
    return tmp_path / "outputs"


@pytest.fixture
def run_script(tmp_path: Path, outputs_dir: Path) -> RunScript:
    """`run_script("phase1_training/train.py", "--epochs", 1)`: runs it in a child process.

    The child's working directory is empty, its outputs go to `outputs_dir`. Keywords: cwd, env
    (added variables), timeout_s.
    """
    working_directory = tmp_path / "cwd"
    working_directory.mkdir()

    def run(
        script: Path | str,
        *arguments: object,
        cwd: Path = working_directory,
        env: dict[str, str] | None = None,
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "OUTPUTS_DIR": str(outputs_dir), **(env or {})},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout_s,
            check=False,
        )

    return run
