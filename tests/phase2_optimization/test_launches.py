"""Counting launches and waits: in made-up traces of a GPU, and in the operations of a CPU."""

import pytest
import torch

from common import inference_ops
from phase2_optimization.launches import OperationCounter, OperatorMode, device_activity

CPU = torch.device("cpu")


# --- events of a GPU --------------------------------------------------------------------------


def event(cat: str, name: str, start: float, end: float, correlation: int | None = None) -> dict:
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start, "args": args}


def call(name: str, start: float, end: float, correlation: int, cat: str = "cuda_runtime") -> dict:
    return event(cat, name, start, end, correlation)


STEP = event("user_annotation", "training", 100, 900)
TRACE = [
    {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    event("user_annotation", "backbone", 110, 300),
    event("gpu_user_annotation", "training", 120, 1400),  # a label on the GPU is no work
    call("cudaLaunchKernel", 50, 60, 1),  # before the step
    event("kernel", "warm-up", 90, 115, 1),
    STEP,
    call("cudaMemcpyAsync", 110, 120, 2),
    event("gpu_memcpy", "Memcpy HtoD", 130, 180, 2),
    call("cudaLaunchKernel", 140, 150, 3),
    event("kernel", "conv", 180, 280, 3),
    call("cuLaunchKernelEx", 150, 160, 4, "cuda_driver"),
    event("kernel", "overlapping, on another stream", 250, 300, 4),
    call("cudaStreamSynchronize", 200, 305, 5),  # waits until the GPU is idle at 300
    call("cudaLaunchKernelExC", 340, 350, 6),
    event("kernel", "after the wait", 360, 400, 6),
    call("cudaLaunchKernel", 430, 440, 7),
    event("kernel", "late, but nobody waited", 450, 460, 7),
    call("cudaMemcpy", 500, 520, 8),  # a copy that the host waits for
    event("gpu_memcpy", "Memcpy DtoH", 505, 515, 8),
    call("cudaGraphLaunch", 600, 610, 9),
    event("kernel", "of the graph", 620, 640, 9),
    event("kernel", "of the graph, beyond the label", 890, 1390, 9),
    call("cudaStreamIsCapturing", 700, 701, 10),
    call("cudaDeviceSynchronize", 910, 1395, 11),  # after the step
]


def test_launches_waits_and_idle_time_follow_from_the_events():
    activity = device_activity(TRACE, "training")
    assert activity == {
        "kernel_launches": 5,
        "graph_launches": 1,
        "kernels": 6,
        "host_syncs": 2,
        "syncs_by_call": {"cudaStreamSynchronize": 1, "cudaMemcpy": 1},
        # 130-300, 360-400, 450-460, 505-515, 620-640, 890-1390
        "gpu_busy_ms": pytest.approx(0.170 + 0.040 + 0.010 + 0.010 + 0.020 + 0.500),
        # 300-360 after the stream's, 515-620 after the copy's
        "idle_after_syncs_ms": pytest.approx(0.060 + 0.105),
        "idle_between_launches_ms": pytest.approx(0.050 + 0.045 + 0.250),
    }


def test_each_step_has_its_own_events():
    second = [
        event("user_annotation", "inference", 2000, 2100),
        call("cudaLaunchKernel", 2010, 2020, 20),
        event("kernel", "conv", 2030, 2090, 20),
    ]
    activity = device_activity([*TRACE, *second], "inference")
    assert (activity["kernel_launches"], activity["host_syncs"]) == (1, 0)
    assert activity["gpu_busy_ms"] == pytest.approx(0.060)
    assert activity["idle_after_syncs_ms"] == activity["idle_between_launches_ms"] == 0
    assert device_activity([*TRACE, *second], "training") == device_activity(TRACE, "training")


def test_a_trace_without_work_of_a_gpu_tells_nothing():
    unseen = [e for e in TRACE if e.get("cat") not in ("kernel", "gpu_memcpy")]
    assert device_activity(unseen, "training") is None


# --- operations -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_forced_waits_are_counted_in_every_gradient_mode(mode):
    values = torch.tensor([1.0, -1.0, 2.0])
    with mode(), OperationCounter(CPU) as counter:
        mask = values > 0
        values[mask]  # a boolean index
        torch.where(mask)
        values.sum().item()
        values[torch.tensor([0, 1])]  # an integer index needs no wait
        values + 1
    assert counter.waits == {"aten::nonzero": 2, "aten::_local_scalar_dense": 1}
    assert counter.operations >= 6
    assert counter.copies == 0


def test_a_branch_on_a_tensor_is_a_wait():
    with OperationCounter(CPU) as counter:
        assert torch.tensor([1.0]).any()
    assert counter.waits["aten::_local_scalar_dense"] == 1


def test_the_backward_pass_is_counted():
    weight = torch.ones(3, requires_grad=True)
    with OperationCounter(CPU) as forward:
        loss = (weight * 2).sum()
    with OperationCounter(CPU) as backward:
        loss.backward()
    assert forward.operations == 2
    assert backward.operations >= 2


def test_the_projects_own_operators_are_looked_into():
    boxes = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 30, 30]]])
    scores = torch.tensor([[[0.9, 0.8, 0.7]]])
    expected = inference_ops.nms_mask(boxes, scores, 0.5, 0.1)
    with OperationCounter(CPU) as counter:
        found = inference_ops.nms_mask(boxes, scores, 0.5, 0.1)
    assert found.tolist() == expected.tolist() == [[[True, False, True]]]
    assert counter.waits["torchvision::nms"] == 1


def test_a_mode_that_notes_nothing_cannot_be_made():
    with pytest.raises(TypeError, match="note"):
        OperatorMode(CPU)


def test_only_what_the_device_runs_is_counted():
    """ "meta" stands in for a GPU: a device beside the CPU that every machine has."""
    host, elsewhere = torch.tensor([1.0, 2.0]), torch.ones(2, device="meta")
    with OperationCounter(torch.device("meta")) as counter:
        host.sum().item()  # decoding and sampling on the host make no GPU wait
        host[host > 1]
        elsewhere + 1
        host.to("meta")
    assert (counter.operations, counter.copies, counter.waits) == (2, 1, {})
