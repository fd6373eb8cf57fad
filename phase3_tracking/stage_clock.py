"""Where the time of a video run goes."""

import time
from collections import deque

import numpy as np

STAGES = ("decode", "detect", "track", "draw", "encode")
LATENCIES = 10_000  # of the last frames, of a run that may go on for ever
FPS_WINDOW = 30  # frames the displayed speed is averaged over


class StageClock:
    """Books time on stages, and tells how fast a run is now and as a whole.

    Attributes:
        seconds: stage -> time booked so far.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._begin = self._last = time.perf_counter()
        self._ends: deque[float] = deque([self._begin], maxlen=FPS_WINDOW + 1)
        self._frames = 0
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES)

    def skip(self) -> None:
        """The time since the last lap belongs to none of the stages booked here."""
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Books the time since the last lap on a stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    def frame_done(self, received_s: float | None = None) -> None:
        """The result of a frame is out: written as text, handed to the encoder, shown.

        Args:
            received_s: `Frame.received_s`, for `latency_ms`; None where nobody waits for a frame.
        """
        now = time.perf_counter()
        self._frames += 1
        self._ends.append(now)
        if received_s is not None:
            self._latencies_s.append(now - received_s)

    def fps_now(self) -> float:
        """Frames per second over the last FPS_WINDOW frames; 0 before the first."""
        return (len(self._ends) - 1) / max(1e-9, self._ends[-1] - self._ends[0])

    def mean_fps(self) -> float:
        """Frames per second since the clock was made."""
        return self._frames / (time.perf_counter() - self._begin)

    def latency_ms(self) -> dict[str, float] | None:
        """From the moment the reader handed a frame over to `frame_done`, its waiting for the frame
        before and its conversion included: p50, p90 and p99 in milliseconds, of the last LATENCIES
        frames. None but in latency mode."""
        if not self._latencies_s:
            return None
        p50, p90, p99 = np.percentile(self._latencies_s, [50, 90, 99]) * 1e3
        return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}

    def stage_ms(self) -> dict[str, float]:
        """Mean milliseconds for a frame, by stage."""
        return {stage: 1e3 * total / self._frames for stage, total in self.seconds.items()}
