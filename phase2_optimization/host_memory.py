"""A bound on the memory of a CPU run, so that too large a batch is an error and not the end."""

import contextlib
from collections.abc import Iterator
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
