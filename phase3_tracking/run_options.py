"""How to run over an input, and what to make of it. Loads nothing, so that `--help` is quick."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from phase3_tracking.counting.counting import CountingOptions
from phase3_tracking.inputs.source_options import SourceOptions

if TYPE_CHECKING:
    from phase3_tracking.live.display_window import DisplayWindow
    from phase3_tracking.live.live_view import LiveView


@dataclass(frozen=True)
class OutputOptions:
    """What to make.

    Attributes:
        counting: what to count, and which pictures to make.
        video: draw, encode and write NAME.mp4.
        draws_fps: the speed of the run goes into the video, so that no two runs give equal files.
            A live view and a window always show it.
        live, window: show the frames there, too; entered by the caller.
    """

    counting: CountingOptions = field(default_factory=CountingOptions)
    video: bool = True
    draws_fps: bool = True
    live: "LiveView | None" = None
    window: "DisplayWindow | None" = None

    @property
    def draws(self) -> bool:
        return bool(self.video or self.live or self.window or self.counting.contact_sheet)


@dataclass(frozen=True)
class RunOptions:
    """How to run over an input.

    Attributes:
        source: which frames to read.
        outputs: what to make of them.
        resumes: go on with what a stopped run has detected, see detection_log.py.
        smooths: fill gaps and take out jitter, see track_smoothing.py. The input is then read
            twice: tracked first, then drawn and written.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    outputs: OutputOptions = field(default_factory=OutputOptions)
    resumes: bool = False
    smooths: bool = False
