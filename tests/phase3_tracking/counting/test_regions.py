"""Lines and zones as they are written on the command line."""

import argparse

import pytest

from common import cli
from common.cli import UserError
from phase3_tracking.counting.regions import Region, parse_line, parse_zone, place


def test_a_line():
    assert parse_line("10,20,30.5,40") == Region("", ((10, 20), (30.5, 40)))
    assert parse_line(" gate : 10, 20, 30, 40") == Region("gate", ((10, 20), (30, 40)))
    assert parse_line("日本: 2:1,2,3,4").name == "日本: 2"


def test_a_zone():
    assert parse_zone("yard:0,0,10,0,10,10") == Region("yard", ((0, 0), (10, 0), (10, 10)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not x1,y1,x2,y2"),
        ("1,2,3", "3 numbers, they are pairs"),
        ("1,2", "2 numbers, a line x1,y1,x2,y2 has 4"),
        ("1,2,3,4,5,6", "6 numbers, a line"),
        ("1,2,x,4", "is not x1,y1,x2,y2"),
        ("1,,2,3", "is not x1,y1,x2,y2"),
        ("nan,1,2,3", "not finite"),
        ("1,1,2,inf", "not finite"),
        ("-1,1,2,3", "below 0"),
        ("5,5,5,5", "begins and ends at the same point"),
        (":1,2,3,4", "no name before the colon"),
        ("n" * 81 + ":1,2,3,4", "over 80 characters"),
        ("two\nlines:1,2", "2 numbers"),
    ],
)
def test_mistakes_in_a_line(text, reason):
    with pytest.raises(argparse.ArgumentTypeError, match=reason) as error:
        parse_line(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0,0,10,10", "2 corners, a zone has 3 to 100"),
        (",".join(["1,2"] * 101), "101 corners"),
        ("0,0,10,10,10,0,0,10", "sides that cross"),
        ("0,0,5,5,10,10", "no area"),
        ("0,0,1,1,nope,2", "is not x1,y1,x2,y2,x3,y3"),
    ],
)
def test_mistakes_in_a_zone(text, reason):
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        parse_zone(text)


@pytest.mark.parametrize(
    "text",
    [
        "0,0,10,0,10,10,0,10",
        "0,0,10,0,10,10,0,10,0,0",  # closed by hand
        "0,0,10,0,10,10,5,5,0,10",  # not convex
        "0,10,10,10,10,0,0,0",  # the other way round
    ],
)
def test_zones_of_any_shape(text):
    assert len(parse_zone(text).points) == text.count(",") // 2 + 1


def test_an_error_on_the_command_line_is_one_line(capsys):
    parser = cli.ArgumentParser("")
    parser.add_argument("--line", type=parse_line, action="append")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--line", "1,2,3"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: --line: '1,2,3' has 3 numbers, they are pairs x,y\n"


def test_shares_become_pixels_and_pixels_stay():
    lines = [parse_line("0.1,0.5,1,1"), parse_line("gate:0,0,2,1")]
    assert place(lines, "line", 640, 360) == [
        Region("line 1", ((64, 180), (640, 360))),
        Region("gate", ((0, 0), (2, 1))),
    ]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["0,0,641,10"], r"--line line 1: \(641, 10\) lies outside of the frame of 640x360"),
        (["0,0,9,10", "low:5,361,9,10"], r"--line low: \(5, 361\) lies outside"),
        (["a:0,0,9,10", "a:0,0,9,11"], "--line a: is given twice"),
        (["line 2:0,0,9,10", "0,0,9,11"], "--line line 2: is given twice"),
    ],
)
def test_what_does_not_fit_the_video(texts, reason):
    with pytest.raises(UserError, match=reason):
        place([parse_line(text) for text in texts], "line", 640, 360)
