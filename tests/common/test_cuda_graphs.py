"""Recorded inference equals the graph it records; on a CPU the recording is imitated."""

import numpy as np
import pytest
import torch

from common.cuda_graphs import MAX_SHAPES, CudaGraphedInference
from common.inference_graph import InferenceGraph
from tests.random_detectors import random_detector, random_scene


class ImitatedStep:
    """Fixed input and output addresses like a CUDA graph's, computed anew at every call."""

    made = 0

    def __init__(self, function):
        self._function, self._inputs, self._outputs = function, (), ()
        ImitatedStep.made += 1

    def __call__(self, *inputs):
        if not self._inputs:
            self._inputs = tuple(given.clone() for given in inputs)
            self._outputs = tuple(self._function(*self._inputs))
        assert [own.shape for own in self._inputs] == [given.shape for given in inputs]
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        for own, result in zip(self._outputs, self._function(*self._inputs), strict=True):
            own.copy_(result)
        return self._outputs


@pytest.fixture(scope="module")
def graph():
    return InferenceGraph(random_detector("demo", min_size=96, max_size=192))


def batch(seed: int, count: int, height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([random_scene(rng, height, width) for _ in range(count)]))


def test_replays_equal_the_graph(graph):
    ImitatedStep.made = 0
    recorded = CudaGraphedInference(graph, ImitatedStep)
    found = 0
    for seed, (count, height, width) in enumerate([(1, 80, 120), (3, 64, 64), (1, 80, 120)] * 2):
        images = batch(seed, count, height, width)
        with torch.inference_mode():
            expected = graph(images)
        for own, theirs in zip(recorded(images), expected, strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-3)
        found += int(expected[3].sum())
    assert found > 20
    assert ImitatedStep.made == 2 * 3  # two sizes, three parts


def test_sizes_resized_to_one_share_a_recording(graph):
    ImitatedStep.made = 0
    recorded = CudaGraphedInference(graph, ImitatedStep)
    for side in (60, 61, 150):
        recorded(batch(0, 1, side, side))
    assert ImitatedStep.made == 3


def test_the_oldest_sizes_are_given_up(graph):
    recorded = CudaGraphedInference(graph, ImitatedStep)
    for count in range(1, MAX_SHAPES + 3):
        recorded(batch(0, count, 48, 48))
    assert len(recorded._steps) == MAX_SHAPES


def test_nothing_between_recorded_steps_depends_on_values(graph):
    """What would stop a recording: an operation whose result's shape the host has to know."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(func.name().split(".")[0])
            return func(*args, **(kwargs or {}))

    names: set[str] = set()

    def watched(function):
        def step(*inputs):
            with Operations():
                return function(*inputs)

        return step

    CudaGraphedInference(graph, watched)(batch(0, 2, 80, 120))
    assert "aten::topk" in names
    waiting = {
        "aten::nonzero",
        "aten::_local_scalar_dense",
        "aten::masked_select",
        "torchvision::nms",
    }
    assert not names & waiting


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_recording_on_a_gpu_equals_the_graph(dtype):
    from common.low_precision import InPrecision, replace_heavy_modules

    model = random_detector("demo", min_size=96, max_size=192).cuda()
    graph = InferenceGraph(model)
    if dtype is torch.float16:
        replace_heavy_modules(graph, lambda module: InPrecision(module, dtype))
    recorded = CudaGraphedInference(graph)
    for seed in range(3):
        images = batch(seed, 2, 80, 120).cuda()
        with torch.inference_mode():
            expected = graph(images)
        for own, theirs in zip(recorded(images), expected, strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-2)
