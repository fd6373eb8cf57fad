"""The fast graph against the stock model; each of its parts has tests of its own."""

import copy

import numpy as np
import pytest
import torch

from common import evaluation
from common.fast_inference import fast_graph, shipped_graph
from common.inference_graph import graph_predictor
from common.models import stock_predictor
from common.roi_align import ChannelsLastMLPHead
from phase3_tracking import pipeline
from tests.random_detectors import random_detector

CPU = torch.device("cpu")


@pytest.mark.parametrize("winograd", [False, True])
def test_finds_what_the_stock_model_finds(winograd):
    model = random_detector("demo", num_classes=5, min_size=128, max_size=256, seed=3)
    image = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)
    expected = stock_predictor(model, CPU)([image])
    assert len(expected[0].scores) > 0
    graph = fast_graph(copy.deepcopy(model), winograd=winograd)
    assert isinstance(graph.box_head, ChannelsLastMLPHead)
    parity = evaluation.compare_detections(expected, graph_predictor(graph, CPU)([image]))
    assert parity["matched"] == 1.0
    assert parity["max_box_error_px"] < 1e-2


def test_a_lower_precision_leaves_box_arithmetic_in_fp32():
    model = random_detector("demo", num_classes=5, min_size=128, max_size=256, seed=3)
    graph = fast_graph(model, torch.bfloat16)
    boxes, scores, _, num = graph(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
    assert boxes.dtype == scores.dtype == torch.float32
    assert int(num) <= boxes.shape[1]


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_what_is_shipped_is_what_videos_are_detected_with(precision):
    model = random_detector("demo", num_classes=5, min_size=128, max_size=256, seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)
    predict, _, name = pipeline.network(model, precision)
    shipped = graph_predictor(shipped_graph(model, CPU, getattr(torch, name)), CPU)
    for own, theirs in zip(shipped([image])[0], predict([image])[0], strict=True):
        assert len(own) > 0
        np.testing.assert_array_equal(own, theirs)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
