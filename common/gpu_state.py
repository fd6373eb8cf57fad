"""What can spoil a measurement on a GPU: other processes, heat, the power limit, falling clocks.

Read through NVML, whose Python bindings (`cuda.bindings`) come with CUDA builds of PyTorch. Where
they or the driver are missing there is no state, and a report says null.
"""

import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Bits of nvmlClocksEventReasons that mean a GPU runs slower than it could; the others (idle, clocks
# set by an administrator) do not change within a run.
THROTTLE_REASONS = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
SM_CLOCK, MEMORY_CLOCK, GPU_SENSOR = 1, 2, 0  # nvmlClockType_t, nvmlTemperatureSensors_t
MILLI = 1e-3
CLOCK_DROP = 0.9  # of the clock before; a GPU at work differs by less from moment to moment


def gpu_state(device: "torch.device") -> dict[str, Any] | None:
    """The present state of a CUDA device; None on other devices and where NVML is missing.

    Returns:
        `other_processes` (how many compute on it beside this one), `throttle_reasons` (names, empty
        at full speed), `sm_clock_mhz`, `max_sm_clock_mhz`, `memory_clock_mhz`, `temperature_c`,
        `power_w` and `power_limit_w`; None for what this GPU does not tell.
    """
    if device.type != "cuda":
        return None
    try:
        nvml = importlib.import_module("cuda.bindings.nvml")
    except ImportError:  # a build of PyTorch for another kind of device, or an older one
        return None
    try:
        nvml.init_v2()
    except (RuntimeError, nvml.NvmlError):  # no driver
        return None
    try:
        return _read(nvml, _handle(nvml, device))
    except nvml.NvmlError:  # a GPU hidden from this user
        return None
    finally:
        nvml.shutdown()


def _handle(nvml: ModuleType, device: "torch.device") -> int:
    """By the address on the bus: NVML counts GPUs in another order than CUDA."""
    import torch

    gpu: Any = torch.cuda.get_device_properties(device)  # its stub lacks the address
    address = f"{gpu.pci_domain_id:08x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    return nvml.device_get_handle_by_pci_bus_id_v2(address)


def _read(nvml: ModuleType, handle: int) -> dict[str, Any]:
    def reading(function: str, *arguments: int, scale: float = 1) -> Any:
        try:
            value = getattr(nvml, function)(handle, *arguments)
        except (AttributeError, RuntimeError, nvml.NvmlError):  # unknown here, or not supported
            return None
        return value if scale == 1 else value * scale

    reasons = reading("device_get_current_clocks_event_reasons")
    return {
        "other_processes": _others(reading("device_get_compute_running_processes_v3")),
        "throttle_reasons": None
        if reasons is None
        else [name for bit, name in THROTTLE_REASONS.items() if reasons & bit],
        "sm_clock_mhz": reading("device_get_clock_info", SM_CLOCK),
        "max_sm_clock_mhz": reading("device_get_max_clock_info", SM_CLOCK),
        "memory_clock_mhz": reading("device_get_clock_info", MEMORY_CLOCK),
        "temperature_c": reading("device_get_temperature_v", GPU_SENSOR),
        "power_w": reading("device_get_power_usage", scale=MILLI),
        "power_limit_w": reading("device_get_enforced_power_limit", scale=MILLI),
    }


def _others(processes: Any) -> int | None:
    """How many processes are not this one. In a container NVML knows it by another number, so a
    process that works on the GPU and is not listed under its own is one of the others."""
    import torch

    if processes is None:
        return None
    pids = [int(process.pid) for process in processes]
    is_listed = os.getpid() in pids
    return len(pids) - (1 if is_listed or (pids and torch.cuda.is_initialized()) else 0)


def warnings_from(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    """Sentences on what may have made a measurement slower.

    Args:
        before, after: `gpu_state` at the beginning and right after the measured work.
    """
    states = [state for state in (before, after) if state]
    warnings = []
    others = max((state["other_processes"] or 0 for state in states), default=0)
    if others:
        noun = "process used" if others == 1 else "processes used"
        warnings.append(f"{others} other {noun} this GPU: its times may be too long.")
    slowed = {reason for state in states for reason in state["throttle_reasons"] or ()}
    if slowed:
        limit = states[-1]["power_limit_w"]
        beside = f" of {limit:.0f} W" if slowed == {"power limit"} and limit else ""
        warnings.append(f"The GPU was slowed down by: {', '.join(sorted(slowed))}{beside}.")
    clocks = [state["sm_clock_mhz"] for state in states]
    if len(clocks) == 2 and None not in clocks and clocks[1] < CLOCK_DROP * clocks[0]:
        warnings.append(
            f"The GPU's clock fell from {clocks[0]} to {clocks[1]} MHz during the measurement."
        )
    return warnings
