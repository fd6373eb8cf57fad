"""Overlaps the stages of a video run: one batch is detected while others are decoded, drawn, saved.

The source decodes in a thread of its own (`frame_source`), `DetectionWorkers` detect batches of
frames side by side, the caller tracks and draws, and a `BackgroundWriter` encodes. Every queue is
bounded, by a number of frames and by their bytes, so a slow stage holds up the ones before it and
few frames are in memory, also of 8K. Frames keep their order.
"""

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from common.cli import UserError
from common.timing import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torchvision.models.detection import FasterRCNN

    from common.models import Predictor
    from common.stop_signal import StopSignal
    from common.video import VideoWriter

MAX_CPU_WORKERS = 4  # each holds the activations of a batch
GPU_WORKERS = 2

Frame = TypeVar("Frame")
ENCODE_QUEUE = 8  # drawn frames that wait for the encoder
BATCH_BYTES, ENCODE_BYTES = 2 << 30, 256 << 20  # of frames in batches, and of those that wait


def default_workers(device: str) -> int:
    """How many batches to detect at a time on "cpu", "cuda:0" or another device."""
    if device == "cpu":
        import torch

        return min(MAX_CPU_WORKERS, torch.get_num_threads())
    return GPU_WORKERS if device.startswith("cuda") else 1


def batch_size_within(size: int, workers: int, frame_bytes: int) -> int:
    """`size`, or how many frames of so many bytes each batch may have for all to fit into
    BATCH_BYTES; at least 1.

    Of the `workers` + 2 batches there are at a time one is tracked and drawn, and one waits for a
    worker. Those that are detected have a copy in RGB.
    """
    batches = workers + 2 + max(1, workers)
    return max(1, min(size, BATCH_BYTES // (batches * frame_bytes)))


def dtype_of(precision: str, device: "torch.device") -> "torch.dtype":
    """The dtype of "fp32", "bf16" or "fp16"; "auto" takes what the device computes natively.

    Raises:
        UserError: the device does not compute in it.
    """
    import torch

    from common.fastpath import native_amp

    native = native_amp(device)
    if precision == "auto":
        precision = "fp32" if native == "off" else native
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16", "for GPUs only", "use auto, fp32 or bf16")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def network(model: "FasterRCNN", precision: str) -> "tuple[Predictor, str, str]":
    """A fast Predictor that leaves the model as it is, its device, and the name of its dtype.

    Raises:
        UserError: see `dtype_of`.
    """
    from common.fast_inference import shipped_graph
    from common.inference_graph import graph_predictor

    device = next(model.parameters()).device
    dtype = dtype_of(precision, device)
    predict = graph_predictor(shipped_graph(model, device, dtype), device)
    return predict, str(device), str(dtype).removeprefix("torch.")


def in_batches(frames: Iterable[Frame], size: int, stop: "StopSignal") -> Iterator[list[Frame]]:
    """Batches of `size` frames, the last one smaller, until a signal was received; but one batch at
    least, as a video needs a frame."""
    frames = iter(frames)
    while batch := list(islice(frames, size)):
        yield batch
        if stop.received:
            return


class DetectionWorkers(Generic[Frame]):
    """Context manager that detects batches in several threads and hands them back in order.

    A network of moderate size keeps two processor cores busier with two batches of one thread each
    than with one batch of two threads, and other stages then disturb one of them only. On a GPU two
    workers let a batch be copied while another is computed.

    Args:
        detect: frames -> one array of detections for each; called from several threads at a time.
        workers: batches detected at a time. On a CPU they share its threads. 0 detects in the
            caller's thread, when a batch is asked for: no frame then waits for another.
        device: "cpu", "cuda:0", ...: where detection runs.
    """

    def __init__(
        self, detect: Callable[[list[Frame]], list[np.ndarray]], workers: int, device: str
    ):
        self.seconds = 0.0  # of all workers
        self._detect, self._workers, self._device = detect, workers, device
        self._lock = threading.Lock()
        self._threads = 0
        self._pool = ThreadPoolExecutor(max(1, workers), "detect", initializer=self._prepare)

    def _prepare(self) -> None:
        """In every thread, before it detects."""
        torch = _loaded_torch(self._device)
        if torch and self._device.startswith("cuda"):
            torch.cuda.set_stream(torch.cuda.Stream(self._device))
        elif torch and self._threads:
            torch.set_num_threads(max(1, self._threads // self._workers))

    def map(self, batches: Iterable[list[Frame]]) -> Iterator[tuple[list[Frame], list[np.ndarray]]]:
        """(frames, their detections) of every batch; at most `workers` + 1 batches are in work."""
        pending: deque[tuple[list[Frame], Future[list[np.ndarray]]]] = deque()
        for batch in batches:
            if not self._workers:
                yield batch, self._timed(batch)
                continue
            pending.append((batch, self._pool.submit(self._timed, batch)))
            if len(pending) > self._workers:
                frames, detections = pending.popleft()
                yield frames, detections.result()
        for frames, detections in pending:
            yield frames, detections.result()

    def _timed(self, batch: list[Frame]) -> list[np.ndarray]:
        begin = time.perf_counter()
        try:
            found = self._detect(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            what = f"{len(batch)} frames do not fit into the memory of {self._device}"
            remedy = "give a smaller --batch-size, or --resize"
            raise UserError("detection", what, remedy) from error
        with self._lock:
            self.seconds += time.perf_counter() - begin
        return found

    def __enter__(self) -> "DetectionWorkers":
        torch = _loaded_torch(self._device)
        if torch and self._workers and self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)  # weights are there for every stream
        if torch and self._workers > 1:
            self._threads = torch.get_num_threads()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._threads:
            sys.modules["torch"].set_num_threads(self._threads)  # for threads to come


def _loaded_torch(device: str) -> Any:
    """PyTorch if it may be what detects on the device: on a GPU its model is there already. ONNX
    Runtime has streams and threads of its own, and may run where PyTorch is not installed."""
    torch = sys.modules.get("torch")
    if torch and device.startswith("cuda") and not torch.cuda.is_initialized():
        return None
    return torch


class BackgroundWriter:
    """Context manager that encodes in a thread, inside the block of a `VideoWriter`.

    When it ends, every frame given to it is encoded. What encoding raises is raised by the next
    `write`, or at the end.

    Args:
        frame_bytes: of a frame; fewer wait if they are large.
    """

    def __init__(self, writer: "VideoWriter", frame_bytes: int = 1):
        self.seconds = 0.0
        self._writer = writer
        self._error: BaseException | None = None
        self._queue: queue.Queue[tuple[np.ndarray, Fraction | None] | None]
        self._queue = queue.Queue(max(1, min(ENCODE_QUEUE, ENCODE_BYTES // frame_bytes)))
        self._thread = threading.Thread(target=self._encode, name="encode", daemon=True)

    def write(self, frame_bgr: np.ndarray, time_s: Fraction | None = None) -> None:
        """Hands over one frame, which must not be changed any more; see `VideoWriter.write`."""
        if self._error is not None:
            raise self._error
        self._queue.put((frame_bgr, time_s))

    def _encode(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue  # only makes room, so that nobody hangs in put()
            begin = time.perf_counter()
            try:
                self._writer.write(*item)
            except Exception as error:  # noqa: BLE001 – raised again in the caller's thread
                self._error = error
            self.seconds += time.perf_counter() - begin

    def __enter__(self) -> "BackgroundWriter":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error
