"""Training runs as a person starts them: the files they leave and what is in them."""

import csv
import json

import pytest
import torch

from common import artifacts, recorded_files
from common.coco import load_split
from common.evaluation import evaluate
from common.models import load_model, stock_predictor
from phase1_training import training_run
from tests.coco_data import write_shapes
from tests.training_runs import CHECKPOINTS, checksums, equal, metrics, run_training, weights

CPU = torch.device("cpu")
FILES = [f"{name}.{kind}" for name in CHECKPOINTS for kind in ("json", "pth")]
FILES += ["training.json", "training_curves.png", "training_log.csv", "val_predictions.png"]
FILES += ["per_class_ap.png", "training_batch.png", "evaluation.json", "worst_misses.png"]


def test_a_run_writes_its_files_and_nothing_else(straight):
    assert sorted(checksums(straight)) == sorted(FILES)
    assert [path.name for path in straight.iterdir() if path.is_dir()] == ["tensorboard"]


def test_training_json_keeps_its_contract(straight, shapes):
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
        assert set(row["val"]["losses"]) == {*row["losses"], "loss"}
        assert row["val"]["loss"] == pytest.approx(
            sum(row["val"]["losses"][n] for n in row["losses"])
        )
        assert (row["skipped_steps"], row["parts"]) == (0, 1)
    best = max(report["epochs"], key=lambda row: row["val"]["map"])
    assert report["best"]["epoch"] == best["epoch"]
    assert report["best"]["map_50"] == best["val"]["map_50"]
    assert report["complete"]
    assert report["images"] == {"train": 5, "val": 2}
    assert report["images_per_s"] > 0
    assert report["peak_memory_mib"] > 50
    digest = artifacts.sha256(shapes / "annotations" / "instances_train.json")
    assert digest in report["inputs"].values()


def test_the_evaluation_is_of_the_best_epoch(straight, shapes):
    evaluation = artifacts.read_json(straight / "evaluation.json")
    assert evaluation["schema"] == "evaluation/1"
    best = artifacts.read_json(straight / "training.json")["best"]
    assert [evaluation[key] for key in ("map", "map_50")] == [
        best[key] for key in ("map", "map_50")
    ]
    assert {row["name"]: row["ap"] or 0.0 for row in evaluation["classes"]} == {
        name: ap or 0.0 for name, ap in best["per_class"].items()
    }
    assert sorted(evaluation["inputs"].values()) == sorted(
        artifacts.sha256(path)
        for path in (
            straight / "best_model.pth",
            shapes / "annotations" / "instances_val.json",
        )
    )
    assert recorded_files.others(evaluation, straight) == []


