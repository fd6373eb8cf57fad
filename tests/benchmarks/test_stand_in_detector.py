"""The stand-in is a checkpoint like any other, and its own detections are its annotations."""

import torch

from benchmarks import stand_in_detector
from common import models
from common.coco import load_split
from common.evaluation import evaluate
from tests.coco_data import write_shapes


def test_the_stand_in_finds_its_annotations(tmp_path):
    data = write_shapes(tmp_path / "data", splits={"train": 3, "val": 4})
    output = tmp_path / "stand_in"
    arguments = ["--architecture", "demo", "--images", "2", "--data-path", str(data)]
    assert stand_in_detector.main([*arguments, "--output", str(output)]) == 0
    loaded = models.load_model(output / "model.pth", torch.device("cpu"))
    split = load_split(output / "data", "val")
    assert len(split.records) == 2
    assert split.class_names == loaded.class_names
    predict = models.stock_predictor(loaded.model, torch.device("cpu"))
    assert evaluate(predict, split)["map"] > 0.9
