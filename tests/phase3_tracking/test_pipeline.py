"""Order, bounds and errors of the overlapping stages; test_video_detector.py runs them together."""

import sys
import threading
import time
import weakref
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.cli import UserError
from phase3_tracking import pipeline
from phase3_tracking.pipeline import (
    BackgroundWriter,
    DetectionWorkers,
    batch_size_within,
    dtype_of,
    in_batches,
)

CPU = torch.device("cpu")


def numbered(count: int, size: int = 2) -> list[list[np.ndarray]]:
    frames = [np.full((2, 2, 3), index, np.uint8) for index in range(count)]
    return [frames[start : start + size] for start in range(0, count, size)]


def number_of(frame: np.ndarray) -> int:
    return int(frame[0, 0, 0])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_frames(workers):
    pauses = np.random.default_rng(workers).uniform(0, 0.01, 20)

    def detect(frames):
        time.sleep(pauses[number_of(frames[0])])  # later batches may be done earlier
        return [frame[:1, 0, :1].astype(int) for frame in frames]

    with DetectionWorkers(detect, workers, "cpu") as pool:
        pairs = [
            (number_of(frame), int(found[0, 0]))
            for frames, detections in pool.map(numbered(19))
            for frame, found in zip(frames, detections, strict=True)
        ]
    assert pairs == [(index, index) for index in range(19)]
    assert pool.seconds >= pauses[:19:2].sum()


def test_no_more_batches_are_taken_than_are_in_work():
    taken = []

    def batches():
        for batch in numbered(40):
            taken.append(batch)
            yield batch

    with DetectionWorkers(lambda frames: [np.empty((0, 6))] * len(frames), 2, "cpu") as pool:
        for done, _ in enumerate(pool.map(batches()), 1):
            assert len(taken) - done <= 2


def test_without_workers_a_batch_is_detected_when_it_is_asked_for():
    """In latency mode: nothing waits, in no thread but the caller's."""
    threads, taken = set(), []

    def detect(frames):
        threads.add(threading.current_thread())
        return [np.empty((0, 6))] * len(frames)

    def batches():
        for batch in numbered(6, 1):
            taken.append(batch)
            yield batch

    with DetectionWorkers(detect, 0, "cpu") as pool:
        for done, _ in enumerate(pool.map(batches()), 1):
            assert len(taken) == done
    assert threads == {threading.current_thread()}
    assert len(taken) == 6
    assert pool.seconds > 0


def test_batches_are_really_detected_side_by_side():
    meeting = threading.Barrier(2, timeout=20)  # breaks unless two threads come

    def detect(frames):
        meeting.wait()
        return [np.empty((0, 6))] * len(frames)

    with DetectionWorkers(detect, 2, "cpu") as pool:
        assert len(list(pool.map(numbered(8)))) == 4


def test_workers_share_the_threads_of_the_processor():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:

        def detect(frames):
            seen.append(torch.get_num_threads())
            return [np.empty((0, 6))] * len(frames)

        with DetectionWorkers(detect, 2, "cpu") as pool:
            list(pool.map(numbered(8)))
        assert set(seen) == {2}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_run_where_pytorch_is_not_loaded(monkeypatch, device, workers):
    """ONNX Runtime detects then."""
    monkeypatch.delitem(sys.modules, "torch")
    with DetectionWorkers(lambda frames: [np.empty((0, 6))] * len(frames), workers, device) as pool:
        assert len(list(pool.map(numbered(6)))) == 3
    assert "torch" not in sys.modules


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_run_on_a_gpu_that_pytorch_does_not_know(monkeypatch, workers):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with DetectionWorkers(lambda frames: [np.empty((0, 6))] * len(frames), workers, "cuda") as pool:
        assert len(list(pool.map(numbered(6)))) == 3


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_memory_that_runs_out_is_told_with_a_remedy(workers):
    def detect(frames):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    expected = "2 frames do not fit into the memory of cpu – give a smaller --batch-size"
    with pytest.raises(UserError, match=expected), DetectionWorkers(detect, workers, "cpu") as pool:
        list(pool.map(numbered(4)))


def test_the_weights_are_there_before_another_stream_reads_them(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: done.append("stream"))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    with DetectionWorkers(lambda frames: [np.empty((0, 6))] * len(frames), 1, "cuda:0") as pool:
        list(pool.map(numbered(4)))
    assert done == ["synchronize", "stream"]


def test_what_detection_raises_reaches_the_caller():
    def detect(frames):
        if number_of(frames[0]) == 4:
            raise ValueError("frame 4")
        return [np.empty((0, 6))] * len(frames)

    done = []
    with pytest.raises(ValueError, match="frame 4"), DetectionWorkers(detect, 2, "cpu") as pool:
        done.extend(frames for frames, _ in pool.map(numbered(40)))
    assert [number_of(frames[0]) for frames in done] == [0, 2]


class Recorder:
    """In the place of a VideoWriter."""

    def __init__(self, fails_at: int | None = None):
        self.written: list[int] = []
        self.times: list[Fraction | None] = []
        self.fails_at = fails_at

    def write(self, frame, time_s):
        if number_of(frame) == self.fails_at:
            raise OSError("disk full")
        self.written.append(number_of(frame))
        self.times.append(time_s)