def test_the_log_has_a_row_for_each_epoch(straight):
    with open(straight / "training_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    report = artifacts.read_json(straight / "training.json")
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    for row, epoch in zip(rows, report["epochs"], strict=True):
        assert float(row["train_loss"]) == pytest.approx(epoch["train_loss"], rel=1e-5)
        assert float(row["val_loss"]) == pytest.approx(epoch["val"]["loss"], rel=1e-5)
        assert float(row["map_50"]) == pytest.approx(epoch["val"]["map_50"], rel=1e-5)


def test_the_last_epoch_is_the_trained_model_and_the_best_is_the_best(straight):
    last, best = weights(straight / "last.pth"), weights(straight / "best_model.pth")
    assert equal(last, weights(straight / "trained_model.pth"))
    sidecar = artifacts.read_json(straight / "best_model.json")
    assert sidecar["epoch"] == artifacts.read_json(straight / "training.json")["best"]["epoch"]
    assert equal(last, best) == (sidecar["epoch"] == 2)


@pytest.mark.fault("P1-22")
def test_the_checkpoint_gives_the_scores_of_its_report(straight, shapes):
    loaded = load_model(straight / "best_model.pth", CPU)
    assert (loaded.class_names, loaded.category_ids) == (("disc", "box"), (3, 7))
    assert loaded.model.transform.min_size == (64,)
    scores = evaluate(stock_predictor(loaded.model, CPU), load_split(shapes, "val"))
    best = artifacts.read_json(straight / "training.json")["best"]
    # The layout of the weights in memory differs, and with it the last bits of a sum.
    assert scores["map"] == pytest.approx(best["map"], abs=0.02)


@pytest.mark.fault("C-13")
def test_the_same_seed_gives_the_same_weights_and_metrics(straight, shapes, tmp_path):
    assert run_training(shapes, tmp_path / "again", "--epochs", 2) == 0
    assert equal(weights(straight / "last.pth"), weights(tmp_path / "again" / "last.pth"))
    assert metrics(straight) == metrics(tmp_path / "again")


@pytest.mark.parametrize(("every_s", "drawn_at"), [(-1.0, [1, 2]), (3600.0, [2])])
def test_pictures_are_drawn_when_it_is_time_and_at_the_end(
    every_s, drawn_at, shapes, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(training_run, "PICTURES_EVERY_S", every_s)
    monkeypatch.setattr(
        training_run.plots, "training_curves", lambda epochs, path: drawn.append(len(epochs))
    )
    assert run_training(shapes, tmp_path / "run", "--epochs", 2) == 0
    assert drawn == drawn_at
    best = (tmp_path / "run").rglob("val_predictions.png")
    assert len(list(best)) == 1


def test_another_seed_gives_other_weights(straight, shapes, tmp_path):
    assert run_training(shapes, tmp_path / "other", "--epochs", 1, "--seed", -7) == 0
    assert not equal(weights(straight / "last.pth"), weights(tmp_path / "other" / "last.pth"))


def test_without_val_images_are_held_out_and_bf16_trains(tmp_path, capsys):
    data = write_shapes(tmp_path / "data", splits={"train": 4})
    output = tmp_path / "run"
    assert run_training(data, output, "--epochs", 1, "--amp", "bf16") == 0
    assert artifacts.read_json(output / "training.json")["images"] == {"train": 3, "val": 1}
    printed = capsys.readouterr().out
    assert "1 training images held out" in printed
    assert "Next:  python phase2_optimization/benchmark_inference.py --model-path" in printed
    state = weights(output / "last.pth")
    assert all(value.isfinite().all() for value in state.values())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


def test_an_average_of_the_weights_is_what_is_validated_and_shipped(straight, shapes, tmp_path):
    output = tmp_path / "averaged"
    assert run_training(shapes, output, "--epochs", 2, "--ema-decay", 0.5) == 0
    last, trained = (
        artifacts.load_checkpoint(output / f"{n}.pth") for n in ("last", "trained_model")
    )
    assert equal(
        last["model_state_dict"], weights(straight / "last.pth")
    )  # the training is the same
    model = load_model(output / "last.pth", CPU).model
    averages = last["state"]["ema"]["parameters"]
    for (name, parameter), average in zip(model.named_parameters(), averages, strict=True):
        assert torch.equal(trained["model_state_dict"][name], average)
        assert not torch.equal(parameter, average), name


def test_a_run_ends_early_when_the_map_no_longer_rises(shapes, tmp_path, capsys):
    output = tmp_path / "patient"
    assert run_training(shapes, output, "--epochs", 9, "--patience", 2, "--lr", 1e-12) == 0
    report = artifacts.read_json(output / "training.json")
    assert len(report["epochs"]) == 3  # one and two without a better map
    assert report["stopped_early"]
    assert report["complete"]
    assert "No better map for 2 epochs" in capsys.readouterr().out
    assert (
        run_training(shapes, output, "--epochs", 9, "--patience", 2, "--lr", 1e-12, "--resume") == 0
    )
    assert "The run is finished" in capsys.readouterr().out


def test_many_scales_and_frozen_stages_train(shapes, tmp_path):
    output, start = tmp_path / "run", tmp_path / "start"
    assert run_training(shapes, start, "--epochs", 1, "--lr", 1e-12) == 0
    more = ["--multi-scale", "48,64,80", "--trainable-stages", 1, "--clip-norm", 1]
    more += ["--anchor-sizes", "8,12,20,32,48,72,100,140"]
    assert run_training(shapes, output, "--epochs", 1, *more) == 0
    before = load_model(start / "last.pth", CPU).model  # as it was drawn: the step was tiny
    after = load_model(output / "last.pth", CPU).model
    pairs = zip(
        before.backbone.body.named_parameters(), after.backbone.body.parameters(), strict=True
    )
    moved = {
        name.split(".")[0] for (name, old), new in pairs if not torch.allclose(old, new, atol=1e-9)
    }
    assert moved == {"layer4"}
    means = {k: v for k, v in after.backbone.body.named_buffers() if k.endswith("running_mean")}
    assert {name.split(".")[0] for name, mean in means.items() if mean.any()} == {"layer4"}
    assert after.transform.min_size == (64,)
    assert after.rpn.anchor_generator.sizes == ((8, 12), (20, 32), (48, 72), (100, 140))


def test_the_last_images_of_a_batch_that_is_too_large_are_told(shapes, tmp_path, capsys):
    assert run_training(shapes, tmp_path / "run", "--epochs", 1, "--multi-scale", "64,500") == 2
    assert "--multi-scale 500: above the longest side, 96 px" in capsys.readouterr().err


def test_the_largest_batch_is_found_and_continued_with(shapes, tmp_path, capsys, monkeypatch):
    from phase1_training import memory

    monkeypatch.setattr(memory, "_extrapolated", lambda peak, largest, room: 3)
    words = ["--epochs", 1, "--batch-size", "auto"]
    assert run_training(shapes, tmp_path / "run", *words) == 0
    assert "--batch-size auto: 3 images of 96x64 px fit" in capsys.readouterr().out
    assert artifacts.read_json(tmp_path / "run" / "training.json")["recipe"]["batch_size"] == 3
    monkeypatch.setattr(memory, "_extrapolated", lambda peak, largest, room: 2)
    assert run_training(shapes, tmp_path / "run", *words, "--resume") == 0


def test_the_default_rate_is_that_of_the_images_there_are(shapes, tmp_path, capsys):
    more = ["--epochs", 1, "--optimizer", "sgd", "--batch-size", 1000]
    assert run_training(shapes, tmp_path / "run", *more) == 0
    assert "batch 1000, lr 0.00625," in capsys.readouterr().out  # 0.005 * 5 images / 4
