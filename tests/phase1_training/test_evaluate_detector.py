"""The script evaluates any checkpoint as train.py does its best one, and refuses what is unfit."""

import shutil

import pytest

from common import artifacts
from phase1_training import evaluate_detector
from tests.coco_data import write_shapes
from tests.training_runs import error_of


def evaluate(straight, data, output, *more):
    words = ["--model-path", straight / "best_model.pth", "--data-path", data, "--output", output]
    return evaluate_detector.main([*map(str, [*words, "--device", "cpu", *more])])


def test_it_finds_what_the_training_found(straight, shapes, tmp_path, capsys):
    assert evaluate(straight, shapes, tmp_path) == 0
    ours = artifacts.read_json(tmp_path / "evaluation.json")
    theirs = artifacts.read_json(straight / "evaluation.json")
    assert ours.keys() == theirs.keys()
    for key in ("schema", "architecture", "split", "images"):
        assert ours[key] == theirs[key]
    assert sorted(ours["inputs"].values()) == sorted(theirs["inputs"].values())
    # The layout of the weights in memory differs, and with it the last bits of a sum.
    assert ours["map"] == pytest.approx(theirs["map"], abs=0.02)
    printed = capsys.readouterr().out
    assert "2 images: map " in printed
    assert "Saved " in printed
    assert "Next:  python -m common.report" in printed


def test_the_training_images_can_be_evaluated_too(straight, shapes, tmp_path):
    assert evaluate(straight, shapes, tmp_path, "--split", "train") == 0
    report = artifacts.read_json(tmp_path / "evaluation.json")
    assert (report["split"], report["images"]) == ("train", 5)


def test_data_of_other_classes_is_one_line(straight, shapes, tmp_path, capsys):
    data = shutil.copytree(shapes, tmp_path / "data")
    path = data / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"disc"', '"ball"'))
    assert evaluate(straight, data, tmp_path / "out") == 2
    error = error_of(capsys)
    assert "knows the classes disc, box, the data has ball, box" in error
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_one_line(shapes, tmp_path, capsys):
    assert evaluate(tmp_path, shapes, tmp_path / "out") == 2
    assert "best_model.pth: no such file" in error_of(capsys)


def test_without_val_annotations_it_takes_what_train_holds_out(straight, tmp_path):
    data = write_shapes(tmp_path / "data", splits={"train": 4})
    assert evaluate(straight, data, tmp_path / "out") == 0
    assert artifacts.read_json(tmp_path / "out" / "evaluation.json")["images"] == 1
