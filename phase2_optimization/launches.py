"""What the host hands to the device in a step, and how often it waits for it.

On a GPU this is read from the events of a profiled step; elsewhere it is concluded from the
operations of a step, as what a GPU would have to do.
"""

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common import inference_ops

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

# This project's operators with waits inside, which a counter of operations does not see.
OWN_OPERATORS: Mapping[str, Any] = {"detection::nms_mask": inference_ops.nms_mask}

# Calls of the CUDA runtime and driver as a trace names them.
GRAPH_LAUNCH = "GraphLaunch"
LAUNCHES = ("LaunchKernel", "LaunchCooperativeKernel", GRAPH_LAUNCH)
WAITS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "CtxSynchronize")
WAITING_COPIES = ("cudaMemcpy", "cudaMemcpy2D")  # those without Async in their name
HOST_CALLS = ("cuda_runtime", "cuda_driver")
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")

Event = Mapping[str, Any]


def device_activity(events: Iterable[Event], step: str) -> dict[str, Any] | None:
    """What one step made a GPU do, from the events of a chrome trace by torch.profiler.

    Args:
        events: with `name`, `cat` (category), `ts` and `dur` in microseconds, and in `args` the
            `correlation` of a call with what it makes the device do.
        step: the label (`record_function`) the step ran under.

    Returns:
        `kernel_launches`, of them `graph_launches`, and `host_syncs`, counts of calls,
        `syncs_by_call`; `kernels`, the number
        of kernels that ran; and in milliseconds `gpu_busy_ms` (something ran),
        `idle_after_syncs_ms` and `idle_between_launches_ms`, gaps from the first to the last
        of its device work, in which the host had just waited, or had not. None if no work was
        recorded, as where reading a GPU's counters is forbidden.
    """
    events = [event for event in events if "dur" in event]
    (label,) = (e for e in events if e["name"] == step and e.get("cat") == "user_annotation")
    calls = [e for e in events if e.get("cat") in HOST_CALLS and _is_inside(e, label)]
    caused = {call["args"].get("correlation") for call in calls} - {None}
    work = [
        event
        for event in events
        if event.get("cat") in DEVICE_WORK and event["args"].get("correlation") in caused
    ]
    if not work:
        return None
    waits = [call for call in calls if _is_wait(call["name"])]
    busy = _union(work)
    after_syncs, between_launches = _gaps(busy, [call["ts"] + call["dur"] for call in waits])
    return {
        "kernel_launches": sum(any(part in call["name"] for part in LAUNCHES) for call in calls),
        "graph_launches": sum(GRAPH_LAUNCH in call["name"] for call in calls),
        "kernels": sum(event["cat"] == "kernel" for event in work),
        "host_syncs": len(waits),
        "syncs_by_call": dict(Counter(call["name"] for call in waits).most_common()),
        "gpu_busy_ms": sum(end - start for start, end in busy) / 1e3,
        "idle_after_syncs_ms": after_syncs / 1e3,
        "idle_between_launches_ms": between_launches / 1e3,
    }


def _is_inside(event: Event, label: Event) -> bool:
    return label["ts"] <= event["ts"] <= label["ts"] + label["dur"]


def _is_wait(call: str) -> bool:
    return call in WAITING_COPIES or any(part in call for part in WAITS)


def _union(work: Sequence[Event]) -> list[tuple[float, float]]:
    """The times in which any of the events was going on, in order and apart from each other."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted((event["ts"], event["ts"] + event["dur"]) for event in work):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _gaps(busy: Sequence[tuple[float, float]], wait_ends: Sequence[float]) -> tuple[float, float]:
    """Idle microseconds of the device after the host had waited for it, and all others."""
    after_syncs = between_launches = 0.0
    for (_, end), (start, _) in itertools.pairwise(busy):
        if any(end <= wait_end <= start for wait_end in wait_ends):
            after_syncs += start - end
        else:
            between_launches += start - end
    return after_syncs, between_launches


class OperatorMode(TorchDispatchMode, ABC):
    """Sees every operation that runs on a device inside a `with` block, taken apart where it is a
    compound one; what runs on the CPU beside a GPU (decoding, say) is not seen."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    @abstractmethod
    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Called after each operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # inference mode hands over compound operations whole: look at their parts
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        body = OWN_OPERATORS.get(name_of_operator(func))
        if body is not None:
            with self:
                return body._init_fn(*args, **kwargs)
        result = func(*args, **kwargs)
        if self._device.type in _device_types((args, kwargs, result)):
            self.note(func, args, kwargs, result)
        return result


class OperationCounter(OperatorMode):
    """Counts the operations of a device and those it is waited for.

    Attributes:
        operations: all of them; each is at least one kernel launch on a GPU, views aside.
        waits: operation -> how often the host needs its result before it can go on.
        copies: copies between host and device (none when everything is on the CPU).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.operations = 0
        self.copies = 0
        self.waits: Counter[str] = Counter()

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.operations += 1
        name = name_of_operator(func)
        if name in WAITING_OPERATIONS:
            self.waits[name] += 1
        elif name in ("aten::index", "aten::index_put", "aten::index_put_") and _has_mask(args[1]):
            self.waits["aten::nonzero"] += 1  # a boolean index is a nonzero inside
        elif name in ("aten::_to_copy", "aten::copy_") and len(_device_types((args, result))) > 1:
            self.copies += 1
            if result.device.type == "cpu":
                self.waits["copy to the host"] += 1


def name_of_operator(func: Any) -> str:
    """torch.ops.aten.add.Tensor -> "aten::add"."""
    return func.name().split(".")[0]


def tensors_in(values: Any) -> list[torch.Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _device_types(values: Any) -> set[str]:
    return {tensor.device.type for tensor in tensors_in(values)}


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
