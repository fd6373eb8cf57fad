"""The comparison with torchvision's references: the baseline is theirs, and both see the same."""

from dataclasses import replace

import pytest
import torch

from benchmarks import training
from benchmarks.references_loop import ReferencesLoop
from common import artifacts, coco
from tests.coco_data import write_shapes
from tests.training_batches import CPU, SGD


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("bench") / "data", splits={"train": 6, "val": 2})


def build():
    return training.fine_tuning_form("demo", 3, 64, 96)


def test_the_baseline_steps_as_torchvision_and_sgd_do(data):
    split = coco.load_split(data, "train")
    recipe = replace(SGD, momentum=0.0)
    loop = ReferencesLoop(
        build(), recipe, split, [(0, 2)], device=CPU, workers=0, steps_per_epoch=1
    )
    model = build().train()
    own = model.transform
    model.transform = loop.model.transform
    assert type(own) is not type(model.transform)  # torchvision's own resize
    torch.manual_seed(5)  # flips and sampling
    read = loop.step()
    torch.manual_seed(5)
    images, targets = next(loop._batches)
    truth = [{key: t[key] for key in ("boxes", "labels")} for t in targets]
    losses = model(list(images), truth)
    assert read == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-6)
    sum(losses.values()).backward()
    for p, moved in zip(model.parameters(), loop.model.parameters(), strict=True):
        torch.testing.assert_close(moved, p - recipe.learning_rate * p.grad)


def test_a_fine_tuned_backbone_has_frozen_norms_and_stages():
    model = training.fine_tuning_form("fasterrcnn_mobilenet_v3_large_320_fpn", 3, None, None)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.backbone.modules())
    trained = {name.split(".")[2] for name, p in model.backbone.body.named_parameters(prefix="a.b")
               if p.requires_grad}  # fmt: skip
    assert trained < {name for name, _ in model.backbone.body.named_children()}


def test_the_table_and_the_json_say_the_same(data, tmp_path, capsys):
    output = tmp_path / "result.json"
    words = ["--data-path", data, "--min-size", 64, "--max-size", 96, "--batch-size", 2]
    words += ["--rounds", 2, "--map-epochs", 1, "--seeds", "3", "--output", output]
    assert training.main([*map(str, words), "--device", "cpu"]) == 0
    report = artifacts.read_json(output)
    arms = [row["arm"] for row in report["speed"]]
    assert arms[:2] == [report["baseline"], "ours_fp32"]
    assert report["speed"][0]["speedup"]["ratio"] == 1
    assert [row["arm"] for row in report["accuracy"]] == arms
    assert all(0 <= row["runs"][0]["map_50"] <= 1 for row in report["accuracy"])
    printed = capsys.readouterr().out
    assert report["table"] in printed
    for row in report["speed"]:
        assert f"| {row['arm']} | {row['step_ms']['p50']:.0f} /" in printed


@pytest.mark.parametrize("seeds", ["", "a", "1,,2"])
def test_seeds_that_are_no_numbers_are_one_line(capsys, seeds):
    with pytest.raises(SystemExit) as raised:
        training.main(["--seeds", seeds])
    assert raised.value.code == 2
    assert "--seeds" in capsys.readouterr().err


def test_the_models_of_all_arms_start_alike():
    first, second = build(), build()
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
