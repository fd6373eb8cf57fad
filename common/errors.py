"""The error that a person can mend, and what else is one: a machine that has no more to give."""

import errno
import sys
from pathlib import Path
from typing import Any

from common import paths

OUT_OF_MEMORY_SIGNS = (
    "ALLOC_FAILED",  # cuDNN, cuBLAS
    "out of memory",
    "can't allocate memory",
    "Failed to allocate memory",  # ONNX Runtime's arena
    "bad_alloc",
    "bad allocation",
    "could not create a primitive",  # oneDNN, which needs memory for its code
)


class UserError(Exception):
    """A mistake the person can mend. The text reads `WHERE: what is wrong – what to do`.

    Attributes:
        where, what, remedy: as given.
    """

    def __init__(self, where: Path | str, what: str, remedy: str):
        self.where, self.what, self.remedy = where, what, remedy
        where = paths.display(where) if isinstance(where, Path) else where
        super().__init__(f"{where}: {what} – {remedy}".replace("\n", " "))

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: an exception is made anew there, by default of its text alone."""
        return UserError, (self.where, self.what, self.remedy)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device or the host has no memory left. cuDNN, cuBLAS,
    MPS, the CPU's allocator and ONNX Runtime say so in the text of an exception of another kind."""
    torch = sys.modules.get("torch")  # what is not loaded has raised nothing
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    is_of_a_library = isinstance(error, RuntimeError) or type(error).__module__.startswith(
        "onnxruntime."
    )
    return is_of_a_library and any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)


def shortage(error: BaseException) -> UserError | None:
    """What to tell where memory, threads or open files ran out; None of any other error."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if is_out_of_memory(error) or "out of memory" in reason:  # protobuf raises a TypeError
        what, remedy = f"does not suffice ({reason:.100})", "end other programs or ask for less"
        return UserError("memory", what, remedy)
    if isinstance(error, RuntimeError) and "can't start new thread" in reason:
        return UserError(
            "threads", "no more can be started", "raise the limit: ulimit -u, ulimit -v"
        )
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return UserError("open files", "no more are allowed", "raise the limit: ulimit -n 1024")
    return None
