"""What a variant takes of the memory, and a bound on it: too large a batch is an error and not the
end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from common import timing

if TYPE_CHECKING:
    import torch

SHARE = 0.8  # of the free memory of the machine that a CPU run may take


@contextlib.contextmanager
def bounded_host_memory(device: "torch.device") -> Iterator[None]:
    """Makes a CPU run that would exhaust the machine fail with an error the caller can catch.

    Linux kills a process that takes more memory than there is; under a limit the allocation
    itself fails instead. Elsewhere, and on a GPU, nothing is limited.
    """
    available_mib, data_mib = timing.available_mib(), timing.proc_status_mib("VmData")
    if device.type != "cpu" or available_mib is None or data_mib is None:
        yield
        return
    import resource  # there on every system that has /proc

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int((data_mib + available_mib * SHARE) * timing.MIB)
    for present in (soft, hard):
        if present != resource.RLIM_INFINITY:
            limit = min(limit, present)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class HeldMemory:
    """What a variant takes of the device, from before it is built to the end of a call.

    CUDA: by how much the free memory of the device has shrunk. Whoever allocates counts: PyTorch,
    ONNX Runtime, recorded graphs; but so do other processes in the meantime. Elsewhere: the peak
    resident set of the whole process during the call, libraries included.

    Args:
        device: with free memory released, see `timing.release_free_memory`.

    Attributes:
        kind: says which of these it is.
    """

    def __init__(self, device: "torch.device"):
        self._device = device
        self.kind = "device memory taken since before the variant was built"
        self._free = self._free_bytes() if device.type == "cuda" else 0

    def of_call(self, call: Callable[[], object]) -> float | None:
        """MiB; None where the system does not tell."""
        if self._device.type != "cuda":
            with timing.PeakMemory(self._device) as memory:
                call()
            self.kind = memory.kind
            return memory.mib
        timing.release_free_memory(self._device)  # of the calls before
        call()
        return (self._free - self._free_bytes()) / timing.MIB

    def _free_bytes(self) -> int:
        import torch

        timing.synchronize(self._device)
        return torch.cuda.mem_get_info(self._device)[0]
