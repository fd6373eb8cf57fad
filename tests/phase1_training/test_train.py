"""Training runs as a person starts them: their files, their endings, and continuing them."""

import csv
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common import artifacts, cli, models
from common.models import load_model, stock_predictor
from phase1_training import run_files, train
from tests.coco_data import write_shapes

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TINY = ["--architecture", "demo", "--min-size", "64", "--max-size", "96", "--batch-size", "2"]
TINY += ["--warmup-steps", "1", "--workers", "0", "--device", "cpu"]
CHECKPOINTS = ("best_model", "last", "trained_model")
FILES = [f"{name}.{kind}" for name in CHECKPOINTS for kind in ("json", "pth")]
FILES += ["training.json", "training_curves.png", "training_log.csv", "val_predictions.png"]


def arguments(data: Path, output: Path, *more: object) -> list[str]:
    return ["--data-path", str(data), "--output", str(output), *TINY, *map(str, more)]


def run(data: Path, output: Path, *more: object) -> int:
    return train.main(arguments(data, output, *more))


def error_of(capsys) -> str:
    """The one line a person sees."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return artifacts.load_checkpoint(path)["model_state_dict"]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def metrics(output: Path) -> list[dict]:
    """The epochs of training.json without what depends on the machine's speed."""
    epochs = artifacts.read_json(output / "training.json")["epochs"]
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_s")}
        for row in epochs
    ]


