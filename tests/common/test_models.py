"""Detectors: built, saved, loaded and run; nothing but a UserError for a wrong checkpoint."""

import math
import urllib.request
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.misc import FrozenBatchNorm2d

from common import artifacts, models, paths
from common.cli import UserError
from common.models import (
    ARCHITECTURES,
    Detections,
    build_model,
    load_model,
    resized_size,
    save_model,
    stock_predictor,
)
from tests.random_detectors import random_scene

CPU = torch.device("cpu")
NAMES = {"class_names": ["disc", "box"], "category_ids": [3, 7]}
MOBILENET = "fasterrcnn_mobilenet_v3_large_320_fpn"


def scenes(*sizes):
    rng = np.random.default_rng(0)
    return [random_scene(rng, height, width) for height, width in sizes]


def same(found: list[Detections], expected: list[Detections]) -> bool:
    return all(
        np.array_equal(*values)
        for pair in zip(found, expected, strict=True)
        for values in zip(*pair, strict=True)
    )


# --- the resize -------------------------------------------------------------------------------


def test_the_resize_rule_by_hand():
    assert resized_size(480, 640, 800, 1333) == (800, 1066)  # 1066.67, rounded down
    assert resized_size(640, 480, 800, 1333) == (1066, 800)
    assert resized_size(100, 1000, 800, 1333) == (133, 1333)  # the long side is the limit
    assert resized_size(256, 512, 256, 512) == (256, 512)
    assert resized_size(1, 4000, 256, 512) == (1, 512)  # never nothing
    assert resized_size(1, 1, 256, 512) == (256, 256)


def torchvision_size(height, width, min_size, max_size):
    """The floating-point rule of torchvision's eager models, without resizing anything."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return math.floor(height * scale), math.floor(width * scale)


@pytest.mark.parametrize(("min_size", "max_size"), [(256, 512), (320, 640), (800, 1333)])
def test_the_integer_rule_differs_from_torchvisions_by_one_pixel_at_most(min_size, max_size):
    differing, total = 0, 0
    for height in range(16, 2200, 37):
        for width in range(16, 2200, 41):
            ours = resized_size(height, width, min_size, max_size)
            theirs = torchvision_size(height, width, min_size, max_size)
            assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1
            differing += ours != theirs
            total += 1
            assert resized_size(*ours, min_size, max_size) == ours  # resizing twice is once
    assert differing / total < 0.05


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 77), (20, 200), (64, 64), (96, 64)])
def test_the_transform_equals_torchvisions_where_the_sizes_agree(size):
    assert resized_size(*size, 64, 96) == torchvision_size(*size, 64, 96)
    stock = GeneralizedRCNNTransform(64, 96, [0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    model = type("Model", (), {"transform": stock})
    ours = models.exact_resize_transform(model, 64, 96)
    image = torch.rand(3, *size)
    target = {"boxes": torch.tensor([[1.0, 2.0, 15.0, 17.0]]), "labels": torch.ones(1)}
    for kwargs in ({}, {"targets": [target]}):
        (found, boxes), (expected, expected_boxes) = (t([image], **kwargs) for t in (ours, stock))
        assert torch.equal(found.tensors, expected.tensors)
        assert found.image_sizes == expected.image_sizes
        if kwargs:
            assert torch.equal(boxes[0]["boxes"], expected_boxes[0]["boxes"])
    assert torch.equal(target["boxes"], torch.tensor([[1.0, 2.0, 15.0, 17.0]]))


def test_the_transform_follows_the_integer_rule_where_torchvision_does_not():
    height, width = next(
        (height, width)
        for height in range(40, 200)
        for width in range(40, 200)
        if resized_size(height, width, 64, 96) != torchvision_size(height, width, 64, 96)
    )
    model = build_model("demo", 2, min_size=64, max_size=96)
    images, _ = model.transform([torch.rand(3, height, width)])
    assert images.image_sizes == [resized_size(height, width, 64, 96)]


# --- building ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_trains_and_detects(architecture):
    torch.manual_seed(0)
    model = build_model(architecture, 4, min_size=64, max_size=96)
    assert model.training
    assert model.roi_heads.box_predictor.cls_score.out_features == 4
    assert (model.transform.min_size, model.transform.max_size) == ((64,), 96)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([3])}
    losses = model([torch.rand(3, 64, 80)], [target])
    assert all(loss.isfinite() for loss in losses.values())
    (found,) = stock_predictor(model.eval(), CPU)(scenes((48, 64)))
    assert found.boxes_xyxy.shape == (len(found.scores), 4)
    if architecture != "demo":  # its weights are torchvision's own
        stock = getattr(detection, architecture)(weights=None, weights_backbone=None, num_classes=4)
        stock.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
def test_the_default_sizes_are_torchvisions(architecture):
    stock = getattr(detection, architecture)(weights=None, weights_backbone=None).transform
    expected = (stock.min_size[-1], stock.max_size)
    assert models.input_size(architecture, None, None) == expected


def test_sizes_given_replace_the_defaults():
    assert models.input_size("demo", None, None) == models.SIZES["demo"]
    assert models.input_size("demo", 600, None) == (600, 600)
    assert models.input_size("demo", 100, 200) == (100, 200)
    with pytest.raises(UserError, match="--max-size 100: below --min-size"):
        models.input_size("demo", None, 100)


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [("resnet", "none", "--architecture resnet"), ("demo", "coco", "the demo model has none")],
)
def test_what_cannot_be_built_is_one_line(architecture, weights, message):
    with pytest.raises(UserError, match=message):
        build_model(architecture, 2, weights=weights)


# --- pretrained weights -----------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub folder on a machine without network."""

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.mark.parametrize("weights", ["coco", "imagenet"])
@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
@pytest.mark.fault("P1-56")
def test_offline_one_line_says_which_file_to_put_where(hub, architecture, weights):
    with pytest.raises(UserError) as raised:
        build_model(architecture, 3, weights=weights)
    line = str(raised.value)
    assert "no network" in line
    assert f"into {hub}, or use --weights none" in line
    backbone = "resnet50" if "resnet50" in architecture else "mobilenet_v3_large"
    assert f"put {architecture if weights == 'coco' else backbone}" in line


