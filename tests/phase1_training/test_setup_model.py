"""Setting up a model: what it costs by hand, what is saved, and what is refused."""

import shlex

import pytest
import torch
from torch import nn

from common import artifacts
from common.models import build_model, load_model
from phase1_training import setup_model, train
from tests.coco_data import write_annotations, write_shapes

CPU = torch.device("cpu")
TINY = ["--min-size", "64", "--max-size", "96", "--device", "cpu"]


def test_cost_and_size_by_hand():
    model = build_model("demo", 3, min_size=64, max_size=96)
    operations = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            per_value = module.weight[0].numel()
        else:
            per_value = module.in_features
        operations.append(2 * output.numel() * per_value)

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    torch.manual_seed(0)
    facts = setup_model.describe(model, CPU)
    assert facts["gflops"] == pytest.approx(sum(operations) / 1e9)
    parameters = sum(p.numel() for p in model.parameters())
    assert facts["parameters_million"] == facts["trainable_million"] == parameters / 1e6
    assert facts["weights_mib"] == pytest.approx(4 * parameters / 2**20, rel=0.02)  # + statistics
    assert facts["input_size"] == [64, 85]  # 480x640: 85.33 rounded down
    model.backbone.requires_grad_(False)
    assert setup_model.describe(model, CPU)["trainable_million"] < facts["trainable_million"]


def test_a_model_for_a_data_set_is_saved_and_can_be_trained_from(tmp_path, capsys):
    data = write_shapes(tmp_path / "my data", splits={"train": 2, "val": 1})
    words = ["--data-path", str(data), "--output", str(tmp_path / "models"), *TINY]
    assert setup_model.main(words) == 0
    path = tmp_path / "models" / "initial_model.pth"
    loaded = load_model(path, CPU)
    assert (loaded.class_names, loaded.category_ids) == (("disc", "box"), (3, 7))
    assert (loaded.model.transform.min_size, loaded.model.transform.max_size) == ((64,), 96)
    sidecar = artifacts.read_json(path.with_suffix(".json"))
    assert (sidecar["schema"], sidecar["weights"]) == ("initial_model/1", "none")
    printed = capsys.readouterr().out
    assert "2 classes and the background: disc, box" in printed
    command = printed.split("Next:  ")[1].strip()
    run = tmp_path / "run"
    more = ["--epochs", "1", "--workers", "0", "--device", "cpu", "--output", str(run)]
    assert train.main([*shlex.split(command)[2:], *more]) == 0


def test_the_seed_settles_the_weights(tmp_path):
    def state(seed, name):
        words = ["--num-classes", "3", "--seed", str(seed), "--output", str(tmp_path / name)]
        assert setup_model.main([*words, *TINY]) == 0
        return load_model(tmp_path / name / "initial_model.pth", CPU).model.state_dict()

    first, again, other = state(1, "a"), state(1, "b"), state(2, "c")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_number_of_classes_includes_the_background(tmp_path, capsys):
    words = ["--num-classes", "3", "--output", str(tmp_path), *TINY]
    assert setup_model.main(words) == 0
    loaded = load_model(tmp_path / "initial_model.pth", CPU)
    assert loaded.class_names == ("class_1", "class_2")
    assert loaded.model.roi_heads.box_predictor.cls_score.out_features == 3
    assert "Next:" not in capsys.readouterr().out  # no data set is known to have these classes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-classes", "1"], "--num-classes 1: the background alone"),
        (["--num-classes", "3", "--weights", "coco"], "--weights coco: the demo model has none"),
        (["--num-classes", "3", "--min-size", "9", "--max-size", "8"], "--max-size 8: below"),
        ([], "no such folder – make the demo data with"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, capsys, words, message):
    assert setup_model.main([*words, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_broken_annotations_are_one_line(tmp_path, capsys):
    data = write_annotations(tmp_path / "data", categories=[])
    assert setup_model.main(["--data-path", str(data), "--output", str(tmp_path / "out")]) == 2
    assert '"categories" has no usable entry' in capsys.readouterr().err


def test_the_list_compares_all_and_saves_nothing(tmp_path, capsys, monkeypatch):
    sizes = dict.fromkeys(setup_model.models.SIZES, (64, 96))
    monkeypatch.setattr(setup_model.models, "SIZES", sizes)  # the real ones take half a minute
    words = ["--list", "--num-classes", "3", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert setup_model.main(words) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    costs = {row[0]: float(row[1]) for row in rows if len(row) > 2 and row[2] == "M"}
    assert costs.keys() == sizes.keys()
    # torchvision publishes 41.76 M, 43.71 M and 19.39 M for 91 classes; 88 classes fewer in the
    # predictor are 88 * 5 * 1025 parameters less.
    fewer = 88 * 5 * 1025 / 1e6
    assert costs["fasterrcnn_resnet50_fpn"] == pytest.approx(41.755286 - fewer, abs=0.06)
    assert costs["fasterrcnn_resnet50_fpn_v2"] == pytest.approx(43.712278 - fewer, abs=0.01)
    assert costs["fasterrcnn_mobilenet_v3_large_fpn"] == pytest.approx(19.386354 - fewer, abs=0.06)
    assert not (tmp_path / "out").exists()
