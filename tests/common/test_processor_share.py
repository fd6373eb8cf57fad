"""The share of the time that a processor worked for us, on clocks that are planted."""

import pytest
import torch

from common import processor_share
from common.processor_share import ProcessorShare, waiting_told


@pytest.mark.parametrize(("device", "share"), [("cpu", 0.5), ("meta", None)])
def test_the_share_is_the_threads_time_of_the_whole(monkeypatch, device, share):
    looks, works = iter([10.0, 14.0]), iter([1.0, 3.0])
    monkeypatch.setattr(processor_share, "perf_counter", lambda: next(looks))
    monkeypatch.setattr(processor_share, "thread_time", lambda: next(works))
    with ProcessorShare(torch.device(device)) as processor:
        assert processor.share is None
    assert processor.share == share


def test_a_clock_that_stood_still_tells_nothing(monkeypatch):
    monkeypatch.setattr(processor_share, "perf_counter", lambda: 1.0)
    with ProcessorShare(torch.device("cpu")) as processor:
        pass
    assert processor.share is None


def test_waiting_is_told_without_a_guess_at_why():
    assert waiting_told("batch size 4", 0.52) == (
        "batch size 4: the main thread ran 52% of the time and waited for the rest: for a "
        "processor that others use, for its own other threads or for the disk; in the first case "
        "the times are too long."
    )
    assert waiting_told("batch size 4", 0.9) is waiting_told("batch size 4", None) is None
