"""The search for a batch size on machines whose every answer is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase2_optimization.batch_search import Measured, best, search


class Machine:
    """Takes `fixed_ms` a call and `image_ms` an image, slower per image above `knee`."""

    def __init__(self, fixed_ms=10.0, image_ms=1.0, knee=10**9, memory=10**9):
        self.fixed_ms, self.image_ms, self.knee, self.memory = fixed_ms, image_ms, knee, memory
        self.asked = []

    def __call__(self, size):
        self.asked.append(size)
        if size > self.memory:
            return None
        ms = self.fixed_ms + self.image_ms * size + 3 * self.image_ms * max(0, size - self.knee)
        return Measured(size / ms * 1e3, ms)


def test_doubles_until_memory_runs_out_then_closes_in():
    machine = Machine(fixed_ms=1000, memory=21)
    measured = search(machine)
    assert [size for size, found in measured.items() if found is None] == [22, 24, 32]
    assert best(measured) == 20 or best(measured) == 21
    assert machine.asked[:6] == [1, 2, 4, 8, 16, 32]


def test_out_of_memory_at_the_first_size():
    measured = search(Machine(memory=0))
    assert measured == {1: None}
    assert best(measured) is None


def test_stops_where_larger_batches_bring_nothing():
    machine = Machine(fixed_ms=10, image_ms=1, knee=8)
    measured = search(machine)
    assert max(measured) == 16
    assert best(measured) == 8
    assert {6, 12} <= set(measured)


def test_a_latency_budget_is_used_up():
    measured = search(Machine(fixed_ms=10, image_ms=1), latency_budget_ms=50)
    within = [size for size, found in measured.items() if found.p90_ms <= 50]
    assert max(within) >= 36  # at most an eighth below the largest that fits: 40
    assert best(measured, 50) == max(within)


def test_a_budget_that_nothing_keeps():
    measured = search(Machine(fixed_ms=100), latency_budget_ms=50)
    assert list(measured) == [1]
    assert best(measured, 50) is None


def test_the_limit_is_kept():
    assert max(search(Machine(fixed_ms=10**6), max_batch_size=64)) == 64


@given(
    st.floats(0.1, 1e4),
    st.floats(0.01, 100),
    st.integers(1, 600),
    st.integers(0, 700),
    st.one_of(st.none(), st.floats(0.1, 1e5)),
)
def test_no_size_is_measured_twice_and_none_beyond_the_limit(fixed, each, knee, memory, budget):
    machine = Machine(fixed, each, knee, memory)
    measured = search(machine, budget)
    assert sorted(machine.asked) == list(measured)
    assert len(machine.asked) == len(set(machine.asked)) <= 20
    assert min(measured) == 1
    assert max(measured) <= 1024
    chosen = best(measured, budget)
    if chosen is not None:
        assert chosen <= memory
        assert budget is None or measured[chosen].p90_ms <= budget


@pytest.mark.parametrize("budget", [None, 50.0])
def test_finds_a_size_near_the_true_best(budget):
    machine = Machine(fixed_ms=20, image_ms=1, knee=24)
    true = {size: machine(size) for size in range(1, 129)}
    machine.asked.clear()
    found = search(machine, budget)
    top = true[best(true, budget)].throughput_img_s
    assert found[best(found, budget)].throughput_img_s >= 0.93 * top