def test_everything_handed_over_is_encoded_in_order():
    recorder = Recorder()
    with BackgroundWriter(recorder) as encoder:
        for (frame,) in numbered(50, 1):
            encoder.write(frame)
    assert recorder.written == list(range(50))
    assert recorder.times == [None] * 50
    assert encoder.seconds > 0


def test_times_go_with_their_frames():
    recorder = Recorder()
    with BackgroundWriter(recorder) as encoder:
        for index, (frame,) in enumerate(numbered(20, 1)):
            encoder.write(frame, Fraction(index**2, 7))
    assert recorder.times == [Fraction(index**2, 7) for index in recorder.written]


@pytest.mark.parametrize("fails_at", [0, 49])
def test_what_encoding_raises_reaches_the_caller(fails_at):
    recorder = Recorder(fails_at)

    def encode() -> None:
        with BackgroundWriter(recorder) as encoder:
            for (frame,) in numbered(50, 1):
                encoder.write(frame)

    with pytest.raises(OSError, match="disk full"):
        encode()
    assert recorder.written == list(range(fails_at))


def test_an_error_of_the_caller_is_not_replaced():
    def encode() -> None:
        with BackgroundWriter(Recorder(0)) as encoder:
            encoder.write(np.zeros((2, 2, 3), np.uint8))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        encode()


@pytest.mark.parametrize(("received", "sizes"), [(None, [3, 3, 1]), (15, [3])])
def test_batches_end_with_the_frames_or_after_a_signal(received, sizes):
    frames = iter([frame for (frame,) in numbered(7, 1)])
    batches = in_batches(frames, 3, SimpleNamespace(received=received))
    assert [len(batch) for batch in batches] == sizes


# --- memory -------------------------------------------------------------------------------------

HD, UHD, UHD_8K = (3 * 1920 * 1080, 3 * 3840 * 2160, 3 * 7680 * 4320)


@pytest.mark.parametrize(
    ("asked", "workers", "frame_bytes", "size"),
    [
        (4, 4, HD, 4),
        (4, 4, UHD, 4),  # 10 batches of 4 frames of 23.7 MiB: 949 MiB
        (4, 4, UHD_8K, 2),  # 10 batches of 2 frames of 94.9 MiB: 1898 MiB; of 3 they are 2848 MiB
        (32, 4, UHD_8K, 2),
        (32, 4, UHD, 8),  # 10 x 8 x 23.7 MiB = 1898 MiB
        (32, 4, HD, 32),  # 10 x 32 x 5.9 MiB = 1898 MiB
        (64, 4, HD, 34),  # 10 x 34 x 5.93 MiB = 2017 MiB; 35 of them are 2076 MiB
        (32, 2, UHD_8K, 3),  # a GPU: 6 x 3 x 94.9 MiB = 1709 MiB
        (32, 1, UHD_8K, 5),  # 4 x 5 x 94.9 MiB = 1898 MiB
        (8, 4, 3 * 16384**2, 1),  # 768 MiB each
    ],
)
def test_batches_of_large_frames_are_small(asked, workers, frame_bytes, size):
    assert batch_size_within(asked, workers, frame_bytes) == size


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_so_many_batches_are_counted_as_there_are(workers):
    """`batch_size_within` says `workers` + 2: one is tracked when another one is read."""

    class Image:
        pass

    alive, most = weakref.WeakSet(), []

    def batches():
        for _ in range(20):
            batch = [Image()]
            alive.add(batch[0])
            most.append(len(alive))
            yield batch
            del batch

    with DetectionWorkers(lambda frames: [np.empty((0, 6))], workers, "cpu") as pool:
        for frames, _ in pool.map(batches()):
            assert frames
    assert max(most) == workers + 2


@pytest.mark.parametrize(
    ("frame_bytes", "waiting"), [(HD, 8), (UHD, 8), (UHD_8K, 2), (1 << 30, 1)]
)  # 256 MiB are 2.7 frames of 8K
def test_few_large_frames_wait_for_the_encoder(frame_bytes, waiting):
    go_on, handed_over = threading.Event(), []
    recorder = Recorder()
    recorder.write = lambda *item: go_on.wait(20)
    with BackgroundWriter(recorder, frame_bytes) as encoder:

        def hand_over():
            for (frame,) in numbered(20, 1):
                encoder.write(frame)
                handed_over.append(frame)

        thread = threading.Thread(target=hand_over)
        thread.start()
        deadline = time.monotonic() + 20
        while len(handed_over) < waiting + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # would take more if it could
        assert len(handed_over) == waiting + 1  # and the one that is encoded
        go_on.set()
        thread.join()


@pytest.mark.parametrize(
    ("precision", "native", "expected"),
    [
        ("auto", "off", torch.float32),
        ("auto", "bf16", torch.bfloat16),
        ("fp32", "bf16", torch.float32),
        ("bf16", "off", torch.bfloat16),
    ],
)
def test_precisions(monkeypatch, precision, native, expected):
    monkeypatch.setattr("common.fastpath.native_amp", lambda device: native)
    assert dtype_of(precision, CPU) is expected


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="for GPUs only"):
        dtype_of("fp16", CPU)


def test_workers_by_device(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert pipeline.default_workers("cpu") == pipeline.MAX_CPU_WORKERS
    assert pipeline.default_workers("cuda") == pipeline.GPU_WORKERS
    assert pipeline.default_workers("mps") == 1
