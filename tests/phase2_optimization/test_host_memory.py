"""The bound on a CPU run's memory."""

import pytest
import torch

from common import timing
from phase2_optimization.host_memory import bounded_host_memory


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