def checksums(folder: Path) -> dict[str, str]:
    return {p.name: artifacts.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("train") / "data", splits={"train": 5, "val": 2})


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """Two epochs in one go."""
    output = tmp_path_factory.mktemp("straight")
    assert run(data, output, "--epochs", 2) == 0
    return output


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory) -> Path:
    """A run of two epochs that SIGKILL ended after the first was saved."""
    output = tmp_path_factory.mktemp("killed")
    code = (
        "import os, sys; from phase1_training import plots, train;"
        "plots.training_curves = lambda *args: os.kill(os.getpid(), 9);"
        "train.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *arguments(data, output, "--epochs", 2)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    return output


# --- what a run leaves ------------------------------------------------------------------------


def test_a_run_writes_its_files_and_nothing_else(straight):
    assert sorted(checksums(straight)) == sorted(FILES)


def test_training_json_keeps_its_contract(straight, data):
    report = json.loads((straight / "training.json").read_text())
    assert report["schema"] == "training/1"
    assert [row["epoch"] for row in report["epochs"]] == [1, 2]
    for row in report["epochs"]:
        assert row["train_loss"] == pytest.approx(sum(row["losses"].values()))
        assert set(row["losses"]) == {
            *("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
        }
        assert all(0 <= row["val"][key] <= 1 for key in ("map", "map_50", "map_75"))
        assert set(row["val"]["per_class"]) <= {"disc", "box"}
    best = max(report["epochs"], key=lambda row: row["val"]["map"])
    assert report["best"]["epoch"] == best["epoch"]
    assert report["best"]["map_50"] == best["val"]["map_50"]
    assert report["complete"]
    assert report["images"] == {"train": 5, "val": 2}
    assert report["images_per_s"] > 0
    assert report["peak_memory_mib"] > 50
    digest = artifacts.sha256(data / "annotations" / "instances_train.json")
    assert digest in report["inputs"].values()


def test_the_log_has_a_row_for_each_epoch(straight):
    with open(straight / "training_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    report = artifacts.read_json(straight / "training.json")
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    for row, epoch in zip(rows, report["epochs"], strict=True):
        assert float(row["train_loss"]) == pytest.approx(epoch["train_loss"], rel=1e-5)
        assert float(row["map_50"]) == pytest.approx(epoch["val"]["map_50"], rel=1e-5)


def test_the_last_epoch_is_the_trained_model_and_the_best_is_the_best(straight):
    last, best = weights(straight / "last.pth"), weights(straight / "best_model.pth")
    assert equal(last, weights(straight / "trained_model.pth"))
    sidecar = artifacts.read_json(straight / "best_model.json")
    assert sidecar["epoch"] == artifacts.read_json(straight / "training.json")["best"]["epoch"]
    assert equal(last, best) == (sidecar["epoch"] == 2)


def test_the_checkpoint_gives_the_scores_of_its_report(straight, data):
    from common.coco import load_split
    from common.evaluation import evaluate

    loaded = load_model(straight / "best_model.pth", CPU)
    assert (loaded.class_names, loaded.category_ids) == (("disc", "box"), (3, 7))
    assert loaded.model.transform.min_size == (64,)
    scores = evaluate(stock_predictor(loaded.model, CPU), load_split(data, "val"))
    best = artifacts.read_json(straight / "training.json")["best"]
    # The layout of the weights in memory differs, and with it the last bits of a sum.
    assert scores["map"] == pytest.approx(best["map"], abs=0.02)


def test_the_same_seed_gives_the_same_weights_and_metrics(straight, data, tmp_path):
    assert run(data, tmp_path / "again", "--epochs", 2) == 0
    assert equal(weights(straight / "last.pth"), weights(tmp_path / "again" / "last.pth"))
    assert metrics(straight) == metrics(tmp_path / "again")


def test_another_seed_gives_other_weights(straight, data, tmp_path):
    assert run(data, tmp_path / "other", "--epochs", 1, "--seed", -7) == 0
    assert not equal(weights(straight / "last.pth"), weights(tmp_path / "other" / "last.pth"))


def test_without_val_images_are_held_out_and_bf16_trains(tmp_path, capsys):
    data = write_shapes(tmp_path / "data", splits={"train": 4})
    output = tmp_path / "run"
    assert run(data, output, "--epochs", 1, "--amp", "bf16") == 0
    assert artifacts.read_json(output / "training.json")["images"] == {"train": 3, "val": 1}
    printed = capsys.readouterr().out
    assert "1 training images held out" in printed
    assert "Next:  python phase2_optimization/benchmark_inference.py --model-path" in printed
    state = weights(output / "last.pth")
    assert all(value.isfinite().all() for value in state.values())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


# --- continuing -------------------------------------------------------------------------------


def test_a_killed_run_continues_to_the_weights_of_an_uninterrupted_one(
    straight, killed, data, tmp_path, capsys
):
    assert [row["epoch"] for row in metrics(killed)] == [1]
    output = copy_of(killed, tmp_path / "continued")
    assert run(data, output, "--epochs", 2, "--resume") == 0
    assert equal(weights(output / "last.pth"), weights(straight / "last.pth"))
    assert equal(weights(output / "best_model.pth"), weights(straight / "best_model.pth"))
    assert metrics(output) == metrics(straight)
    assert {"trained_model.pth", "training_curves.png"} < set(checksums(output))
    said = [line.split("/")[-1] for line in capsys.readouterr().out.splitlines() if "Saved" in line]
    assert set(said) <= set(checksums(output))


def copy_of(run_folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in run_folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_best_model_lost_between_two_files_is_made_whole(killed, data, tmp_path):
    """Killed after last.pth, before best_model.pth: the best model would stay that of another."""
    output = copy_of(killed, tmp_path / "torn")
    for name in ("best_model.pth", "best_model.json", "training.json", "training_log.csv"):
        (output / name).unlink()
    epoch_1 = weights(output / "last.pth")
    assert run(data, output, "--epochs", 2, "--resume") == 0
    best = artifacts.read_json(output / "training.json")["best"]["epoch"]
    expected = epoch_1 if best == 1 else weights(output / "last.pth")
    assert equal(weights(output / "best_model.pth"), expected)


def test_a_finished_run_is_continued_by_nothing(straight, data, tmp_path):
    output = copy_of(straight, tmp_path / "finished")
    assert run(data, output, "--epochs", 2, "--resume") == 0
    assert equal(weights(output / "last.pth"), weights(straight / "last.pth"))
    assert metrics(output) == metrics(straight)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["--lr", 0.5], "learning_rate 0.001, not 0.5"),
        (["--epochs", 3], "epochs 2, not 3"),
        (["--seed", 1], "seed 0, not 1"),
        (["--batch-size", 4], "batch_size 2, not 4"),
        (["--min-size", 80], "min_size 64, not 80"),
        (["--optimizer", "sgd"], "optimizer adamw, not sgd"),
        (["--architecture", "fasterrcnn_resnet50_fpn"], "architecture demo, not fasterrcnn"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    straight, data, tmp_path, capsys, change, difference
):
    before = checksums(straight)
    assert run(data, straight, "--epochs", 2, *change, "--resume") == 2
    assert f"last.pth: was trained with {difference}" in error_of(capsys)
    assert checksums(straight) == before


def test_resuming_with_other_data_is_refused(straight, tmp_path, capsys):
    other = write_shapes(tmp_path / "other", splits={"train": 5, "val": 2}, seed=9)
    assert run(other, straight, "--epochs", 2, "--resume") == 2
    assert "was trained with train annotations (sha256)" in error_of(capsys)


def test_resuming_what_is_no_training_is_refused(straight, data, tmp_path, capsys):
    assert run(data, tmp_path / "none", "--epochs", 2, "--resume") == 2
    assert "last.pth: nothing to continue" in error_of(capsys)
    (tmp_path / "foreign").mkdir()
    model = load_model(straight / "last.pth", CPU).model
    models.save_model(
        tmp_path / "foreign" / "last.pth",
        model,
        architecture="demo",
        class_names=["disc", "box"],
        category_ids=[3, 7],
        summary={},
    )
    assert run(data, tmp_path / "foreign", "--epochs", 2, "--resume") == 2
    assert "last.pth: holds no training to continue" in error_of(capsys)
    (tmp_path / "foreign" / "last.json").unlink()
    (tmp_path / "foreign" / "last.pth").write_bytes((straight / "last.pth").read_bytes()[:-999])
    assert run(data, tmp_path / "foreign", "--epochs", 2, "--resume") == 2
    assert "last.pth: not a checkpoint, damaged" in error_of(capsys)


def test_an_existing_run_is_neither_replaced_nor_touched(straight, data, capsys):
    before = checksums(straight)
    assert run(data, straight, "--epochs", 1) == 2
    line = error_of(capsys)
    assert "holds another run" in line
    assert "--resume or replace it with --overwrite" in line
    assert run(data, straight, "--epochs", 1, "--resume", "--overwrite") == 2
    assert "contradicts --overwrite" in error_of(capsys)
    assert checksums(straight) == before


def test_overwrite_replaces_a_run(killed, data, tmp_path):
    output = copy_of(killed, tmp_path / "replaced")
    assert run(data, output, "--epochs", 1, "--seed", 5, "--overwrite") == 0
    assert not equal(weights(output / "last.pth"), weights(killed / "last.pth"))
    assert artifacts.read_json(output / "training.json")["complete"]


# --- being stopped ----------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_continue(data, tmp_path, number, status):
    output = tmp_path / "a run"
    words = [*arguments(data, output, "--epochs", 500), "--overwrite"]
    command = [sys.executable, str(ROOT / "phase1_training" / "train.py"), *words]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 100
    while not (output / "training.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == status, err
    assert "Traceback" not in err
    (line,) = (line for line in out.splitlines() if line.startswith("Stopped. "))
    continued = shlex.split(line.removeprefix("Stopped. Continue with: "))
    assert continued[2:] == [word for word in words if word != "--overwrite"] + ["--resume"]
    done = len(artifacts.load_checkpoint(output / "last.pth")["history"])
    assert done >= 1
    assert not list(output.glob(".tmp-*"))


def test_a_run_stopped_before_its_first_epoch_ended_promises_nothing(
    killed, data, tmp_path, capsys, monkeypatch
):
    """The last.pth in the folder is that of the run it was to replace."""
    from phase1_training import engine

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.Trainer, "train_epoch", interrupted)
    output = copy_of(killed, tmp_path / "replaced")
    before = checksums(output)
    assert run(data, output, "--epochs", 2, "--seed", 5, "--overwrite") == 130
    assert "Continue" not in capsys.readouterr().out
    assert checksums(output) == before


def test_interrupted_between_the_checkpoint_and_the_report_both_can_be_continued(
    data, tmp_path, monkeypatch
):
    save, calls = run_files.save, itertools.count()

    def interrupted_at_the_second(*args, **kwargs):
        if next(calls) == 1:
            raise cli.Terminated
        save(*args, **kwargs)

    monkeypatch.setattr(run_files, "save", interrupted_at_the_second)
    assert run(data, tmp_path / "run", "--epochs", 1) == 143
    assert not (tmp_path / "run" / "best_model.pth").exists()
    monkeypatch.setattr(run_files, "save", save)
    assert run(data, tmp_path / "run", "--epochs", 1, "--resume") == 0
    assert equal(*(weights(tmp_path / "run" / f"{name}.pth") for name in ("best_model", "last")))
