"""Half precision in the heavy modules only."""

import numpy as np
import pytest
import torch
from torch import nn

from common.inference_graph import InferenceGraph
from common.low_precision import HEAVY_MODULES, InPrecision, replace_heavy_modules
from tests.random_detectors import random_detector, random_scene


def test_computes_in_the_precision_and_returns_fp32():
    layer = nn.Linear(3, 2)
    wrapped = InPrecision(layer, torch.bfloat16)
    x = torch.rand(4, 3)
    expected = layer.bfloat16()(x.bfloat16())
    found = wrapped(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.float())


def test_leaves_the_original_alone_and_takes_lists():
    layer = nn.ParameterList([torch.ones(1)])
    head = nn.Module()
    head.scale = nn.Parameter(torch.tensor(1.0009765625))  # 1 in bfloat16
    head.forward = lambda levels: [level * head.scale for level in levels]
    wrapped = InPrecision(head, torch.bfloat16)
    assert head.scale.dtype == layer[0].dtype == torch.float32
    assert all(level.dtype == torch.float32 for level in wrapped([torch.ones(2), torch.ones(3)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_in_half_precision_is_near_and_its_boxes_are_fp32(dtype):
    model = random_detector("demo", min_size=96, max_size=192)
    graph, exact = InferenceGraph(model), InferenceGraph(model)
    replace_heavy_modules(graph, lambda module: InPrecision(module, dtype))
    assert all(isinstance(getattr(graph, name), InPrecision) for name in HEAVY_MODULES)
    image = torch.from_numpy(random_scene(np.random.default_rng(1), 80, 120))[None]
    with torch.inference_mode():
        (boxes, scores, *_), (exact_boxes, exact_scores, *_) = graph(image), exact(image)
    if dtype is torch.float32:
        assert torch.equal(boxes, exact_boxes)
    assert boxes.dtype == scores.dtype == torch.float32
    assert (scores.max() - exact_scores.max()).abs() < 0.1
    assert not torch.equal(boxes, boxes.bfloat16().float())  # coordinates were not rounded
