"""CUDA graphs of an InferenceGraph: for each input size, thousands of launches become four.

A CUDA graph replays recorded kernels at fixed addresses, so nothing in it may depend on values or
wait for the host. The network is recorded in three parts, one set for each size of input seen;
between them stands non-maximum suppression, which the host waits for.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from common import inference_ops
from common.box_arithmetic import by_class
from common.inference_graph import InferenceGraph

MAX_SHAPES = 8  # sizes of input kept; their memory is shared, but each takes time to record
WARMUP_CALLS = 3  # before recording: libraries choose kernels and allocate in their first calls

Step = Callable[..., Sequence[Tensor]]


class RecordedStep:
    """A function of tensors recorded as a CUDA graph at its first call.

    Inputs are copied to where they lay when it was recorded; the outputs are overwritten by the
    next call.

    Args:
        pool: of `torch.cuda.graph_pool_handle`, shared by steps that run one after the other.
        in_place: ids of tensors that never move, which need no copy: outputs of recorded steps.
    """

    def __init__(self, function: Step, pool: Any, in_place: set[int]):
        self._function, self._pool, self._in_place = function, pool, in_place
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if self._graph is None:
            self._record(inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not given:
                own.copy_(given)
        if self._graph is not None:
            self._graph.replay()
        return self._outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(
            given if id(given) in self._in_place else given.clone() for given in inputs
        )
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_CALLS):
                self._function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._outputs = tuple(self._function(*self._inputs))
        self._in_place.update(id(output) for output in self._outputs)
        self._graph = graph


class CudaGraphedInference:
    """Called like an InferenceGraph; replays recorded graphs for sizes it has seen.

    Args:
        graph: on a CUDA device. Its weights may not be replaced afterwards.
        record: makes a step from a function.
    """

    def __init__(self, graph: InferenceGraph, record: Callable[[Step], Step] | None = None):
        self._graph = graph
        if record is None:
            pool, in_place = torch.cuda.graph_pool_handle(), set[int]()

            def record(function: Step) -> Step:
                return RecordedStep(function, pool, in_place)

        self._record = record
        self._steps: OrderedDict[tuple[int, ...], tuple[Step, Step, Step]] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """uint8 [B, H, W, 3] -> boxes, scores, labels, num as `InferenceGraph.forward`. They are
        overwritten by the next call."""
        graph = self._graph
        pixels, limits, scale = inference_ops.preprocess(
            images, graph.mean, graph.std, graph.min_size, graph.max_size, graph.size_divisor
        )
        propose, classify, select = self._steps_for(tuple(pixels.shape))
        boxes, scores, by_level, *features = propose(pixels, limits)
        kept = graph.suppress_candidates(boxes, by_level)
        class_boxes, class_scores = classify(boxes, scores, kept, limits, *features)
        kept = graph.suppress_classes(class_boxes, class_scores)
        return select(class_boxes, class_scores, kept, scale)

    def _steps_for(self, shape: tuple[int, ...]) -> tuple[Step, Step, Step]:
        if shape not in self._steps:
            if len(self._steps) >= MAX_SHAPES:
                self._steps.popitem(last=False)
            self._steps[shape] = (
                self._record(self._propose),
                self._record(self._classify),
                self._record(self._graph.select),
            )
        self._steps.move_to_end(shape)
        return self._steps[shape]

    def _propose(self, pixels: Tensor, limits: Tensor) -> Sequence[Tensor]:
        features, *candidates = self._graph.candidates(pixels, limits)
        return [*candidates, *features]

    def _classify(
        self, boxes: Tensor, scores: Tensor, kept: Tensor, limits: Tensor, *features: Tensor
    ) -> Sequence[Tensor]:
        graph = self._graph
        proposals, proposal_scores = graph.proposals(boxes, scores, kept)
        rois = proposals.reshape(-1, 4)
        pooled = graph.pool_all(list(features), rois, proposals.shape[1])
        found = graph.classify(pooled, rois, proposal_scores.reshape(-1), limits)
        return by_class(*found, len(proposals))
