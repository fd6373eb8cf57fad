"""README_PHASE1.md: its commands and snippets run, its flags, defaults and files are the real ones.

The commands run in the order of the page, in one folder, as a reader would type them. To end in
seconds each is shrunk by the same rule: options are appended to it, of which argparse takes the
last given (`shrunk`), and /path/to/coco is a folder of tiny pictures.
"""

import argparse
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from common import models, paths
from common.models import build_model, freeze_norms, load_model, save_model
from phase1_training import check_data, evaluate_detector, make_demo_data, setup_model, train
from phase1_training.distributed import SHARED_STORE
from tests.coco_data import write_shapes

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "phase1_training" / "README_PHASE1.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`]+)`", PROSE)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")
SCRIPTS = {
    f"phase1_training/{module.__name__.rsplit('.', 1)[1]}.py": module
    for module in (make_demo_data, check_data, setup_model, train, evaluate_detector)
}
OTHER_FLAGS = {"--nproc_per_node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}  # torchrun's
OTHER_FLAGS |= {"--max-restarts", "--logdir"}  # and TensorBoard's
SMALL = ["--min-size", "64", "--max-size", "96"]
DEMO_ANCHORS = "8,12,16,24,32,40,48,64"  # as many as the demo architecture has


class Command(NamedTuple):
    words: list[str]
    status: int  # 0, or as a comment behind the command says


def commands_of(block: str) -> list[Command]:
    """The commands of a bash block, continued lines joined."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        stated = re.search(r"#.*exit status (\d+)", line)
        words = shlex.split(line, comments=True)
        if words:
            found.append(Command(words, int(stated[1]) if stated else 0))
    return found


COMMANDS = [c for language, block in BLOCKS if language == "bash" for c in commands_of(block)]


def shrunk(script: str, words: list[str]) -> list[str]:
    """The arguments of a script, small enough for a test."""
    name, small = Path(script).stem, ["--device", "cpu"]
    if name == "make_demo_data":
        small += ["--train-images", "4", "--val-images", "2", "--video-frames", "2"]
    if name == "train":
        small += ["--epochs", "1", "--workers", "0"]
    if name == "setup_model" or (name == "train" and "--model-path" not in words):
        small += ["--architecture", "demo", "--weights", "none", *SMALL]
    if "--anchor-sizes" in words:
        small += ["--architecture", "demo", "--anchor-sizes", DEMO_ANCHORS]
    if "--multi-scale" in words:
        small += ["--multi-scale", "48,64"]
    return [*words, *small]


def run(words: list[str], folder: Path, data: Path) -> int:
    """Runs one command in `folder` and returns its exit status.

    Raises:
        ValueError: a command that is not known here; nothing is run.
    """
    program, *words = [word.replace("/path/to/coco", str(data)) for word in words]
    if program == "python" and words[0] in SCRIPTS:
        return SCRIPTS[words[0]].main(shrunk(words[0], words[1:]))
    if program == "torchrun" and (scripts := [word for word in words if word in SCRIPTS]):
        at = words.index(scripts[0])
        return run_torchrun(words[:at], scripts[0], words[at + 1 :], folder)
    if (program, words) == ("export", [SHARED_STORE]):  # `run_torchrun` does so, too
        return 0
    if program == "tensorboard":
        from tensorboard import program as tensorboard

        board = tensorboard.TensorBoard()
        board.configure(argv=[program, *words, "--inspect"])  # lists the runs instead of serving
        return board.main() or 0
    raise ValueError(f"no rule for: {program} {shlex.join(words)}")


def run_torchrun(options: list[str], script: str, words: list[str], folder: Path) -> int:
    """Two processes, on one machine or as on two. Returns the exit status of any that fails."""
    given = dict(option.split("=") for option in options)
    launcher = ["--standalone", "--nproc_per_node=2"]
    if "--nnodes" in given:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        given |= {"--nnodes": "2", "--nproc_per_node": "1", "--local-addr": "127.0.0.1"}
        given["--rdzv-endpoint"] = f"127.0.0.1:{port}"
        launcher = [f"{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, str(ROOT / script)]
    name, value = SHARED_STORE.split("=")
    environment = {**os.environ, "OUTPUTS_DIR": str(folder / "outputs"), name: value}
    agents = [
        subprocess.Popen([*command, *shrunk(script, words)], cwd=folder, env=environment)
        for _ in range(int(given.get("--nnodes", "1")))
    ]
    return max(agent.wait(timeout=300) for agent in agents)


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """A working directory with the outputs/ of a person who follows the page."""
    outputs = paths.OUTPUTS
    for name, value in list(vars(paths).items()):
        if isinstance(value, Path) and value.is_relative_to(outputs):
            monkeypatch.setattr(paths, name, tmp_path / "outputs" / value.relative_to(outputs))
    small = dict.fromkeys(models.SIZES, (64, 96))  # `setup_model.py --list` takes no sizes
    monkeypatch.setattr(setup_model.models, "SIZES", small)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
def test_every_command_of_the_page_runs(reader, tmp_path_factory, capfd):
    data = write_shapes(tmp_path_factory.mktemp("readme") / "coco", splits={"train": 5, "val": 2})
    for command in COMMANDS:
        status = run(command.words, reader, data)
        printed = capfd.readouterr()
        assert status == command.status, f"{shlex.join(command.words)}\n{printed.err}"
        if command.words[0] == "tensorboard":
            assert "val/map_50" in printed.out
    folder = reader / "outputs" / "models" / "mine"
    assert (reader / "outputs" / "metrics" / "data_fix.json").is_file()
    named = {name.rstrip("/") for name in INLINE}
    files = {path.name for path in folder.iterdir()}
    expected = {"best_model.pth", "trained_model.pth", "last.pth", "last.previous.pth"}
    assert expected <= files
    sidecars = {Path(name).with_suffix(".json").name for name in expected}
    assert files - sidecars <= named  # nothing is left behind unexplained
    assert {name for name in named if name.endswith((".png", ".csv"))} <= files


def test_a_command_without_a_rule_is_noticed(tmp_path):
    (command,) = commands_of("rm -rf \\\n  outputs  # exit status 3\n")
    assert command == (["rm", "-rf", "outputs"], 3)
    with pytest.raises(ValueError, match="no rule for: rm -rf outputs"):
        run(command.words, tmp_path, tmp_path)
    with pytest.raises(ValueError, match="no rule"):
        run(["python", "phase1_training/none.py"], tmp_path, tmp_path)


def test_every_command_stands_in_a_block_that_is_run():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    assert not [code for code in INLINE if code.split()[0] in ("python", "torchrun", "tensorboard")]
    assert len(COMMANDS) > 10


def test_the_weights_load_into_torchvision_as_the_page_says(tmp_path, monkeypatch):
    model = build_model(
        "fasterrcnn_resnet50_fpn", 3, min_size=64, max_size=96, anchor_sizes=[8, 16, 24, 32, 48]
    )
    freeze_norms(model, eps=0.01)
    path = tmp_path / "outputs" / "models" / "mine" / "best_model.pth"
    save_model(
        path,
        model,
        architecture="fasterrcnn_resnet50_fpn",
        class_names=["disc", "box"],
        category_ids=[3, 7],
        summary={},
    )
    monkeypatch.chdir(tmp_path)
    (snippet,) = (block for language, block in BLOCKS if language == "python")
    names: dict = {}
    exec(compile(snippet, "README_PHASE1.md", "exec"), names)
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (found,) = names["model"]([pixels])
        (expected,) = load_model(path, torch.device("cpu")).model([pixels])
    assert type(names["model"].transform).__module__.startswith("torchvision")
    assert len(found["boxes"])
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-3)


# --- flags, defaults, names -------------------------------------------------------------------


def options_of(module) -> dict[str, argparse.Action]:
    actions = module.build_parser()._actions
    return {flag: action for action in actions for flag in action.option_strings}


def test_every_flag_on_the_page_exists():
    known = set().union(*(options_of(module) for module in SCRIPTS.values())) | OTHER_FLAGS
    assert set(FLAG.findall(PAGE)) <= known


@pytest.mark.parametrize("module", [train, check_data], ids=["train", "check_data"])
def test_every_flag_is_explained(module):
    assert set(options_of(module)) - {"-h", "--help"} <= set(FLAG.findall(PROSE))


def test_values_given_in_the_text_are_accepted():
    with_values = {code for code in INLINE if re.fullmatch(r"(--[a-z-]+ \S+ ?)+", code)}
    assert len(with_values) > 10
    for code in with_values:
        words = shlex.split(code)
        parser = next(
            module.build_parser()
            for module in (train, check_data)
            if set(FLAG.findall(code)) <= set(options_of(module))
        )
        parser.parse_args(words)  # ends the test when a value is refused


def test_defaults_in_the_recipe_are_those_of_help():
    rows = re.findall(r"^\| `(--[a-z-]+)` \| (.+?) \| .+ \|$", PAGE, re.MULTILINE)
    assert len(rows) > 10
    parser, options = train.build_parser(), options_of(train)
    for flag, default in rows:
        text = " ".join(parser._get_formatter()._expand_help(options[flag]).split())
        assert f"default: {default}" in text, flag
    assert "`--batch-size` (default: 4)" in PAGE
    assert options["--batch-size"].default == 4


def test_architectures_and_headings_are_named_rightly():
    table = PAGE.partition("| `--architecture` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(models.ARCHITECTURES)
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings
