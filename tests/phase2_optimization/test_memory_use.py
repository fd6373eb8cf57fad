"""What a variant takes of the memory, and the bound on it."""

import pytest
import torch

from common import timing
from phase2_optimization.memory_use import HeldMemory, bounded_host_memory


@pytest.mark.skipif(not timing.PROC_MEMINFO.exists(), reason="only Linux can bound the memory")
def test_an_allocation_beyond_the_free_memory_raises_instead_of_killing(monkeypatch):
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(timing, "available_mib", lambda: 100.0)
    with pytest.raises(Exception) as caught, bounded_host_memory(torch.device("cpu")):  # noqa: PT011
        torch.empty(2**30)
    assert timing.is_out_of_memory(caught.value)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_gpu_run_is_not_limited(monkeypatch):
    monkeypatch.setattr(timing, "available_mib", lambda: 100.0)
    with bounded_host_memory(torch.device("cuda")):
        assert torch.empty(2**28).nbytes == 2**30


def test_on_a_gpu_whoever_allocates_counts(monkeypatch):
    """ONNX Runtime and recorded graphs do not ask PyTorch's allocator."""
    free = [8 * 2**30]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def take(mib: int) -> None:
        free[0] -= mib * 2**20

    memory = HeldMemory(torch.device("cuda"))
    take(100)  # weights
    assert memory.of_call(lambda: take(50)) == 150
    assert memory.of_call(lambda: take(25)) == 175
    assert memory.kind.startswith("device memory")


def test_on_a_cpu_it_is_the_peak_during_the_call():
    memory = HeldMemory(torch.device("cpu"))
    before = timing.resident_mib()
    peak = memory.of_call(lambda: torch.ones(2**24))  # 64 MiB
    if before is not None:
        assert peak >= before + 60
    assert memory.kind.startswith("peak resident set")
