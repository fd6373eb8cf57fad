"""Half precision against FP32 in inference: what each arm computes in, and on what."""

import numpy as np
import pytest
import torch

from common import timing
from common.inference_graph import InferenceGraph
from common.models import load_model
from phase2_optimization import amp_inference
from phase2_optimization.amp_arm import Precision
from phase2_optimization.amp_inference import predictor, time_inference

CPU = torch.device("cpu")
FP32, BF16 = Precision(""), Precision("", torch.bfloat16)
STOCK_FP32 = Precision("", stock=True)
STOCK_BF16 = Precision("", torch.bfloat16, stock=True)
IMAGES = [np.full((48, 64, 3), shade, np.uint8) for shade in (10, 20, 30)]


@pytest.fixture
def model(model_path):
    return load_model(model_path, CPU).model


@pytest.mark.parametrize("precision", [BF16, STOCK_BF16], ids=["shipped", "stock"])
def test_all_arms_go_the_same_way_and_see_the_same_images(model, monkeypatch, precision):
    seen: dict[torch.dtype, list] = {}

    def stub(model, of, device):
        assert of.stock is precision.stock
        seen.setdefault(of.dtype, []).append(own := [])
        return lambda images: own.extend(int(image[0, 0, 0]) for image in images)

    monkeypatch.setattr(amp_inference, "predictor", stub)
    row = time_inference(model, precision, IMAGES, CPU, rounds=3, seed=0)
    in_order = [10, 20, 30, 10, 20]  # two to warm up, three timed
    assert seen == {torch.float32: [in_order, in_order], torch.bfloat16: [in_order]}
    assert {name: len(ms) for name, ms in row["ms"].items()} == {"fp32": 3, "half": 3, "again": 3}
    assert row["name"] == ("stock_autocast" if precision.stock else "shipped_graph")
    assert (row["precision"], row["emulated"], row["status"]) == ("bfloat16", False, "ok")


@pytest.mark.parametrize(("precision", "dtype"), [(FP32, torch.float32), (BF16, torch.bfloat16)])
def test_the_shipped_way_is_the_graph_with_weights_converted_once(
    model, monkeypatch, precision, dtype
):
    graphs = []
    ship = amp_inference.shipped_graph
    monkeypatch.setattr(
        amp_inference, "shipped_graph", lambda *words: graphs.append(ship(*words)) or graphs[-1]
    )
    (found,) = predictor(model, precision, CPU)([IMAGES[0]])
    assert found.boxes_xyxy.dtype == np.float32
    (graph,) = graphs
    assert isinstance(graph, InferenceGraph)
    for module in (graph.backbone, graph.rpn_head, graph.box_head, graph.box_predictor):
        assert next(module.parameters()).dtype is dtype


@pytest.mark.parametrize(
    ("precision", "dtype"), [(STOCK_FP32, torch.float32), (STOCK_BF16, torch.bfloat16)]
)
def test_the_stock_way_is_torchvisions_forward_under_autocast(model, monkeypatch, precision, dtype):
    seen = []
    forward = type(model).forward

    def noted(self, images, targets=None):
        hook = self.rpn.head.conv.register_forward_hook(
            lambda module, given, result: seen.append(result.dtype)
        )
        try:
            return forward(self, images, targets)
        finally:
            hook.remove()

    monkeypatch.setattr(type(model), "forward", noted)
    predictor(model, precision, CPU)([IMAGES[0]])
    assert seen
    assert set(seen) == {dtype}
    assert not torch.is_autocast_enabled("cpu")  # it is around each call only


def test_the_model_itself_stays_as_it_is(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for precision in (FP32, BF16, STOCK_FP32, STOCK_BF16):
        predictor(model, precision, CPU)([IMAGES[0]])
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_way_that_does_not_fit_says_so_and_a_bug_is_raised(model, monkeypatch):
    def fail(error):
        def measure(*_, **__):
            raise error

        monkeypatch.setattr(timing, "measure_interleaved", measure)

    fail(torch.OutOfMemoryError("CUDA out of memory"))
    row = time_inference(model, BF16, IMAGES, CPU, rounds=1, seed=0)
    assert row["status"] == "oom"
    assert "ms" not in row
    fail(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        time_inference(model, BF16, IMAGES, CPU, rounds=1, seed=0)
