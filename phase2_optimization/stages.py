"""A stopwatch for the stages of a detector's step, in training and in inference."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from common import timing
from common.fastpath_boxes import replaced
from common.low_precision import InPrecision

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

    from common.inference_graph import InferenceGraph

DATA_WAIT = "data wait"
NETWORKS = ("backbone", "FPN", "RPN", "RoI heads", "backward")  # where the arithmetic is
STAGES = (
    *(DATA_WAIT, "copy to device", "transform", *NETWORKS, "post-processing", "optimizer"),
    *("logging", "results to host"),
)
OTHER = "other"  # time of a step inside no named stage


class StageClock:
    """Splits the wall-clock time of steps among named stages.

    Time belongs to the innermost open stage, so the stages of a step sum to the step exactly. On
    a GPU every stage boundary waits for the device: the stages are then right one by one, but a
    step is slower than one that runs freely (`wait_at_stages=False` times steps only).

    Attributes:
        steps: one dict per finished step, stage -> milliseconds.
    """

    def __init__(self, device: torch.device, *, wait_at_stages: bool = True):
        self.steps: list[dict[str, float]] = []
        self._device = device
        self._wait_at_stages = wait_at_stages
        self._open: list[tuple[str, Any]] = []  # (stage, its label in the trace)
        self._step_ms: dict[str, float] = defaultdict(float)
        self._last = 0.0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """One step; a step that raises is not recorded."""
        timing.synchronize(self._device)
        self._open, self._step_ms, self._last = [], defaultdict(float), perf_counter()
        self.enter(OTHER)
        yield
        timing.synchronize(self._device)
        self.leave()
        self.steps.append(dict(self._step_ms))

    @property
    def stage_now(self) -> str | None:
        """The innermost open stage; None outside of all."""
        return self._open[-1][0] if self._open else None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Names a part of the step, in the stopwatch and in a torch.profiler trace."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        self._charge()
        label = torch.profiler.record_function(name)
        label.__enter__()
        self._open.append((name, label))

    def leave(self) -> None:
        self._charge()
        _, label = self._open.pop()
        label.__exit__(None, None, None)

    def switch_to(self, name: str) -> None:
        """The innermost open stage ends here and `name` goes on in its place."""
        if self._open[-1][0] != name:
            self.leave()
            self.enter(name)

    def typical_ms(self) -> dict[str, float]:
        """stage -> milliseconds of a typical step, the largest first.

        That is the mean of the middle half of the steps by their whole time, so one hiccup of the
        machine does not become a stage, and the stages sum to a step.
        """
        by_time = sorted(self.steps, key=lambda step: sum(step.values()))
        left_out = len(by_time) // 4  # on either side
        middle = by_time[left_out : len(by_time) - left_out]
        names = {name for step in middle for name in step}
        means = {name: sum(step.get(name, 0.0) for step in middle) / len(middle) for name in names}
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    def step_ms(self) -> list[float]:
        """Milliseconds of every finished step."""
        return [sum(step.values()) for step in self.steps]

    def _charge(self) -> None:
        """Gives the time since the last boundary to the innermost open stage."""
        if self._wait_at_stages:
            timing.synchronize(self._device)
        now = perf_counter()
        if self._open:
            self._step_ms[self._open[-1][0]] += (now - self._last) * 1e3
        self._last = now


# --- stages inside a forward pass ---------------------------------------------------------------


@contextlib.contextmanager
def watch_detector(clock: StageClock, model: "FasterRCNN") -> Iterator[None]:
    """Times the stages inside a torchvision detector while the block lasts.

    `common.training_losses` calls the parts of the RPN and of the RoI heads one by one, without
    their forward methods. It begins with the RPN, so open the stage "RPN" around it; where the
    RoI heads take over, at their first step, the stage is changed here.
    """
    transform, heads = model.transform, model.roi_heads
    modules = {"transform": transform, "RPN": model.rpn, "RoI heads": heads}
    first = _taking_over(clock, "RoI heads", heads.add_gt_proposals)
    detections = _timed(clock, "post-processing", heads.postprocess_detections)
    postprocess = _timed(clock, "post-processing", transform.postprocess)
    with (
        _watch_backbone(clock, model.backbone),
        _watch_modules(clock, modules),
        replaced(transform, postprocess=postprocess),
        replaced(heads, postprocess_detections=detections, add_gt_proposals=first),
    ):
        yield


@contextlib.contextmanager
def watch_graph(clock: StageClock, graph: "InferenceGraph") -> Iterator[None]:
    """Times the stages inside the inference graph (eager) while the block lasts.

    Where a predictor calls it, the stage that is open around the call goes on as "results to host".
    """
    starts = {
        "candidates": _taking_over(clock, "RPN", graph.candidates),
        "suppress_classes": _taking_over(clock, "post-processing", graph.suppress_classes),
    }

    def proposals(*args: Any) -> Any:
        found = type(graph).proposals(graph, *args)
        clock.switch_to("RoI heads")  # what follows pools them
        return found

    def end(*_: Any) -> None:
        clock.leave()
        clock.switch_to("results to host")

    with (
        _hooked(graph, lambda *_: clock.enter("transform"), end),
        _watch_backbone(clock, graph.backbone),
        replaced(graph, proposals=proposals, **starts),
    ):
        yield


@contextlib.contextmanager
def _watch_backbone(clock: StageClock, backbone: torch.nn.Module) -> Iterator[None]:
    modules: dict[str, Any] = {"backbone": backbone}
    pyramid = getattr(
        backbone.module if isinstance(backbone, InPrecision) else backbone, "fpn", None
    )
    if pyramid is not None:
        modules["FPN"] = pyramid
    with _watch_modules(clock, modules):
        yield


@contextlib.contextmanager
def _watch_modules(clock: StageClock, modules: dict[str, torch.nn.Module]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(
                _hooked(module, lambda *_, name=name: clock.enter(name), lambda *_: clock.leave())
            )
        yield


@contextlib.contextmanager
def _hooked(module: torch.nn.Module, begin: Callable, end: Callable) -> Iterator[None]:
    """Calls `begin` before a module's forward pass and `end` after it."""
    handles = (
        module.register_forward_pre_hook(begin),
        module.register_forward_hook(end, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _taking_over(clock: StageClock, name: str, function: Callable) -> Callable:
    """The function, with which the innermost stage becomes another."""

    def call(*args: Any, **kwargs: Any) -> Any:
        clock.switch_to(name)
        return function(*args, **kwargs)

    return call


def _timed(clock: StageClock, name: str, function: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        with clock.stage(name):
            return function(*args, **kwargs)

    return call