def trusted(monkeypatch, sha256_prefix):
    """Takes the random weights of a test for the published ones."""
    monkeypatch.setattr(models.artifacts, "sha256", lambda path: sha256_prefix + "0" * 56)


def test_coco_weights_load_from_the_hub_folder_with_a_new_predictor(hub, monkeypatch):
    torch.manual_seed(3)
    source = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=91
    )
    url = detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.DEFAULT.url
    hub.mkdir(parents=True)
    torch.save(source.state_dict(), hub / url.rsplit("/", 1)[1])
    trusted(monkeypatch, "907ea3f9")
    model = build_model(MOBILENET, 3, weights="coco")
    state, expected = model.state_dict(), source.state_dict()
    same_keys = [key for key in state if "box_predictor" not in key]
    assert len(same_keys) > 200
    assert all(torch.equal(state[key], expected[key]) for key in same_keys)
    assert model.roi_heads.box_predictor.cls_score.out_features == 3
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())


def test_imagenet_weights_load_into_the_backbone_only(hub, monkeypatch):
    from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large

    source = mobilenet_v3_large()
    hub.mkdir(parents=True)
    file = hub / MobileNet_V3_Large_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save(source.state_dict(), file)
    trusted(monkeypatch, "8738ca79")
    model = build_model(MOBILENET, 3, weights="imagenet")
    assert torch.equal(model.backbone.body["0"][0].weight, source.features[0][0].weight)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short"])
@pytest.mark.fault("P1-56")
def test_a_damaged_weights_file_is_refused_before_it_is_unpickled(hub, content):
    file = hub / "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
    hub.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"907ea3f9.pth: is damaged: .*delete it and fetch"):
        build_model(MOBILENET, 3, weights="coco")


# --- checkpoints ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    torch.manual_seed(0)
    return build_model("demo", 3, min_size=64, max_size=96).eval()


@pytest.fixture
def saved(demo, tmp_path):
    path = tmp_path / "model.pth"
    save_model(path, demo, architecture="demo", **NAMES, summary={"map": 0.5}, epoch=4)
    return path


