"""Bodies of requests: what they count, and that they are in memory no more often than counted."""

import asyncio
import tracemalloc
from types import SimpleNamespace

import pytest

from phase4_deployment.package.serving.bodies import LARGEST_AT_A_TIME, Body, Memory
from phase4_deployment.package.serving.pipeline import DECODERS, Limits
from phase4_deployment.package.serving.refusal import RefusedError

CHUNK = 64 * 1024


def limits(max_bytes: int) -> Limits:
    return Limits(queue_size=4, max_bytes=max_bytes, max_pixels=100, body_s=5.0, answer_s=5.0)


def request_of(*sizes: int) -> SimpleNamespace:
    """A request whose body comes in chunks of these sizes."""
    chunks = iter(sizes)
    left = len(sizes)

    async def receive():
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": b"x" * next(chunks), "more_body": left > 0}

    return SimpleNamespace(headers={}, receive=receive)


def test_a_body_is_in_memory_once():
    count = 64
    allowed = limits(count * CHUNK)
    memory = Memory(allowed)

    async def measured(body: Body) -> tuple[bytes, int]:
        tracemalloc.start()
        try:
            return await body.read(), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with Body(request_of(*[CHUNK] * count), allowed, memory) as body:
        data, peak = asyncio.run(measured(body))
        assert data == b"x" * (count * CHUNK)
        assert memory.held == len(data)
    assert memory.held == 0
    assert peak < 1.3 * len(data)  # what it grows by beforehand among it


def test_the_limit_leaves_room_for_the_copies_of_the_decoders():
    memory = Memory(limits(1000))
    assert memory.limit + DECODERS * 1000 == LARGEST_AT_A_TIME * 1000


@pytest.mark.parametrize(
    ("held", "sizes", "status", "kept"),
    [(0, (600, 401), 413, 600), (13_500, (300, 201), 429, 300), (13_500, (300, 200), None, 500)],
)
def test_what_is_refused_counts_until_the_block_ends(held, sizes, status, kept):
    """A byte too many of one body, or of all together: 14 of 1000 bytes."""
    memory = Memory(limits(1000))
    memory.held = held
    with Body(request_of(*sizes), limits(1000), memory) as body:
        if status is None:
            assert asyncio.run(body.read()) == b"x" * 500
        else:
            with pytest.raises(RefusedError) as refused:
                asyncio.run(body.read())
            assert refused.value.status == status
        assert memory.held == held + kept
    assert memory.held == held
