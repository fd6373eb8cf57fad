"""Where the time of a video run goes."""

import time
from collections import deque

STAGES = ("decode", "detect", "track", "draw", "encode")
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

    def skip(self) -> None:
        """The time since the last lap belongs to none of the stages booked here."""
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Books the time since the last lap on a stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    def frame_done(self) -> None:
        self._frames += 1
        self._ends.append(time.perf_counter())

    def status(self, total: int | None, tracks: int) -> str:
        """`frame 12/300  8.3 FPS  5 tracks` for the frame in work; the speed is that of the last
        FPS_WINDOW frames."""
        of_total = f"/{total}" if total else ""
        fps = (len(self._ends) - 1) / max(1e-9, self._ends[-1] - self._ends[0])
        return f"frame {self._frames + 1}{of_total}  {fps:.1f} FPS  {tracks} tracks"

    def mean_fps(self) -> float:
        """Frames per second since the clock was made."""
        return self._frames / (time.perf_counter() - self._begin)

    def stage_ms(self) -> dict[str, float]:
        """Mean milliseconds for a frame, by stage."""
        return {stage: 1e3 * total / self._frames for stage, total in self.seconds.items()}
