"""common.environment: the device asked for or an error, and facts that can be written as JSON."""

import json
import os
import random
import shlex
import sys

import numpy as np
import pytest
import torch

from common import environment, paths
from common.cli import UserError


def test_cpu_is_always_there():
    assert environment.select_device("cpu") == torch.device("cpu")


def test_an_index_behind_cpu_is_dropped():
    assert str(environment.select_device("cpu:0")) == "cpu"


def test_auto_takes_a_device_that_exists():
    device = environment.select_device("auto")
    assert torch.zeros(1, device=device).device.type == device.type


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cuda:99", "meta", "xpu", "cpu cuda"])
def test_a_device_that_is_not_there_is_an_error(name):
    with pytest.raises(UserError, match="--device"):
        environment.select_device(name)


def test_cuda_by_name_never_falls_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.select_device("auto").type != "cuda"
    with pytest.raises(UserError, match="no CUDA device found"):
        environment.select_device("cuda")


def test_cuda_index_is_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert environment.select_device("cuda") == torch.device("cuda", 0)
    assert environment.select_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="2 CUDA devices found"):
        environment.select_device("cuda:2")


def test_description_is_complete_and_json():
    facts = json.loads(json.dumps(environment.describe("cpu"), allow_nan=False))
    assert facts["device"] == "cpu"
    assert facts["device_name"] == facts["cpu"]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    assert set(facts) >= {"python", "platform", "cpu_count", "git_commit"}


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_told_for_matmul_and_for_convolutions(monkeypatch, allowed):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    facts = environment.describe("cuda:0")
    assert facts["device_name"] == "some GPU"
    matmul = torch.backends.cuda.matmul.allow_tf32
    assert facts["tf32"] == {"matmul": matmul, "convolutions": allowed}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_pytorch_a_description_is_what_python_knows(monkeypatch, device):
    expected = environment.describe("cpu")
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails
    facts = json.loads(json.dumps(environment.describe(device), allow_nan=False))
    assert (facts["threads"], facts["cpu_features"]) == (None, [])
    assert facts["device_name"] == {"cpu": expected["cpu"], "cuda": "cuda"}[device]
    assert "tf32" not in facts
    for key in ("cpu", "cpu_count", "python", "platform", "packages", "git_commit"):
        assert facts[key] == expected[key]


def test_a_device_that_pytorch_does_not_know_keeps_its_name(monkeypatch):
    def fail(device):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "get_device_name", fail)
    assert environment.device_name("cuda") == "cuda"


def test_the_commit_of_a_tree_around_this_one_is_not_told(monkeypatch, tmp_path):
    environment._git_commit.cache_clear()
    monkeypatch.setattr(paths, "ROOT", paths.ROOT / "phase1_training")
    assert environment._git_commit() is None
    environment._git_commit.cache_clear()


def test_summary_line_names_versions_and_device():
    line = environment.summary_line("cpu")
    assert torch.__version__ in line
    assert "cpu (" in line
    assert "\n" not in line


def test_command_line_hides_where_the_repository_is(monkeypatch):
    script = str(paths.ROOT / "phase1_training" / "train.py")
    data = str(paths.ROOT / "my data")
    monkeypatch.setattr(sys, "argv", [script, "--data-path", data, "--lr", "0.1"])
    command = environment.command_line()
    assert shlex.split(command) == [
        *("python", "phase1_training/train.py", "--data-path", "my data", "--lr", "0.1")
    ]


def test_p3_22_command_line_hides_the_passwords_of_cameras(monkeypatch):
    words = ["rtsp://user:word@host/live?key=secret", "--input=http://user:word@host/a b.mp4"]
    monkeypatch.setattr(sys, "argv", ["detect.py", *words, "--line", "a:0,0,1,1"])
    assert shlex.split(environment.command_line())[2:] == [
        *("rtsp://host/live", "--input=http://host/a b.mp4", "--line", "a:0,0,1,1")
    ]


def draws() -> tuple:
    global_numpy = np.random.random()  # noqa: NPY002 - the one libraries draw from
    return random.random(), global_numpy, torch.rand(1).item()


def test_the_seed_fixes_every_generator():
    environment.seed_everything(7)
    first = draws()
    environment.seed_everything(8)
    other = draws()
    environment.seed_everything(7)
    assert draws() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [0, -1, 2**32, 2**63])
def test_unusual_seeds_are_accepted(seed):
    environment.seed_everything(seed)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores can be chosen here")
def test_cores_are_counted_that_may_be_used():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert environment.usable_cores() == environment.describe("cpu")["cpu_count"] == 1
    finally:
        os.sched_setaffinity(0, allowed)
