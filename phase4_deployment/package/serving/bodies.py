"""Bodies of requests, as they arrive: none too large, too slow, or too many at a time."""

import asyncio
import contextlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from phase4_deployment.package.serving.pipeline import DECODERS, Limits
from phase4_deployment.package.serving.refusal import CLIENT_LEFT, RefusedError

if TYPE_CHECKING:
    from fastapi import Request

LARGEST_AT_A_TIME = 16  # so many bodies of the largest size may be in memory, with their copies
LINGER_S = 2.0  # for a client to send what nobody wants, and then to read why
MEBIBYTE = 1024 * 1024


class Memory:
    """Bytes of all bodies that are held, those half read among them.

    Each is there once: the only copy is the file that a decoder takes out of a form, for which the
    limit leaves room.
    """

    def __init__(self, limits: Limits):
        self.limit = (LARGEST_AT_A_TIME - DECODERS) * limits.max_bytes
        self.held = 0


class Body:
    """Context manager: the body of one request, whose memory counts until the block ends."""

    def __init__(self, request: "Request", limits: Limits, memory: Memory):
        self._request, self._limits, self._memory = request, limits, memory
        self._data = io.BytesIO()  # gives its bytes away without copying them
        self._is_whole = False

    def __enter__(self) -> "Body":
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.held -= self._data.tell()

    async def read(self) -> bytes:
        """The whole of it.

        Raises:
            RefusedError: 408 when it is too slow, 413 too large, 429 when others fill the memory;
                CLIENT_LEFT.
        """
        length = self._request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.max_bytes:
            raise self._too_large()
        try:
            await asyncio.wait_for(self._receive(self._keep), self._limits.body_s)
        except asyncio.TimeoutError:
            what = f"the body has not arrived within {self._limits.body_s:g} s"
            raise RefusedError(408, what, "send it faster, or smaller") from None
        return self._data.getvalue()

    async def discard(self) -> None:
        """Lets the client send the rest, but not for long: one that is cut off while it still sends
        would not see the answer. Who asks before sending (Expect: 100-continue) need not."""
        if self._request.headers.get("expect"):
            return
        with contextlib.suppress(asyncio.TimeoutError, RefusedError):
            await asyncio.wait_for(self._receive(lambda chunk: None), LINGER_S)

    async def _receive(self, take: Callable[[bytes], None]) -> None:
        while not self._is_whole:
            message = await self._request.receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(CLIENT_LEFT, "the client has left", "come back")
            self._is_whole = not message.get("more_body", False)
            take(message.get("body", b""))

    def _keep(self, chunk: bytes) -> None:
        if self._data.tell() + len(chunk) > self._limits.max_bytes:
            raise self._too_large()
        if self._memory.held + len(chunk) > self._memory.limit:
            raise RefusedError(429, "too many pictures arrive", "try again later", 1)
        self._memory.held += len(chunk)
        self._data.write(chunk)

    def _too_large(self) -> RefusedError:
        limit = f"{self._limits.max_bytes / MEBIBYTE:g} MiB"
        return RefusedError(413, f"the body is larger than {limit}", "send a smaller picture")
