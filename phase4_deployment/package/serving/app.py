"""What the server answers.

    POST /detect    a JPEG or PNG as the body, or as the one file of a form -> its boxes, in JSON
    GET  /          a page to drop a picture on
    GET  /health    whether it works, and what runs it
    GET  /metrics   counters for Prometheus
    GET  /openapi.json

An error is a line of JSON: {"error": "what is wrong – what to do"}.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from common.cli import log
from common.content_policy import content_policy
from phase4_deployment.package.serving.bodies import Body, Memory
from phase4_deployment.package.serving.front import Front
from phase4_deployment.package.serving.metrics import CONTENT_TYPE
from phase4_deployment.package.serving.pictures import FORM_TYPE, PICTURE_TYPES, check_type
from phase4_deployment.package.serving.pipeline import Pipeline
from phase4_deployment.package.serving.refusal import RefusedError

PAGE = Path(__file__).with_name("page.html")
SLOW = 408
PATHS = ("/", "/detect", "/health", "/metrics", "/openapi.json")
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURE_TYPES},
            FORM_TYPE: {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


class Answers:
    """One function for each path.

    Args:
        about: what /health tells of the detector.
        is_draining: whether nothing new is to be taken on.
        page: what / shows.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        about: Mapping[str, Any],
        is_draining: Callable[[], bool],
        page: bytes,
    ):
        self._pipeline, self._about, self._page = pipeline, about, page
        self._is_draining = is_draining
        self._memory = Memory(pipeline.limits)

    async def detect(self, request: Request) -> Response:
        """Boxes as [x1, y1, x2, y2] in pixels of the upright picture, best first."""
        with Body(request, self._pipeline.limits, self._memory) as body:
            try:
                return JSONResponse(await self._boxes(request, body))
            except RefusedError as refusal:
                if refusal.status != SLOW:
                    await body.discard()
                return _refused(refusal)
            except Exception:  # noqa: BLE001 - the session failed: the next picture gets its turn
                log.exception("A picture was not answered")
                return _error(500, "internal error – see what the server wrote")

    async def _boxes(self, request: Request, body: Body) -> dict[str, Any]:
        if self._is_draining():
            raise RefusedError(503, "the server ends", "try again later", 1)
        content_type = request.headers.get("content-type", "")
        check_type(content_type)
        self._pipeline.check_room()
        return await self._pipeline.answer(content_type, await body.read())

    async def health(self) -> Response:
        """Whether it works (503 if not), and what runs it."""
        pipeline, is_draining = self._pipeline, self._is_draining()
        is_working = pipeline.is_alive and not is_draining
        status = "ok" if is_working else "draining" if is_draining else "broken"
        load = {"queue_length": pipeline.queue_length, "pictures_in_work": pipeline.in_work}
        return JSONResponse({"status": status, **self._about, **load}, 200 if is_working else 503)

    async def metrics(self) -> Response:
        """Counters in Prometheus' text format."""
        pipeline = self._pipeline
        text = pipeline.metrics.text(pipeline.queue_length, pipeline.in_work)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    async def index(self) -> Response:
        return Response(self._page, media_type="text/html; charset=utf-8")


def build_app(
    pipeline: Pipeline,
    about: Mapping[str, Any],
    *,
    is_draining: Callable[[], bool],
    answers_host: Callable[[str], bool],
) -> Front:
    """The application that uvicorn runs.

    Args:
        about, is_draining: see Answers.
        answers_host: whether it answers requests for a host of this name.
    """
    app = FastAPI(
        title="Object detector",
        version="1",
        docs_url=None,  # these load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    page = PAGE.read_text(encoding="utf-8")
    answers = Answers(pipeline, about, is_draining, page.encode())
    app.add_api_route(
        "/detect", answers.detect, methods=["POST"], response_model=None, openapi_extra=BODY
    )
    for path, answer in (
        ("/health", answers.health),
        ("/metrics", answers.metrics),
        ("/", answers.index),
    ):
        is_described = path != "/"
        for method in ("GET", "HEAD"):
            app.add_api_route(
                path,
                answer,
                methods=[method],
                response_model=None,
                include_in_schema=is_described and method == "GET",
            )
    for status in (404, 405):
        app.add_exception_handler(status, _not_here)
    policy = content_policy(page, "blob: data:")
    return Front(app, pipeline.metrics, PATHS, policy, answers_host)


async def _not_here(request: Request, error: Any) -> Response:
    text = {
        404: f"there is nothing here – there are {', '.join(PATHS)}",
        405: "this path takes another method – POST a picture to /detect, GET the others",
    }[error.status_code]
    return _error(error.status_code, text, error.headers)


def _refused(refusal: RefusedError) -> Response:
    headers = {}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.status in (SLOW, 413, 503):  # what the client still sends is no request
        headers["Connection"] = "close"
    return _error(refusal.status, str(refusal), headers)


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)
