"""Did a processor work for us all the time? Where it did not, times are longer than the work."""

from time import perf_counter, thread_time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

UNDISTURBED = 0.9  # share of the time in which a processor worked for the measured process


class ProcessorShare:
    """Context manager: `share` is the share of the time inside the `with` block in which the
    calling thread ran; None beside a GPU, where the host has reason to wait."""

    def __init__(self, device: "torch.device"):
        self._on_cpu = device.type == "cpu"
        self.share: float | None = None

    def __enter__(self) -> "ProcessorShare":
        self._started, self._worked = perf_counter(), thread_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        elapsed_s = perf_counter() - self._started
        if self._on_cpu and elapsed_s > 0:
            self.share = (thread_time() - self._worked) / elapsed_s


def waiting_told(label: str, share: float | None) -> str | None:
    """A warning where the main thread had to wait, without a guess at why; None where it had not.

    Args:
        label: what was measured meanwhile.
    """
    if share is None or share >= UNDISTURBED:
        return None
    return (
        f"{label}: the main thread ran {share:.0%} of the time and waited for the rest: for a "
        "processor that others use, for its own other threads or for the disk; in the first case "
        "the times are too long."
    )
