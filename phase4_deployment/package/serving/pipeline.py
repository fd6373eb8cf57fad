"""The way of an accepted picture: decoded in one thread, detected in another, several at a time.

Decoding keeps ahead of the detector by one batch, so that the next one is ready when it has
finished, and no more than two batches of decoded pictures are ever in memory.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phase4_deployment.package.picture_results import detection_rows
from phase4_deployment.package.serving.batching import Batcher, Detect
from phase4_deployment.package.serving.metrics import Metrics
from phase4_deployment.package.serving.pictures import decoded
from phase4_deployment.package.serving.refusal import RefusedError

if TYPE_CHECKING:
    import numpy as np

DECODERS = 2
MAX_RETRY_AFTER_S = 60


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        queue_size: accepted pictures at a time, those in the detector among them.
        max_bytes: of the body of a request.
        max_pixels: of a picture.
        body_s: for a body to arrive, in seconds.
        answer_s: from an accepted picture to its answer, in seconds.
    """

    queue_size: int
    max_bytes: int
    max_pixels: int
    body_s: float
    answer_s: float


class Pipeline:
    """Context manager: answers pictures while the block runs.

    Args:
        detect: uint8 BGR images (H, W, 3) of one size -> (N, 6) [x1, y1, x2, y2, confidence,
            category id] of each.
        class_names: category id -> name.
        batch_size, wait_s: see Batcher.
    """

    def __init__(
        self,
        detect: Detect,
        class_names: Mapping[int, str],
        batch_size: int,
        wait_s: float,
        limits: Limits,
        metrics: Metrics,
    ):
        self.limits, self.metrics = limits, metrics
        self._class_names, self.batch_size = class_names, batch_size
        self._detect = detect
        self._batcher = Batcher(self._detect_counted, batch_size, wait_s, metrics.on_batch)
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")
        self._ahead = asyncio.Semaphore(2 * batch_size)
        self.in_work = self._running = 0

    def __enter__(self) -> "Pipeline":
        self._batcher.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher.__exit__()
        self._decoders.shutdown()

    @property
    def is_alive(self) -> bool:
        return self._batcher.is_alive

    @property
    def queue_length(self) -> int:
        return max(0, self.in_work - self._running)

    def check_room(self) -> None:
        """Raises RefusedError (429) when no further picture is taken on."""
        if self.in_work >= self.limits.queue_size:
            wait_s = math.ceil(self.in_work * self.metrics.image_s)
            retry_after_s = min(max(1, wait_s), MAX_RETRY_AFTER_S)
            raise RefusedError(429, "too many pictures wait", "try again later", retry_after_s)

    async def answer(self, content_type: str, body: bytes) -> dict[str, Any]:
        """`width`, `height` and `detections` of the picture in a body, as detect.py writes them.

        Raises:
            RefusedError: 400 or 413 for another body, 429 without room, 504 after `answer_s`.
        """
        self.check_room()
        self.in_work += 1
        try:
            return await asyncio.wait_for(self._answer(content_type, body), self.limits.answer_s)
        except asyncio.TimeoutError:
            what = f"no answer within {self.limits.answer_s:g} s"
            raise RefusedError(504, what, "try again later") from None
        finally:
            self.in_work -= 1

    async def _answer(self, content_type: str, body: bytes) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        async with self._ahead:
            image = await loop.run_in_executor(
                self._decoders, decoded, content_type, body, self.limits.max_pixels
            )
            found = await asyncio.wrap_future(self._batcher.submit(image))
        height, width = image.shape[:2]
        rows = detection_rows(found, self._class_names)
        return {"width": width, "height": height, "detections": rows}

    def _detect_counted(self, images: "Sequence[np.ndarray]") -> "Sequence[np.ndarray]":
        self._running = len(images)
        try:
            return self._detect(images)
        finally:
            self._running = 0
