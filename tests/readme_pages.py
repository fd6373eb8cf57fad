"""The commands of a page of documentation, and running them as its reader would, but small.

To end in seconds each is shrunk: options are appended to it, of which argparse takes the last.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from common.cli import EXIT_USER_ERROR
from common.models import freeze_norms, load_weights, save_model
from common.paths import ROOT
from common.video import VideoWriter
from tests.exported_detector import CATEGORY_IDS, CLASS_NAMES, exported_once
from tests.phase4_deployment.test_quantization import write_data
from tests.random_detectors import random_scene

PROGRAMS = ("python", "python3", "make", "pip", "npm", "jupyter", "curl", "torchrun", "docker")
TIMEOUT_S = 1200  # a busy machine is no failure
NORM_EPS = 1e-5


class Command(NamedTuple):
    """A command, small enough for a test, and the exit statuses with which it may end."""

    words: list[str]
    statuses: tuple[int, ...] = (0,)


class Result(NamedTuple):
    status: int
    out: str
    error: str


# --- what stands on a page --------------------------------------------------------------------


def commands_of(text: str) -> list[list[str]]:
    """The words of each line of the bash blocks, continued lines joined, and of what begins with a
    program of PROGRAMS in other blocks and between backticks, in the order of the page."""
    return [words for line in _lines(text) if (words := shlex.split(line, comments=True))]


def _lines(text: str) -> Iterator[str]:
    fence_or_code = r"^```(\w*)\n(.*?)^```$|`([^`]+)`"
    for language, block, code in re.findall(fence_or_code, text, re.MULTILINE | re.DOTALL):
        if block and language in ("bash", ""):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            yield from (one for one in lines if language or one.partition(" ")[0] in PROGRAMS)
        elif (words := code.split())[1:] and words[0] in PROGRAMS:
            yield " ".join(words)


def split(
    commands: Sequence[list[str]], beginnings: Iterable[str]
) -> tuple[list[list[str]], dict[str, list[list[str]]]]:
    """The commands that begin otherwise, and for each of the beginnings (`pip install`) its own."""
    others: list[list[str]] = []
    found: dict[str, list[list[str]]] = {beginning: [] for beginning in beginnings}
    for words in commands:
        line = f"{' '.join(words)} "
        beginning = next((one for one in found if line.startswith(f"{one} ")), None)
        (others if beginning is None else found[beginning]).append(words)
    return others, found


def committed(words: Sequence[str]) -> list[str]:
    """Words in which names of committed results, or a pattern of them, are paths of the tree."""
    found: list[str] = []
    for word in words:
        files = sorted(ROOT.glob(word)) if word.startswith("benchmarks/results/") else []
        found += map(str, files or [word])
    return found


def no_rule(words: Sequence[str]) -> ValueError:
    return ValueError(f"no rule for: {shlex.join(words)}")


# --- running ----------------------------------------------------------------------------------


class Folder(NamedTuple):
    """A folder in which a person follows a page: a working directory with outputs/ in it.

    Attributes:
        checkpoint: a detector that finds something, `onnx_file` its export.
        data: a small COCO data set of its classes.
    """

    path: Path
    checkpoint: Path
    onnx_file: Path
    data: Path

    def video(self, name: str) -> Path:
        """Writes a video in which things move."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = random_scene(np.random.default_rng(1), 96, 144)
        with VideoWriter(path, 128, 96, 10) as writer:
            for shift in range(0, 16, 2):
                writer.write(np.ascontiguousarray(scene[:, shift : shift + 128]))
        return path

    def model(self, name: str) -> None:
        """Puts the detector to where a training would have written it."""
        path = self.path / "outputs" / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for end in (".pth", ".json"):
            shutil.copy(self.checkpoint.with_suffix(end), path.with_suffix(end))


def prepare(tmp_path: Path, factory: pytest.TempPathFactory) -> Folder:
    """A folder with the demo data; its detector has the classes of the data."""
    exported = exported_once(factory)
    model, weights = exported.loaded.model, exported.loaded.model.state_dict()
    freeze_norms(model, NORM_EPS)  # so that a training at no learning rate changes nothing
    load_weights(model, weights)
    checkpoint = factory.mktemp("checkpoint") / "model.pth"
    classes = sorted(zip(CATEGORY_IDS, CLASS_NAMES, strict=True))
    save_model(
        checkpoint,
        model,
        architecture="demo",
        class_names=[name for _, name in classes],
        category_ids=[number for number, _ in classes],
        summary={},
    )
    data = write_data(tmp_path / "outputs" / "demo", {"train": 4, "val": 3})
    return Folder(tmp_path, checkpoint, exported.onnx_path, data)


def run(folder: Folder, commands: Sequence[Command]) -> list[Result]:
    """Runs the commands in one process, in `folder`, up to the first that ends unexpectedly, which
    fails the test."""
    with tempfile.TemporaryDirectory() as name:
        answer = Path(name) / "answer.json"
        task = {
            "commands": [one._asdict() for one in commands],
            "exported": [str(folder.checkpoint), str(folder.onnx_file)],
            "answer": str(answer),
        }
        outputs = {"OUTPUTS_DIR": str(folder.path / "outputs"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "tests.readme_child"],
            input=json.dumps(task),
            cwd=folder.path,
            env={**os.environ, **outputs},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )
        assert answer.exists(), f"{done.stdout}\n{done.stderr}"
        results = [Result(**one) for one in json.loads(answer.read_text(encoding="utf-8"))]
    for command, result in zip(commands, results, strict=False):
        told = f"{shlex.join(command.words)}\n{result.out}\n{result.error}"
        assert result.status in command.statuses, told
        if result.status == EXIT_USER_ERROR:
            assert re.fullmatch(r"error: .+\n", result.error), told
    return results
