"""The state of a GPU through a made-up NVML, and what is warned of."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from common.gpu_state import gpu_state, warnings_from

GPU = torch.device("cuda", 0)
FULL_SPEED = {
    "other_processes": 0,
    "throttle_reasons": [],
    "sm_clock_mhz": 1980,
    "max_sm_clock_mhz": 1980,
    "memory_clock_mhz": 2619,
    "temperature_c": 41,
    "power_w": pytest.approx(312.5),
    "power_limit_w": pytest.approx(700.0),
}


class NvmlError(Exception):
    pass


class FakeNvml:
    """Answers as `cuda.bindings.nvml` does, from one GPU at bus address 00000000:1b:00.0."""

    NvmlError = NvmlError

    def __init__(self):
        self.pids, self.reasons, self.open = [os.getpid()], 0, 0

    def init_v2(self):
        self.open += 1

    def shutdown(self):
        self.open -= 1

    def device_get_handle_by_pci_bus_id_v2(self, address):
        if address != "00000000:1b:00.0":
            raise NvmlError("Not Found")
        return 77

    def device_get_compute_running_processes_v3(self, handle):
        assert handle == 77
        return [SimpleNamespace(pid=pid, used_gpu_memory=2**30) for pid in self.pids]

    def device_get_current_clocks_event_reasons(self, handle):
        return self.reasons

    def device_get_clock_info(self, handle, kind):
        return {1: 1980, 2: 2619}[kind]

    def device_get_max_clock_info(self, handle, kind):
        return {1: 1980}[kind]

    def device_get_temperature_v(self, handle, sensor):
        return {0: 41}[sensor]

    def device_get_power_usage(self, handle):
        return 312_500

    def device_get_enforced_power_limit(self, handle):
        return 700_000


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvml", fake)
    place = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: place)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    return fake


def test_a_free_gpu_at_full_speed(nvml):
    assert gpu_state(GPU) == FULL_SPEED
    assert nvml.open == 0, "every init has its shutdown"


@pytest.mark.parametrize(
    ("pids", "is_initialized", "others"),
    [
        ([], True, 0),
        ([os.getpid()], True, 0),
        ([os.getpid(), 5, 6], True, 2),
        ([5], True, 0),  # in a container: this very process under the host's number
        ([5, 6], True, 1),
        ([5, 6], False, 2),  # this process has not touched the GPU
    ],
)
def test_the_own_process_is_no_other_one(nvml, monkeypatch, pids, is_initialized, others):
    nvml.pids = pids
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_initialized)
    assert gpu_state(GPU)["other_processes"] == others


def test_only_slowdowns_are_throttle_reasons(nvml):
    nvml.reasons = 0x01 | 0x02 | 0x10  # idle, clocks set by an administrator, sync boost
    assert gpu_state(GPU)["throttle_reasons"] == []
    nvml.reasons = 0x04 | 0x20
    assert gpu_state(GPU)["throttle_reasons"] == ["power limit", "heat (software)"]


def test_what_a_gpu_does_not_tell_is_null(nvml, monkeypatch):
    def not_supported(*_):
        raise NvmlError("Not Supported")

    monkeypatch.setattr(nvml, "device_get_power_usage", not_supported)
    monkeypatch.delattr(FakeNvml, "device_get_temperature_v")  # older bindings
    assert gpu_state(GPU) == {**FULL_SPEED, "power_w": None, "temperature_c": None}


def test_no_state_without_a_gpu_bindings_driver_or_permission(nvml, monkeypatch):
    assert gpu_state(torch.device("cpu")) is None
    elsewhere = SimpleNamespace(pci_domain_id=0, pci_bus_id=9, pci_device_id=0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device: elsewhere)
        assert gpu_state(GPU) is None
        assert nvml.open == 0

    def no_driver():
        raise RuntimeError("nvml is an NVIDIA driver library and can only be found via the system")

    with monkeypatch.context() as patch:
        patch.setattr(nvml, "init_v2", no_driver)
        assert gpu_state(GPU) is None
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvml", None)  # import raises ImportError
    assert gpu_state(GPU) is None


# --- warnings ---------------------------------------------------------------------------------


def state(**changes):
    return {**FULL_SPEED, "power_w": 312.5, "power_limit_w": 700.0, **changes}


def test_nothing_is_warned_of_at_full_speed_or_without_a_state():
    assert warnings_from(state(), state()) == []
    assert warnings_from(None, None) == []
    assert warnings_from(state(sm_clock_mhz=345), state()) == []  # it was idle before
    assert warnings_from(state(), state(sm_clock_mhz=1900)) == []
    unknown = dict.fromkeys(FULL_SPEED)
    assert warnings_from(unknown, unknown) == []


def test_every_disturbance_is_warned_of():
    before = state(other_processes=1)
    after = state(throttle_reasons=["power limit"], sm_clock_mhz=1410)
    assert warnings_from(before, after) == [
        "1 other process used this GPU: its times may be too long.",
        "The GPU was slowed down by: power limit of 700 W.",
        "The GPU's clock fell from 1980 to 1410 MHz during the measurement.",
    ]
    hot = state(throttle_reasons=["power limit", "heat (hardware)"], other_processes=3)
    assert warnings_from(None, hot) == [
        "3 other processes used this GPU: its times may be too long.",
        "The GPU was slowed down by: heat (hardware), power limit.",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_tells_plausible_values():
    device = torch.device("cuda", torch.cuda.current_device())
    torch.zeros(1, device=device)
    found = gpu_state(device)
    if found is None:
        pytest.skip("no NVML here")
    assert set(found) == set(FULL_SPEED)
    assert found["temperature_c"] is None or 0 < found["temperature_c"] < 120
    assert found["sm_clock_mhz"] is None or 0 < found["sm_clock_mhz"] <= found["max_sm_clock_mhz"]
