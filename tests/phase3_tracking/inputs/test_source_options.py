"""The options of reading: what the texts mean, and what is refused in one line."""

import argparse
from fractions import Fraction

import pytest

from common import cli
from common.cli import UserError
from phase3_tracking.inputs import source_options
from phase3_tracking.inputs.source_options import Resize, SourceOptions, exact_rate


def parsed(*arguments: str) -> argparse.Namespace:
    parser = cli.ArgumentParser("text")
    source_options.add_source_arguments(parser)
    return parser.parse_args(arguments)


def test_without_flags_everything_is_read():
    assert source_options.source_options(parsed()) == SourceOptions()
    assert parsed().strict is False


def test_every_flag_arrives():
    frames = ["--max-frames", "9", "--frame-skip", "3", "--resize", "640x480"]
    times = ["--start", "1:30", "--end", "2:00.5", "--fps", "29.97"]
    args = parsed(*frames, *times, "--latency-mode", "--strict")
    assert source_options.source_options(args) == SourceOptions(
        start_s=Fraction(90),
        end_s=Fraction(241, 2),
        frame_skip=3,
        resize=Resize(640, 480),
        max_frames=9,
        fps=Fraction(30000, 1001),
        latency_mode=True,
    )
    assert args.strict is True


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90.25", Fraction(361, 4)),
        (".5", Fraction(1, 2)),
        ("1:30", 90),
        ("90:00", 5400),
        ("0:01:30", 90),
        ("10:00:00.1", 36000 + Fraction(1, 10)),
    ],
)
def test_times(text, seconds):
    assert source_options.time_position(text) == seconds


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--start", "-1"),
        ("--start", ""),
        ("--start", "1:60"),
        ("--start", "1:60:00"),
        ("--start", "1:2:3:4"),
        ("--start", "nan"),
        ("--end", "1e3"),
        ("--end", "soon"),
        ("--resize", "0"),
        ("--resize", "640x0"),
        ("--resize", "640x480x3"),
        ("--resize", "-640"),
        ("--resize", "99999"),
        ("--resize", "1²"),
        ("--fps", "0"),
        ("--fps", "-5"),
        ("--fps", "nan"),
        ("--fps", "inf"),
        ("--fps", "1/0"),
        ("--fps", "1001"),
        ("--fps", "fast"),
        ("--frame-skip", "0"),
        ("--max-frames", "0"),
        ("--max-frames", "1.5"),
    ],
)
def test_bad_values_are_one_line_and_status_2(capsys, flag, text):
    with pytest.raises(SystemExit) as ended:
        parsed(f"{flag}={text}")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {flag}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("end", ["5", "4"])
def test_an_end_that_is_not_after_the_start(end):
    with pytest.raises(UserError, match=r"--end .*not after --start"):
        source_options.source_options(parsed("--start", "5", "--end", end))


@pytest.mark.parametrize(
    ("resize", "frame", "expected"),
    [
        ("640", (1280, 720), (640, 360)),
        ("640", (720, 1280), (360, 640)),
        ("640x480", (1280, 720), (640, 360)),
        ("640x100", (1280, 720), (178, 100)),
        ("640", (320, 240), (320, 240)),  # never enlarged
        ("640+", (320, 240), (640, 480)),  # unless asked
        ("640x480+", (100, 100), (480, 480)),
        ("16", (4000, 1), (16, 1)),
    ],
)
def test_resize_keeps_the_aspect(resize, frame, expected):
    assert source_options.resize_size(resize).size(*frame) == expected


@pytest.mark.parametrize(
    ("told", "exact"),
    [
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (25, 25),
        (12.5, Fraction(25, 2)),
        (Fraction(30000, 1001), Fraction(30000, 1001)),
        (30, 30),
    ],
)
def test_exact_rate(told, exact):
    assert exact_rate(told) == exact
