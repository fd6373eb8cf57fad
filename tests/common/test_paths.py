"""common.paths: where results go, and how paths are shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import paths


def outputs_with(value: str | None) -> Path:
    environment = {key: text for key, text in os.environ.items() if key != "OUTPUTS_DIR"}
    if value is not None:
        environment["OUTPUTS_DIR"] = value
    program = "from common import paths; print(paths.OUTPUTS)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=paths.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip())


def test_outputs_lie_in_the_repository():
    assert outputs_with(None) == paths.ROOT / "outputs"


def test_an_empty_variable_is_no_folder():
    assert outputs_with("") == paths.ROOT / "outputs"


def test_the_variable_moves_outputs(tmp_path):
    assert outputs_with(str(tmp_path / "with space")) == tmp_path / "with space"


def test_root_holds_common():
    assert (paths.ROOT / "common" / "paths.py").is_file()


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (paths.ROOT / "outputs" / "a.json", "outputs/a.json"),
        (str(paths.ROOT / "common" / "cli.py"), "common/cli.py"),
        (paths.ROOT, "."),
        (Path("/elsewhere/a.json"), "/elsewhere/a.json"),
    ],
)
def test_display(path, shown):
    assert paths.display(path) == shown


def test_display_is_independent_of_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert paths.display("a.json") == "a.json"
    monkeypatch.chdir(paths.ROOT / "common")
    assert paths.display("cli.py") == "common/cli.py"
