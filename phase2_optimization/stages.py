"""A stopwatch for the stages of a detector, and a counter of operations that stall a GPU."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common import timing

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

OTHER = "other"  # time of a step inside no named stage

# Operations whose result's shape or value the host must know before it can go on. A GPU is then
# waited for (torchvision's NMS reads back at least how many boxes are kept).
WAITING_OPERATIONS = frozenset(
    {
        "aten::_local_scalar_dense",  # .item(), float(tensor), `if tensor:`
        "aten::nonzero",  # torch.where(mask), tensor[mask]
        "aten::masked_select",
        "aten::_unique2",
        "aten::equal",
        "torchvision::nms",
    }
)


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
        self._enter(OTHER)
        yield
        timing.synchronize(self._device)
        self._leave()
        self.steps.append(dict(self._step_ms))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Names a part of the step, in the stopwatch and in a torch.profiler trace."""
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def watch(self, model: "FasterRCNN") -> Iterator[None]:
        """Times the stages inside a detector's forward pass while the `with` block lasts."""
        modules = {
            "transform": model.transform,
            "backbone": getattr(model.backbone, "body", model.backbone),
            "RPN": model.rpn,
            "RoI heads": model.roi_heads,
        }
        if hasattr(model.backbone, "fpn"):
            modules["FPN"] = model.backbone.fpn
        owners = {"postprocess": model.transform, "postprocess_detections": model.roi_heads}
        handles: list[Any] = []
        for name, module in modules.items():
            handles.append(
                module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
            )
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        for method, owner in owners.items():
            setattr(owner, method, self._timed("post-processing", getattr(owner, method)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for method, owner in owners.items():
                delattr(owner, method)  # the class's own method shows again

    def mean_ms(self) -> dict[str, float]:
        """stage -> mean milliseconds per step, the largest first; they sum to the mean step."""
        names = {name for step in self.steps for name in step}
        means = {
            name: sum(step.get(name, 0.0) for step in self.steps) / len(self.steps)
            for name in names
        }
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    def step_ms(self) -> list[float]:
        """Milliseconds of every finished step."""
        return [sum(step.values()) for step in self.steps]

    def _timed(self, name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def _enter(self, name: str) -> None:
        self._charge()
        label = torch.profiler.record_function(name)
        label.__enter__()
        self._open.append((name, label))

    def _leave(self) -> None:
        self._charge()
        _, label = self._open.pop()
        label.__exit__(None, None, None)

    def _charge(self) -> None:
        """Gives the time since the last boundary to the innermost open stage."""
        if self._wait_at_stages:
            timing.synchronize(self._device)
        now = perf_counter()
        if self._open:
            self._step_ms[self._open[-1][0]] += (now - self._last) * 1e3
        self._last = now


class OperationCounter(TorchDispatchMode):
    """Counts the operations a device runs inside a `with` block and those it is waited for.

    What runs on the CPU beside a GPU (decoding, say) is not counted.

    Attributes:
        operations: all of them; each is at least one kernel launch on a GPU, views aside.
        waits: operation -> how often the host needs its result before it can go on.
        copies: copies between host and device (none when everything is on the CPU).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.operations = 0
        self.copies = 0
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # inference mode hands over compound operations whole: count their parts
            parts = func.decompose(*args, **(kwargs or {}))
        if parts is not NotImplemented:
            return parts
        result = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in _tensors((args, kwargs, result))}
        if self._device.type not in devices:
            return result
        self.operations += 1
        name = func.name().split(".")[0]
        if name in WAITING_OPERATIONS:
            self.waits[name] += 1
        elif name in ("aten::index", "aten::index_put", "aten::index_put_") and _has_mask(args[1]):
            self.waits["aten::nonzero"] += 1  # a boolean index is a nonzero inside
        elif name in ("aten::_to_copy", "aten::copy_") and len(devices) > 1:
            self.copies += 1
            if result.device.type == "cpu":
                self.waits["copy to the host"] += 1
        return result


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
