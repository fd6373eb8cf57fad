"""Mistakes of a person and of their data: one line, nothing half-written."""

import numpy as np
import pytest
import torch

from common import artifacts
from common.models import load_model
from phase1_training import train
from tests.coco_data import write_shapes
from tests.training_runs import error_of, run_training, weights

CPU = torch.device("cpu")


@pytest.mark.fault("P1-53")
def test_a_loss_that_explodes_is_one_line(shapes, tmp_path, capsys):
    more = ["--epochs", 3, "--optimizer", "sgd", "--lr", 1e25, "--warmup-steps", 0]
    assert run_training(shapes, tmp_path / "run", *more) == 2
    line = error_of(capsys)
    assert "no finite number" in line or "not a finite number" in line
    assert "lower --lr" in line


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.fault("P1-41")
def test_a_damaged_image_is_one_line_naming_it(tmp_path, capsys, workers):
    data = write_shapes(tmp_path / "data", splits={"train": 3, "val": 1})
    picture = data / "images" / "train_1.png"
    picture.write_bytes(picture.read_bytes()[:300])
    assert run_training(data, tmp_path / "run", "--epochs", 1, "--workers", workers) == 2
    assert "train_1.png: cannot be decoded" in error_of(capsys)
    assert not (tmp_path / "run" / "last.pth").exists()


@pytest.mark.parametrize(
    "words",
    ["--epochs 0", "--epochs -1", "--epochs x", "--batch-size 0", "--lr nan", "--lr 0", "--lr -1",
     "--workers -1", "--min-size 0", "--architecture yolo", "--amp fp8",
     "--epoch 3", "--seed 99999999999999999999", "--momentum 1", "--ema-decay 1",
     "--batch-size big"],
)  # fmt: skip
@pytest.mark.fault("P1-50")
def test_impossible_options_are_one_line(capsys, words):
    with pytest.raises(SystemExit) as raised:
        train.main(words.split())
    assert raised.value.code == 2
    assert words.split()[0] in error_of(capsys)


def test_a_device_that_is_not_there_is_one_line(shapes, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert run_training(shapes, tmp_path / "run", "--device", "cuda") == 2
    assert "--device cuda: no CUDA device found" in error_of(capsys)
    assert run_training(shapes, tmp_path / "run", "--amp", "fp16") == 2
    assert "--amp fp16: needs a GPU" in error_of(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("P1-48")
def test_an_output_that_cannot_be_written_is_told_before_an_epoch(shapes, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run_training(shapes, tmp_path / "file") == 2
    assert "file: cannot be written to" in error_of(capsys)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.fault("P1-01")
def test_missing_data_names_the_command_that_makes_it(tmp_path, capsys):
    assert run_training(tmp_path / "none", tmp_path / "run") == 2
    assert "none: no such folder" in error_of(capsys)
    assert train.main(["--output", str(tmp_path / "run")]) == 2  # the demo data
    assert "make_demo_data.py" in error_of(capsys)


# --- starting from a model --------------------------------------------------------------------


def test_a_model_to_start_from_gives_architecture_size_and_weights(straight, shapes, tmp_path):
    words = ["--data-path", shapes, "--output", tmp_path / "run", "--device", "cpu", "--workers", 0]
    words += ["--model-path", straight / "last.pth", "--epochs", 1, "--lr", 1e-12]
    assert train.main(list(map(str, words))) == 0
    loaded = load_model(tmp_path / "run" / "last.pth", CPU)
    assert (loaded.model.transform.min_size, loaded.model.transform.max_size) == ((64,), 96)
    before, after = weights(straight / "last.pth"), weights(tmp_path / "run" / "last.pth")
    name = "roi_heads.box_predictor.bbox_pred.weight"
    np.testing.assert_allclose(after[name], before[name], atol=1e-6)


@pytest.mark.fault("P1-23")
def test_a_model_of_other_classes_is_refused(straight, shapes, tmp_path, capsys):
    content = artifacts.load_checkpoint(straight / "last.pth")
    other = tmp_path / "other.pth"
    artifacts.save_checkpoint(other, {**content, "class_names": ["disc", "ball"]}, {})
    words = ["--data-path", shapes, "--output", tmp_path / "run", "--model-path", other]
    assert train.main([*map(str, words)]) == 2
    assert "knows the classes disc, ball, the data has disc, box" in error_of(capsys)
    assert train.main([*map(str, words), "--min-size", "64"]) == 2
    assert "--min-size: is settled by --model-path" in error_of(capsys)
    assert not (tmp_path / "run").exists()
