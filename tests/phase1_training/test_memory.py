"""Finding the batch size: the search by itself, and probing real steps."""

import copy
from dataclasses import replace

import pytest
import torch

from common import timing
from common.cli import UserError
from phase1_training import memory
from phase1_training.distributed import Ranks
from tests.training_batches import CPU, SGD, small_detector


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 13, 63, 64])
def test_the_search_finds_the_most_that_fits_in_few_probes(most):
    probed = []

    def fits(batch_size: int) -> bool:
        probed.append(batch_size)
        return batch_size <= most

    assert memory._bisected(fits, 64) == most
    assert len(probed) == len(set(probed)) <= 12
    assert max(probed) <= 64


def test_nothing_that_fits_is_told():
    with pytest.raises(UserError, match="not even one image fits – lower --min-size"):
        memory._bisected(lambda batch_size: False, 64)


@pytest.mark.parametrize(
    ("one", "two", "available", "expected"),
    [
        (500.0, 700.0, 10_000 / 9, 3),  # 1000 MiB of room: 500 + 200 + 200
        (500.0, 500.0, 10_000.0, 16),  # the second image costs nothing measurable: the bound
        (500.0, 900.0, 100.0, 1),  # at least one
        (None, 900.0, 100.0, 1),  # a system that tells nothing
    ],
)
def test_a_cpus_memory_is_extrapolated(one, two, available, expected):
    peaks = {1: one, 2: two}
    assert memory._extrapolated(peaks.get, 16, available) == expected


def test_real_steps_are_probed_on_a_copy(monkeypatch):
    model = small_detector()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(timing, "available_mib", lambda: 1e9)
    assert memory.largest_batch_size(model, SGD, Ranks(0, 1, CPU), (64, 96), 3) == 16
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_probe_that_runs_out_of_memory_does_not_fit(monkeypatch):
    forward = memory.Trainer._forward

    def limited(self, part):
        if len(part) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, part)

    monkeypatch.setattr(memory.Trainer, "_forward", limited)
    probe = [
        memory._probe(small_detector(), SGD, CPU, memory._worst_batch(count, (64, 96), 3))
        for count in (1, 2)
    ]
    assert probe[0] is not None
    assert probe[1] is None


def test_a_probe_whose_loss_is_no_number_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wild = replace(SGD, learning_rate=1e30)
    memory._probe(small_detector(), wild, CPU, memory._worst_batch(1, (64, 96), 3))
    assert list(tmp_path.iterdir()) == []
