"""The machine a number was measured on: device choice, versions, seeds."""

import contextlib
import importlib.util
import os
import platform
import random
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import paths
from common.addresses import word_without_secrets
from common.cli import UserError

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "opencv-python",
    "opencv-python-headless",
    "av",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
)


def is_installed(package: str) -> bool:
    """Whether a package of that name can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # made absent on purpose
        return False


def require(*packages: str) -> None:
    """Raises UserError where one of these, which requirements.txt lists, is not installed."""
    for package in packages:
        if not is_installed(package):
            raise UserError(package, "is not installed", "run: pip install -r requirements.txt")


def select_device(name: str) -> "torch.device":
    """`auto` takes the first of cuda, mps, cpu; any other name must be there.

    Raises:
        UserError: the device asked for by name does not exist on this machine.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device {name}", "unknown", "use auto, cpu, cuda, cuda:N or mps"
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"{count} CUDA devices found" if count else "no CUDA device found"
            raise UserError(f"--device {name}", found, "use --device auto or cpu")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}", "no MPS device found", "use --device auto or cpu")
    if device.type not in ("cpu", "mps"):
        raise UserError(f"--device {name}", "not supported", "use auto, cpu, cuda, cuda:N or mps")
    return torch.device(device.type)


def device_name(device: str) -> str:
    """`NVIDIA H200` for cuda:0, where PyTorch can tell; the processor's model for cpu."""
    if not device.startswith("cuda"):
        return _cpu_name()
    torch = _torch()
    # a PyTorch without CUDA may stand beside an ONNX Runtime with it
    with contextlib.suppress(AssertionError, RuntimeError):
        return torch.cuda.get_device_name(device) if torch else device
    return device


def usable_cores() -> int:
    """Those that this process may use: under `taskset`, fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def loader_processes() -> int:
    """How many read the images of a training by default: half of the cores and at most 4, as the
    others compute."""
    return min(4, max(1, usable_cores() // 2))


def _torch() -> Any:
    """PyTorch, or None where it is not installed: the deployment package runs without."""
    try:
        import torch
    except ImportError:
        return None
    return torch


@lru_cache
def _cpu_name() -> str:
    """The processor's model; Linux tells it in /proc/cpuinfo only."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    """The processor's instructions that decide which precision is fast, as torch names them."""
    torch = _torch()
    # Older releases of torch do not tell what the processor can do.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if torch else {}
    return sorted(name for name, value in capabilities.items() if value is True)


def describe(device: str) -> dict[str, Any]:
    """Versions and hardware, for the `environment` key of every report.

    Without PyTorch there is nothing known of its threads, of the processor's features and of CUDA.
    """
    torch = _torch()
    facts: dict[str, Any] = {
        "device": str(device),
        "device_name": device_name(str(device)),
        "cpu": _cpu_name(),
        "cpu_count": usable_cores(),
        "cpu_features": _cpu_features(),
        "threads": torch.get_num_threads() if torch else None,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": _package_versions(),
        "git_commit": _git_commit(),
    }
    if torch and str(device).startswith("cuda"):
        facts["cuda"] = torch.version.cuda
        facts["tf32"] = {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,  # on by default, unlike the other
        }
    return facts


def summary_line(device: str) -> str:
    """`Python 3.11.7, torch 2.15.0, cpu (Intel Xeon, 2 threads)`: the first line of a run."""
    import torch

    threads = f", {torch.get_num_threads()} threads" if str(device) == "cpu" else ""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{device} ({device_name(str(device))}{threads})"
    )


def command_line(*, without: Sequence[str] = (), launcher: Sequence[str] = ("python",)) -> str:
    """The command as typed, with paths inside the repository shown relative to it, and addresses
    without their passwords.

    Args:
        without: words to leave out, for instance "--overwrite".
        launcher: what the script is started with.
    """
    words = [word for word in sys.argv if word not in without]
    words = [
        paths.display(word) if Path(word).is_absolute() else word_without_secrets(word)
        for word in words
    ]
    return shlex.join([*launcher, *words])


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy (with 32 bits of it) and torch."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@lru_cache
def _git_commit() -> str | None:
    """`1a2b3c4d5e6f`, with `-dirty` behind it when tracked files differ from the commit."""
    if not (paths.ROOT / ".git").exists():
        return None  # the commit of a tree that this one was copied into says nothing
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    command.append("--exclude=*")  # no tag in place of the hash
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
