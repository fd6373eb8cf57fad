"""StageClock on a clock that the test turns."""

import pytest

from phase3_tracking import stage_clock
from phase3_tracking.stage_clock import FPS_WINDOW, LATENCIES, STAGES, StageClock


class Time:
    """In the place of time.perf_counter."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(stage_clock.time, "perf_counter", time)
    return time


def test_time_is_booked_on_stages_and_otherwise_skipped(time):
    clock = StageClock()
    for _ in range(4):
        time.passes(0.5)  # nobody's
        clock.skip()
        time.passes(0.010)
        clock.lap("track")
        time.passes(0.030)
        clock.lap("draw")
        clock.frame_done()
    expected = {"decode": 0, "detect": 0, "track": 10, "draw": 30, "encode": 0}
    assert clock.stage_ms() == pytest.approx(expected)
    assert tuple(clock.stage_ms()) == STAGES
    assert clock.seconds["draw"] == pytest.approx(0.12)
    assert clock.mean_fps() == pytest.approx(4 / 2.16)


def test_the_speed_shown_is_that_of_the_last_frames(time):
    clock = StageClock()
    assert clock.fps_now() == 0
    for _ in range(5):
        time.passes(1.0)
        clock.frame_done()
    assert clock.fps_now() == pytest.approx(1)
    for _ in range(FPS_WINDOW):
        time.passes(0.1)
        clock.frame_done()
    assert clock.fps_now() == pytest.approx(10)
    assert clock.mean_fps() == pytest.approx(35 / 8)


def test_latency_is_from_received_to_done(time):
    clock = StageClock()
    for ms in range(1, 102):
        time.passes(5)  # waiting for a frame is no latency
        received_s = time.now
        time.passes(ms / 1000)
        clock.frame_done(received_s)
    assert clock.latency_ms() == pytest.approx({"p50": 51, "p90": 91, "p99": 100})


def test_without_frames_received_there_is_no_latency(time):
    clock = StageClock()
    clock.frame_done()
    assert clock.latency_ms() is None


def test_p3_50_latencies_of_an_endless_run_take_no_endless_memory(time):
    clock = StageClock()
    for second in (*[9] * LATENCIES, *[1] * LATENCIES):
        time.passes(second)
        clock.frame_done(time.now - second)
    assert clock.latency_ms() == pytest.approx({"p50": 1000, "p90": 1000, "p99": 1000})
