"""What the package's README tells its user to run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.phase4_deployment.packages import run_detect
from tests.phase4_deployment.test_detect import write_picture, write_video


def commands_of(package: Path) -> list[list[str]]:
    """The words after `python detect.py` of each command in the package's README."""
    text = (package / "README.md").read_text(encoding="utf-8")
    return [
        shlex.split(line) for line in re.findall(r"^python detect\.py (.+)$", text, re.MULTILINE)
    ]


def test_the_commands_of_the_readme_end_well_in_their_order(package, clean_python, tmp_path):
    folder = Path(shutil.copytree(package, tmp_path / "detector"))
    write_picture(tmp_path / "photo.jpg")
    (tmp_path / "pictures").mkdir()
    write_picture(tmp_path / "pictures" / "a.png")
    write_video(tmp_path / "street.mp4")
    commands = [*commands_of(folder), ["--verify"]]
    assert len(commands) == 7
    for command in commands:
        done = run_detect(clean_python, folder, *command, cwd=folder)
        assert (done.status, done.error) == (0, ""), command
    made = {path.name for path in tmp_path.iterdir()}
    assert made >= {"found", "found_in_pictures", "tracked.mp4", "results", "found_int8"}


def test_the_python_examples_of_the_readme_run(package, clean_python):
    text = (package / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for python, block in zip((clean_python, sys.executable), blocks, strict=True):
        command = [str(python), "-B", "-c", block]
        done = subprocess.run(command, cwd=package, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
