"""The stage clock with a made-up time, and the stages of detectors it is put on."""

import itertools

import pytest
import torch

from common.fast_inference import shipped_graph
from common.inference_graph import InferenceGraph
from common.models import build_model
from phase2_optimization import stages
from phase2_optimization.stages import (
    OTHER,
    STAGES,
    StageClock,
    watch_detector,
    watch_graph,
)

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch):
    """One second passes between any two looks at the time."""
    ticks = itertools.chain([0.0], itertools.count(1.0))
    monkeypatch.setattr(stages, "perf_counter", lambda: next(ticks))


def test_time_belongs_to_the_innermost_stage_and_sums_to_the_step(ticking):
    clock = StageClock(CPU)
    with clock.step():  # looks: start, enter
        with clock.stage("outer"), clock.stage("inner"):
            pass
        with clock.stage("inner"):
            pass
    # boundaries after the step was entered: +outer, +inner, -inner, -outer, +inner, -inner, end
    expected = {"other": 3000.0, "outer": 2000.0, "inner": 2000.0}
    assert clock.steps == [pytest.approx(expected)]
    assert clock.step_ms() == [pytest.approx(7000.0)]


def test_a_stage_can_be_taken_over_by_another(ticking):
    clock = StageClock(CPU)
    with clock.step(), clock.stage("first"):
        clock.switch_to("second")  # boundaries: -first, +second
        clock.switch_to("second")  # it is already: none
    # +first, -first, +second, -second, end: "other" before first, between the two and at the end
    assert clock.steps == [pytest.approx({"other": 3000.0, "first": 1000.0, "second": 1000.0})]


def test_a_typical_step_is_the_mean_of_the_middle_half():
    clock = StageClock(CPU)
    clock.steps = [
        {"a": 1.0},  # the fastest and the slowest quarter do not count
        {"a": 4.0, "b": 1.0},
        {"a": 2.0, "b": 5.0, "c": 1.0},
        {"a": 9.0, "b": 900.0},
    ]
    assert clock.typical_ms() == {"a": 3.0, "b": 3.0, "c": 0.5}
    clock.steps = clock.steps[1:]  # three: none is left out
    assert clock.typical_ms()["b"] == 302.0


def test_a_step_that_raises_is_not_recorded():
    clock = StageClock(CPU)
    with pytest.raises(ValueError, match="broken"), clock.step(), clock.stage("a"):
        raise ValueError("broken")
    assert clock.steps == []
    with clock.step(), clock.stage("b"):
        pass
    assert set(clock.steps[0]) == {"b", OTHER}


# --- stages inside a forward pass -------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("demo", 3, min_size=64, max_size=96).eval()


def test_watching_a_detector_changes_nothing_and_leaves_nothing_behind(model):
    image = [torch.rand(3, 48, 64)]
    before = model(image)[0]["boxes"]
    clock = StageClock(CPU)
    with watch_detector(clock, model), clock.step():
        during = model(image)[0]["boxes"]
    torch.testing.assert_close(during, before, rtol=0, atol=0)
    expected = {"transform", "backbone", "FPN", "RPN", "RoI heads", "post-processing"}
    assert set(clock.steps[0]) == {*expected, OTHER}
    assert expected < set(STAGES)
    assert "postprocess" not in vars(model.transform)
    assert not {"postprocess_detections", "add_gt_proposals"} & set(vars(model.roi_heads))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_watching_the_graph_changes_nothing_and_leaves_nothing_behind(model, dtype):
    """The plain graph, and those that videos are detected with."""
    graph = InferenceGraph(model) if dtype is None else shipped_graph(model, CPU, dtype)
    images = torch.randint(0, 255, (2, 48, 64, 3), dtype=torch.uint8)
    clock = StageClock(CPU)
    with torch.inference_mode():
        before = graph(images)
        with watch_graph(clock, graph), clock.step(), clock.stage("copy to device"):
            during = graph(images)
    for watched, plain in zip(during, before, strict=True):
        torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    expected = {"transform", "backbone", "FPN", "RPN", "RoI heads", "post-processing"}
    around = {"copy to device", "results to host"}
    assert set(clock.steps[0]) == {*expected, *around, OTHER}
    assert not {"candidates", "proposals", "suppress_classes"} & set(vars(graph))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in graph.modules())
