"""Which frames of an input are read and how: the options, and the flags that set them.

    parser = cli.ArgumentParser(__doc__)
    add_source_arguments(parser)
    options = source_options(parser.parse_args())

Nothing here loads OpenCV or PyAV, so that `--help` answers at once.
"""

import argparse
import re
from dataclasses import dataclass, field
from fractions import Fraction

from common import cli
from common.cli import UserError

QUEUE_SIZE = 8  # decoded frames waiting: enough to even out slow frames, little memory
FOLDER_FPS = Fraction(10)  # of a folder of pictures, which has no rate of its own
NTSC_RATES = {Fraction(1000 * nominal, 1001) for nominal in (24, 30, 48, 60, 120)}
NTSC_TOLERANCE = 1e-3  # containers round 30000/1001 to 29.97
MAX_FPS = 1000
MAX_SIDE = 16384


@dataclass(frozen=True)
class Resize:
    """The box that frames are fitted into, keeping their aspect.

    Attributes:
        width, height: pixels.
        enlarge: smaller frames are enlarged to fill the box, too.
    """

    width: int
    height: int
    enlarge: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a frame of `width` x `height` after resizing, at least 1x1."""
        scale = min(Fraction(self.width, width), Fraction(self.height, height))
        if scale > 1 and not self.enlarge:
            return width, height
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class NetworkLimits:
    """How long to wait for a stream, in seconds, and how often to connect again.

    Attributes:
        backoff_s: before the first new attempt; doubled for each one after it.
        reconnects: attempts in a row that yield no frame before the stream is given up.
    """

    connect_s: float = 10.0
    read_s: float = 10.0
    reconnects: int = 5
    backoff_s: float = 0.5
    longest_backoff_s: float = 8.0


@dataclass(frozen=True)
class SourceOptions:
    """What `open_source` reads of its input.

    Attributes:
        start_s, end_s: seconds from the first frame of the input; frames from `start_s` up to, but
            without, `end_s` are read.
        frame_skip: every Nth frame is read, beginning with the first from `start_s`.
        resize: None keeps the size.
        max_frames: stop after this many frames.
        fps: frames per second instead of what the input says; its frames are then taken to be
            evenly spaced.
        latency_mode: the newest frame is handed out and older ones that wait are dropped. A file
            is then played in real time.
        queue_size: decoded frames that may wait for the caller, at least 2.
    """

    start_s: Fraction = Fraction(0)
    end_s: Fraction | None = None
    frame_skip: int = 1
    resize: Resize | None = None
    max_frames: int | None = None
    fps: Fraction | None = None
    latency_mode: bool = False
    queue_size: int = QUEUE_SIZE
    network: NetworkLimits = field(default_factory=NetworkLimits)


def exact_rate(fps: float | Fraction) -> Fraction:
    """The rate that a rounded one stands for: 29.97 -> 30000/1001."""
    nearest = min(NTSC_RATES, key=lambda rate: abs(float(rate - Fraction(fps))))
    if abs(float(nearest - Fraction(fps))) < NTSC_TOLERANCE:
        return nearest
    return Fraction(fps).limit_denominator(1001)


def add_source_arguments(parser: argparse.ArgumentParser, *, live: bool = True) -> None:
    """Adds the options of reading, --max-frames to --latency-mode, and --strict.

    Args:
        live: with --latency-mode, for inputs that somebody watches.
    """
    group = parser.add_argument_group("input")
    group.add_argument("--max-frames", type=cli.positive_int, help="stop after this many frames")
    group.add_argument(
        "--frame-skip", type=cli.positive_int, default=1, help="read every Nth frame only"
    )
    group.add_argument(
        "--resize",
        type=resize_size,
        metavar="SIZE",
        help="shrink frames to this longest side (640) or into this box (640x480), keeping their "
        "aspect; 640+ enlarges smaller ones, too",
    )
    group.add_argument(
        "--start", type=time_position, metavar="TIME", help="begin here: seconds or [HH:]MM:SS"
    )
    group.add_argument(
        "--end", type=time_position, metavar="TIME", help="stop here: seconds or [HH:]MM:SS"
    )
    group.add_argument(
        "--fps",
        type=frame_rate,
        help="frames per second (25, 29.97, 30000/1001) instead of what the input says "
        f"(default for a folder of pictures: {FOLDER_FPS})",
    )
    if live:
        group.add_argument(
            "--latency-mode",
            action="store_true",
            help="take the newest frame and drop those that came in between, for live inputs; "
            "a file is played in real time",
        )
    else:
        parser.set_defaults(latency_mode=False)
    group.add_argument(
        "--strict", action="store_true", help="a video that is cut short ends with exit status 2"
    )


def source_options(args: argparse.Namespace) -> SourceOptions:
    """The options that the flags of `add_source_arguments` stand for.

    Raises:
        UserError: --end does not come after --start.
    """
    start_s = args.start or Fraction(0)
    if args.end is not None and args.end <= start_s:
        what = f"is not after --start ({float(start_s):g} s)"
        raise UserError(f"--end {float(args.end):g}", what, "give a later --end")
    return SourceOptions(
        start_s=start_s,
        end_s=args.end,
        frame_skip=args.frame_skip,
        resize=args.resize,
        max_frames=args.max_frames,
        fps=args.fps,
        latency_mode=args.latency_mode,
    )


# --- argument types: argparse calls them, so they raise ArgumentTypeError --------------------


def time_position(text: str) -> Fraction:
    """`90`, `90.5`, `1:30` or `0:01:30.5` -> seconds."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)", text.strip(), re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90, 90.5, 1:30 or 0:01:30")
    hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
    if (match[2] and seconds >= 60) or (match[1] and minutes >= 60):
        raise argparse.ArgumentTypeError(f"{text!r} has more than 59 minutes or seconds")
    return 3600 * hours + 60 * minutes + seconds


def resize_size(text: str) -> Resize:
    """`640` -> into 640x640, `640x480`, and `640+` or `640x480+` with enlarging."""
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?(\+?)", text.strip(), re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 640, 640x480 or 640+")
    width, height = int(match[1]), int(match[2] or match[1])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 and {MAX_SIDE} pixels")
    return Resize(width, height, enlarge=bool(match[3]))


def frame_rate(text: str) -> Fraction:
    """`25`, `29.97` or `30000/1001` -> the exact rate."""
    try:
        value = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no frame rate; write 25 or 30000/1001"
        ) from None
    if not 0 < value <= MAX_FPS:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to {MAX_FPS}")
    return exact_rate(value)
