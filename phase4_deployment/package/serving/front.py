"""The outermost part of the application: whom it answers, what is counted and sent with all.

It is plain ASGI, as FastAPI's own middleware would put a task and two queues around every body.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http import HTTPStatus
from typing import Any

from phase4_deployment.package.serving.metrics import Metrics

TIMED = "/detect"
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class Front:
    """An ASGI application around another.

    Args:
        app: what is inside.
        metrics: are told of every answer.
        paths: that are counted by their name; all others together.
        policy: Content-Security-Policy of every answer.
        answers_host: whether requests for a host of this name are answered: a page from elsewhere
            that has its own name point here (DNS rebinding) sees nothing.
    """

    def __init__(
        self,
        app: Application,
        metrics: Metrics,
        paths: Collection[str],
        policy: str,
        answers_host: Callable[[str], bool],
    ):
        self._app, self._metrics, self._paths = app, metrics, paths
        self._answers_host = answers_host
        self._headers = [
            (b"cache-control", b"no-store"),
            (b"content-security-policy", policy.encode("ascii")),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"referrer-policy", b"no-referrer"),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
        ]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        try:
            if self._answers_host(_host(scope)):
                await self._app(scope, receive, send_counted)
            else:
                await _misdirected(send_counted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.on_request(path, status or 500)
            if path == TIMED and status == HTTPStatus.OK:
                self._metrics.on_latency(time.monotonic() - start)


def _host(scope: Message) -> str:
    """The Host header without its port; empty where there is none."""
    name = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    name = re.sub(r":\d*$", "", name)
    return name[1:-1] if name.startswith("[") else name


async def _misdirected(send: Send) -> None:
    body = json.dumps({"error": "this host is not served here – use the server's own address"})
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 421, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
