"""Which images share an inference, how long they wait, and what a failure costs."""

import time
import weakref

import numpy as np
import pytest

from phase4_deployment.package.serving.batching import Batcher
from tests.phase4_deployment.serving.running import TIMEOUT_S, Gate, wait_until

SMALL, LARGE = (2, 3, 3), (4, 3, 3)


def image(shape=SMALL, level: int = 0) -> np.ndarray:
    return np.full(shape, level, np.uint8)


def levels(images):
    """A detector that finds the first value of an image."""
    return [np.array([one.flat[0]]) for one in images]


def test_images_that_wait_together_share_a_batch_of_their_size():
    gate, told = Gate(), []
    with Batcher(gate, 3, 0.0, lambda size, seconds: told.append(size)) as batcher:
        batcher.submit(image())
        assert gate.entered.wait(TIMEOUT_S)
        for shape in (SMALL, LARGE, SMALL, SMALL, LARGE, SMALL):
            last = batcher.submit(image(shape))
        gate.open()
        last.result(TIMEOUT_S)
    # the longest waiting first, with those of its size, at most three
    assert gate.batches == [[SMALL], [SMALL] * 3, [LARGE] * 2, [SMALL]]
    assert told == [1, 3, 2, 1]


def test_every_image_gets_its_own_answer():
    with Batcher(levels, 4, 0.01) as batcher:
        answers = [batcher.submit(image((SMALL, LARGE)[n % 2], n)) for n in range(50)]
        assert [int(one.result(TIMEOUT_S)[0]) for one in answers] == list(range(50))


def test_a_full_batch_does_not_wait():
    gate = Gate()
    gate.open()
    with Batcher(gate, 2, 3600) as batcher:
        answers = [batcher.submit(image()) for _ in range(2)]
        for one in answers:
            one.result(TIMEOUT_S)
    assert gate.batches == [[SMALL] * 2]


def test_an_image_alone_waits_no_longer_than_it_should():
    with Batcher(levels, 2, 0.2) as batcher:
        start = time.monotonic()
        batcher.submit(image()).result(TIMEOUT_S)
        assert time.monotonic() - start >= 0.2


def test_company_of_another_size_does_not_prolong_the_wait():
    gate = Gate()
    gate.open()
    with Batcher(gate, 2, 0.05) as batcher:
        first, second = batcher.submit(image()), batcher.submit(image(LARGE))
        first.result(TIMEOUT_S)
        second.result(TIMEOUT_S)
    assert gate.batches == [[SMALL], [LARGE]]


def test_an_image_nobody_waits_for_any_more_is_not_looked_at_and_is_let_go():
    gate = Gate()
    with Batcher(gate, 4, 0.0) as batcher:
        first = batcher.submit(image())
        assert gate.entered.wait(TIMEOUT_S)
        unwanted = image()
        gone = weakref.ref(unwanted)
        answer = batcher.submit(unwanted)
        del unwanted
        assert answer.cancel()
        del answer
        assert gone() is None  # without a collection, and although the detector is still busy
        last = batcher.submit(image())
        gate.open()
        first.result(TIMEOUT_S)
        last.result(TIMEOUT_S)
    assert gate.batches == [[SMALL], [SMALL]]


def test_no_image_stays_in_memory_when_it_has_its_answer():
    with Batcher(levels, 4, 0.0) as batcher:
        answered = image()
        gone = weakref.ref(answered)
        batcher.submit(answered).result(TIMEOUT_S)
        del answered
        wait_until(lambda: gone() is None)  # although no other comes


def test_an_image_that_fails_does_not_spoil_the_others():
    def detect(images):
        if any(one.flat[0] == 7 for one in images):
            raise RuntimeError("out of memory")
        return levels(images)

    with Batcher(detect, 3, 3600) as batcher:
        answers = [batcher.submit(image(level=level)) for level in (6, 7, 8)]
        assert answers[0].result(TIMEOUT_S) == 6
        with pytest.raises(RuntimeError, match="out of memory"):
            answers[1].result(TIMEOUT_S)
        assert answers[2].result(TIMEOUT_S) == 8
        assert batcher.is_alive


def test_a_detector_that_returns_too_few_is_an_error_and_no_wait():
    with Batcher(lambda images: [], 1, 0.0) as batcher, pytest.raises(ValueError, match="zip"):
        batcher.submit(image()).result(TIMEOUT_S)


def test_what_was_submitted_is_answered_at_the_end_without_waiting_for_company():
    with Batcher(levels, 8, 3600) as batcher:
        answers = [batcher.submit(image(level=n)) for n in range(3)]
    assert [int(one.result(0)[0]) for one in answers] == [0, 1, 2]
    assert not batcher.is_alive
    with pytest.raises(RuntimeError, match="has ended"):
        batcher.submit(image())
