"""Taking hidden channels out: by hand, for every architecture, and through a checkpoint."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from common import artifacts
from common.cli import UserError
from common.evaluation import compare_detections
from common.fast_inference import fast_graph
from common.hidden_channels import HiddenChannels, find_hidden_channels, keep_channels
from common.inference_graph import InferenceGraph, graph_predictor
from common.models import ARCHITECTURES, build_model, freeze_norms, load_model, save_model
from tests.random_detectors import random_detector, random_scene

CPU = torch.device("cpu")
FOUND = {  # architecture: (backbone, rpn, box_head)
    "demo": (6, 1, 2),
    "fasterrcnn_resnet50_fpn": (32, 1, 2),
    "fasterrcnn_resnet50_fpn_v2": (32, 2, 5),
    "fasterrcnn_mobilenet_v3_large_fpn": (14, 1, 2),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (14, 1, 2),
}


def with_values(layer, weight, bias=None):
    layer.weight.data.copy_(torch.tensor(weight).reshape(layer.weight.shape))
    if bias is not None:
        layer.bias.data.copy_(torch.tensor(bias))
    return layer


def narrow(model, count: int) -> None:
    """Keeps the last `count` channels of each hidden layer, or all of fewer."""
    for channels in find_hidden_channels(model):
        total = channels.count(model)
        keep_channels(model, channels, torch.arange(max(0, total - count), total))


# --- by hand ----------------------------------------------------------------------------------


def test_linear_layers():
    """2 * relu(x) + 5 * relu(3x - 1) without the middle unit, 3 * relu(-x)."""
    model = nn.Sequential(
        with_values(nn.Linear(1, 3), [1.0, -1.0, 3.0], [0.0, 0.0, -1.0]),
        nn.ReLU(),
        with_values(nn.Linear(3, 1), [2.0, 3.0, 5.0], [0.5]),
    )
    keep_channels(model, HiddenChannels("rpn", ("0",), ("2",)), torch.tensor([0, 2]))
    assert model[0].weight.tolist() == [[1.0], [3.0]]
    assert model[0].bias.tolist() == [0.0, -1.0]
    assert model[2].weight.tolist() == [[2.0, 5.0]]
    assert (model[0].out_features, model[2].in_features) == (2, 2)
    assert model(torch.tensor([[2.0]])).item() == 2 * 2 + 5 * 5 + 0.5
    assert model(torch.tensor([[-2.0]])).item() == 0.5


def test_a_flattened_map_has_a_column_for_each_place():
    """Channels 0 and 1 of a map of 1 x 2: columns (0, 1) and (2, 3)."""
    model = nn.Sequential(
        with_values(nn.Conv2d(1, 2, 1, bias=False), [10.0, 20.0]),
        nn.Flatten(),
        with_values(nn.Linear(4, 1, bias=False), [1.0, 2.0, 3.0, 4.0]),
    )
    keep_channels(model, HiddenChannels("box_head", ("0",), ("2",)), torch.tensor([1]))
    assert model[2].weight.tolist() == [[3.0, 4.0]]
    assert model(torch.tensor([[[[1.0, 2.0]]]])).item() == 20 * 1 * 3 + 20 * 2 * 4


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_normalisation_and_depthwise_convolution_go_along(norm):
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), norm(3), nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 2, 1)
    ).eval()
    for values in (model[1].weight, model[1].bias, model[1].running_mean):
        values.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    depthwise = model[2].weight.detach().clone()
    model[0].weight.requires_grad_(False)
    keep_channels(model, HiddenChannels("backbone", ("0", "1", "2"), ("3",)), torch.tensor([0, 2]))
    for values in (model[1].weight, model[1].bias, model[1].running_mean):
        assert values.tolist() == [1.0, 3.0]
    assert torch.equal(model[2].weight, depthwise[[0, 2]])
    assert (model[2].groups, model[2].in_channels, model[3].in_channels) == (2, 2, 2)
    assert model(torch.zeros(1, 2, 4, 4)).shape == (1, 2, 2, 2)
    assert [p.requires_grad for p in (model[0].weight, model[2].weight)] == [False, True]
    assert {name for name, _ in model[1].named_buffers()} >= {"running_mean", "running_var"}


# --- every architecture -----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_are_found_and_none_that_a_shortcut_adds_to(architecture):
    """A writer of hidden channels is read by its readers alone: with its channels narrowed, all
    other layers keep their shapes and the model runs."""
    model = build_model(architecture, 4, min_size=64, max_size=64)
    shapes = {name: values.shape for name, values in model.state_dict().items()}
    found = find_hidden_channels(model)
    parts = ("backbone", "rpn", "box_head")
    counts = tuple(sum(channels.part == part for channels in found) for part in parts)
    assert counts == FOUND[architecture]
    narrow(model, 8)
    touched = {layer for channels in found for layer in (*channels.writers, *channels.readers)}
    for name, values in model.state_dict().items():
        if name.rpartition(".")[0] not in touched:
            assert values.shape == shapes[name]
    assert all(channels.count(model) == 8 for channels in found)
    with torch.inference_mode():
        features = model.eval().backbone(torch.rand(1, 3, 64, 64))
        model([torch.rand(3, 64, 64)])
    wide = build_model(architecture, 4).eval().backbone(torch.rand(1, 3, 64, 64))
    assert [f.shape for f in features.values()] == [f.shape for f in wide.values()]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("architecture", ["demo", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_a_narrow_model_is_loaded_as_it_was_saved(architecture, frozen, tmp_path):
    model = build_model(architecture, 3, min_size=64, max_size=64).eval()
    if frozen:
        freeze_norms(model, 1e-3)
    narrow(model, 16)
    save(model, tmp_path / "narrow.pth", architecture)
    loaded = load_model(tmp_path / "narrow.pth", CPU).model
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    pixels = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        pairs = zip(model.backbone(pixels).values(), loaded.backbone(pixels).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def save(model, path, architecture="demo"):
    save_model(
        path,
        model,
        architecture=architecture,
        class_names=("a", "b"),
        category_ids=(1, 2),
        summary={},
    )


def test_the_fast_detector_finds_the_same_with_a_narrow_model():
    model = random_detector("demo", min_size=96, max_size=128, bounded=False)
    narrow(model, 24)
    scene = random_scene(np.random.default_rng(0), 96, 128)
    (expected,) = graph_predictor(InferenceGraph(model), CPU)([scene])
    (found,) = graph_predictor(fast_graph(copy.deepcopy(model), winograd=True), CPU)([scene])
    assert len(expected.scores) > 5
    parity = compare_detections([expected], [found])
    assert parity["matched"] == 1
    assert parity["max_box_error_px"] < 0.05


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("backbone.body.layer2.1.bn2.weight", lambda values: values[:-1]),  # a shortcut's
        ("backbone.body.layer2.0.conv1.weight", lambda values: torch.cat([values, values])),
        ("backbone.body.layer2.0.conv1.weight", lambda values: values[:8]),  # its norm is not
        ("backbone.body.layer2.0.conv1.weight", lambda values: values[:0]),
        ("backbone.body.layer2.0.conv1.weight", lambda values: torch.tensor(1.0)),
        ("backbone.body.layer2.0.conv1.weight", lambda values: "text"),
    ],
)
def test_other_shapes_are_refused_in_one_line(name, change, tmp_path):
    path = tmp_path / "model.pth"
    save(build_model("demo", 3), path)
    checkpoint = artifacts.load_checkpoint(path)
    weights = checkpoint["model_state_dict"]
    weights[name] = change(weights[name])
    artifacts.save_checkpoint(path, checkpoint, {})
    with pytest.raises(UserError, match="does not fit its model"):
        load_model(path, CPU)
