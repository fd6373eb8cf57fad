"""Restarts by torchrun: the same command again goes on with what its own launch has saved."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from common import artifacts
from phase1_training import run_folder
from phase1_training.distributed import SHARED_STORE, join
from tests.child_processes import run_ranks
from tests.coco_data import write_shapes
from tests.phase1_training.test_resume import signal_after_step
from tests.training_runs import arguments, equal, error_of, metrics, run_training, weights

ROOT = Path(__file__).resolve().parents[2]


def restarted(monkeypatch, launch: str, restarts: int) -> None:
    """The environment of one rank under torchrun."""
    folder = f"/tmp/torchelastic_x/{launch}/attempt_{restarts}/0/error.json"
    values = {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_ERROR_FILE": folder}
    for name, value in {**values, "TORCHELASTIC_RESTART_COUNT": str(restarts)}.items():
        monkeypatch.setenv(name, value)


# --- which launch this is ---------------------------------------------------------------------


def launch_of_each(agents: Sequence[str], counts: Sequence[int]) -> tuple:
    rank = int(os.environ["RANK"])
    os.environ["TORCHELASTIC_ERROR_FILE"] = f"/logs/{agents[rank]}/attempt_3/0/error.json"
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(counts[rank])
    with join("cpu") as ranks:
        return ranks.launches, ranks.restarts


def test_all_ranks_know_the_agents_of_all_and_the_most_restarts():
    """An agent whose own rank was not lost does not always count the restart."""
    agents, counts = ["none_b", "none_a", "none_a"], [0, 2, 2]
    assert run_ranks(launch_of_each, 3, agents, counts) == [(("none_a", "none_b"), 2)] * 3


@pytest.mark.parametrize("error_file", ["", "/dev/null", "error.json"])
def test_without_a_folder_of_torchrun_there_is_no_launch(monkeypatch, error_file):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", error_file)
    with join("cpu") as ranks:
        assert (ranks.launches, ranks.restarts) == ((), 0)


def test_a_store_that_outlives_restarts_is_warned_of(monkeypatch, caplog):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for restarts, warned in (("0", False), ("3", True)):
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
        with join("cpu"):
            pass
        assert (SHARED_STORE in caplog.text) is warned


def test_a_checkpoint_is_of_a_launch_that_shares_an_agent(tmp_path):
    assert not run_folder.is_of_launch(tmp_path, ["a"])
    artifacts.write_json(tmp_path / "last.json", {"launches": ["a", "b"]})
    assert run_folder.is_of_launch(tmp_path, ["b", "c"])
    assert not run_folder.is_of_launch(tmp_path, ["c"])
    assert not run_folder.is_of_launch(tmp_path, [])
    artifacts.write_json(tmp_path / "last.json", {})  # of an older version
    assert not run_folder.is_of_launch(tmp_path, ["a"])


# --- what a restarted rank does ---------------------------------------------------------------


@pytest.fixture
def stopped(shapes, tmp_path, monkeypatch) -> Path:
    """A run of two epochs under torchrun, stopped after its second step of three."""
    from phase1_training import training_run

    restarted(monkeypatch, "none_first", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run._Session, "_after_step", training_run._Session._after_step)
        signal_after_step(signal.SIGTERM, 2)
        assert run_training(shapes, tmp_path / "run", "--epochs", 2) == 143
    return tmp_path / "run"


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
def test_a_restart_goes_on_whatever_the_first_start_was_asked_for(
    stopped, straight, shapes, monkeypatch, capsys, more
):
    restarted(monkeypatch, "none_first", 1)
    capsys.readouterr()
    assert run_training(shapes, stopped, "--epochs", 2, *more) == 0
    line = "Restarted by torchrun (1 of --max-restarts used): continuing after step 2 of 3 of epoch"
    assert f"{line} 1\n" in capsys.readouterr().out
    assert metrics(stopped) == metrics(straight)
    assert equal(weights(stopped / "trained_model.pth"), weights(straight / "trained_model.pth"))


def test_a_restart_of_another_launch_is_refused_as_its_first_start_was(
    stopped, shapes, monkeypatch, capsys
):
    """torchrun starts a refused command again, too, and that must not continue a foreign run."""
    before = artifacts.sha256(stopped / "last.pth")
    for restarts in (0, 1):
        restarted(monkeypatch, "none_second", restarts)
        capsys.readouterr()
        assert run_training(shapes, stopped, "--epochs", 2) == 2
        assert "holds another run" in error_of(capsys)
    assert artifacts.sha256(stopped / "last.pth") == before


def test_a_restart_before_anything_was_saved_starts_anew(shapes, tmp_path, monkeypatch, capsys):
    restarted(monkeypatch, "none_first", 1)
    assert run_training(shapes, tmp_path / "run", "--epochs", 1) == 0
    assert "ontinuing" not in capsys.readouterr().out


def test_another_number_of_processes_is_one_line(stopped, shapes, monkeypatch, capsys):
    """As when torchrun was given MIN:MAX nodes and goes on with fewer."""
    from phase1_training import run_files

    settings = run_files.settings
    monkeypatch.setattr(run_files, "settings", lambda *a: {**settings(*a), "processes": 2})
    restarted(monkeypatch, "none_first", 1)
    capsys.readouterr()
    assert run_training(shapes, stopped, "--epochs", 2) == 2
    line = error_of(capsys)
    assert "was trained with processes 1, not 2" in line
    assert "give the same (to torchrun one --nnodes, no MIN:MAX)" in line


# --- rehearsed: two machines on one -----------------------------------------------------------


def rehearse(data: Path, output: Path, kills: str) -> list[str]:
    """Two torchrun agents with a rank each, as on two machines; returns what they have printed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = output.with_name(f"{output.name}_log")
    log.mkdir()
    words = arguments(data, output, "--epochs", 2, "--save-every-s", "0.001")
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--max-restarts=3"]
    command += ["--local-addr=127.0.0.1", str(ROOT / "tests" / "elastic_training.py"), str(log)]
    name, value = SHARED_STORE.split("=")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", name: value}
    agents = [
        subprocess.Popen(
            [*command, kills, *words],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        printed = [agent.communicate(timeout=900)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()  # it ends its rank as well
            agent.wait()
    assert [agent.returncode for agent in agents] == [0, 0], printed
    return printed


def rows_of(output: Path, rank: int) -> list[dict]:
    """Epoch, step, images and losses of every step that a rank has trained."""
    log = output.with_name(f"{output.name}_log") / f"rank_{rank}.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_ranks_killed_within_an_epoch_lose_and_repeat_nothing_that_was_saved(tmp_path):
    """First the one rank, in the first epoch, then the main one, in the second. Each was killed
    after a step that was not saved yet: it alone is trained twice, with the same images and losses,
    and everything else is as in a run that nobody disturbed."""
    data = write_shapes(tmp_path / "data", splits={"train": 11, "val": 2})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    rehearse(data, straight, "none")
    first, second = rehearse(data, killed, "1:1:2,0:2:2")
    assert {file.name for file in (tmp_path / "killed_log").glob("killed_*")} == {
        "killed_1_1_2",
        "killed_0_2_2",
    }
    for rank in (0, 1):
        expected, found = rows_of(straight, rank), rows_of(killed, rank)
        assert [(row["epoch"], row["step"]) for row in expected] == [
            (epoch, step) for epoch in (1, 2) for step in (1, 2, 3)
        ]
        again = [row for row, before in zip(found[1:], found[:-1], strict=True) if row == before]
        assert [(row["epoch"], row["step"]) for row in again] == [(1, 2), (2, 2)]
        for row in again:
            found.remove(row)
        assert found == expected
    printed = first + second
    assert "used): continuing after step 1 of 3 of epoch 1\n" in printed
    assert "used): continuing after step 1 of 3 of epoch 2\n" in printed
    for ours, theirs in zip(metrics(killed), metrics(straight), strict=True):
        assert ours["val"] == theirs["val"]
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-6)  # added in another order
    for name in ("last", "best_model", "trained_model"):
        assert equal(weights(killed / f"{name}.pth"), weights(straight / f"{name}.pth")), name