def test_a_loaded_model_detects_what_the_saved_one_did(demo, saved):
    loaded = load_model(saved, CPU)
    assert not loaded.model.training
    assert (loaded.architecture, loaded.path) == ("demo", saved)
    assert (loaded.class_names, loaded.category_ids) == (("disc", "box"), (3, 7))
    images = scenes((48, 64), (100, 50), (64, 96))
    expected = stock_predictor(demo, CPU)(images)
    assert same(stock_predictor(loaded.model, CPU)(images), expected)
    assert sum(len(found.scores) for found in expected) > 10
    for found in expected:
        assert [values.dtype for values in found] == [np.float32, np.float32, np.int64]
    assert artifacts.read_json(saved.with_suffix(".json"))["map"] == 0.5
    assert artifacts.load_checkpoint(saved)["epoch"] == 4


def test_predictions_are_in_pixels_of_the_original_image(demo):
    (found,) = stock_predictor(demo, CPU)(scenes((300, 400)))
    assert 96 < found.boxes_xyxy.max() <= 400.001  # rounding of the way back
    assert found.boxes_xyxy.min() >= 0


def test_frozen_layers_and_their_eps_return(tmp_path):
    """As torchvision builds them with COCO weights: frozen normalisation, stages not trained."""
    torch.manual_seed(0)
    model = build_model(MOBILENET, 3, min_size=64, max_size=96)
    models.freeze_norms(model, 0.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("backbone.body.0", "backbone.body.1.")))
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.uniform_(1e-4, 2e-4)  # where an eps of 1e-5 is felt
            module.weight.uniform_(0.003, 0.006)
    path = tmp_path / "model.pth"
    save_model(path, model, architecture=MOBILENET, **NAMES, summary={})
    loaded = load_model(path, CPU).model
    norms = [module for module in loaded.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 46
    assert {norm.eps for norm in norms} == {0.0}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trained
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = model.eval().backbone(image), loaded.backbone(image)
    assert all(torch.equal(found[level], values) for level, values in expected.items())


def test_without_a_path_the_best_model_is_taken_or_asked_for(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BEST_MODEL", tmp_path / "best_model.pth")
    with pytest.raises(UserError, match=r"best_model.pth: no such file – train one with"):
        load_model(None, CPU)
    save_model(paths.BEST_MODEL, demo, architecture="demo", **NAMES, summary={})
    assert load_model(None, CPU).path == tmp_path / "best_model.pth"


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "yolo"},
        {"architecture": None},
        {"architecture": "fasterrcnn_mobilenet_v3_large_320_fpn"},
        {"num_classes": 4},
        {"num_classes": "3"},
        {"num_classes": -1},
        {"class_names": ["disc"]},
        {"class_names": 5},
        {"category_ids": [3]},
        {"min_size": "64"},
        {"min_size": 97},
        {"model_state_dict": {}},
        {"model_state_dict": [1]},
        {"model_state_dict": {"backbone": 1}},
    ],
    ids=repr,
)
def test_a_checkpoint_that_does_not_fit_is_one_line_naming_it(saved, tmp_path, change):
    wrong = tmp_path / "wrong.pth"
    artifacts.save_checkpoint(wrong, {**artifacts.load_checkpoint(saved), **change}, {})
    with pytest.raises(UserError) as raised:
        load_model(wrong, CPU)
    assert str(raised.value).startswith(f"{wrong}: does not fit its model (")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "key", ["architecture", "num_classes", "min_size", "max_size", "class_names", "category_ids"]
)
def test_a_missing_entry_is_named(saved, tmp_path, key):
    content = artifacts.load_checkpoint(saved)
    del content[key]
    artifacts.save_checkpoint(tmp_path / "wrong.pth", content, {})
    with pytest.raises(UserError, match=f"lacks the entry '{key}'"):
        load_model(tmp_path / "wrong.pth", CPU)


def test_a_plain_state_dict_is_no_checkpoint(demo, tmp_path):
    torch.save(demo.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"plain.pth: not a checkpoint of this project"):
        load_model(tmp_path / "plain.pth", CPU)
