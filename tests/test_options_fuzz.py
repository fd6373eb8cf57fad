"""Values of options that nobody means: each is taken, or refused in one line with status 2."""

import argparse
import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.long_runs import count, examples
from tests.test_layout import SCRIPTS, name_of

PACKAGED = ["phase4_deployment/package/detect.py", "phase4_deployment/package/serve.py"]
NAMES = [*map(name_of, SCRIPTS), *PACKAGED]
HOSTILE = st.sampled_from(
    [
        *(
            "",
            " ",
            "0",
            "-0",
            "-1",
            "1",
            "2",
            "1.5",
            "1e308",
            "1e999",
            "nan",
            "inf",
            "-inf",
            "1e-320",
        ),
        *("9" * 30, "-" + "9" * 30, "9" * 5000, "1_000", "٣", "0x10", "1,2", "1,,2", ",", "1,x"),
        *(
            "0,0,1,1",
            "nan,0,1,1",
            "1e400,0,0,0",
            "0,0,0,0,0,0",
            "a=b",
            "=",
            "3=",
            "=x",
            "1x2",
            "0x0",
        ),
        *("auto", "all", "none", "None", "../..", "/", "~", "C:\\x", "rtsp://u:p@h/x", "http://["),
        *(
            "[::1]:80",
            ":99999",
            "localhost:",
            "a b",
            "$(id)",
            "`id`",
            "%s",
            "%(prog)s",
            "{0}",
            "\\",
        ),
        *(
            "犬",
            "é",
            "\x1b[31m",
            "a\nb",
            "a\tb",
            "\udce9",
            "x" * 3000,
            "--",
            "-",
            "@file",
            "'",
            '"',
        ),
    ]
)
VALUES = HOSTILE | st.text(max_size=12) | st.integers().map(str) | st.floats().map(str)


def parser_of(name: str) -> argparse.ArgumentParser:
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    return module.build_parser()


def numbers_in(value: object) -> Iterator[float]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from numbers_in(one)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@examples(20, 200)
@given(data=st.data())
def test_a_value_is_taken_or_refused_in_one_line(name, data, capsys):
    count("examples")
    parser = parser_of(name)
    options = [
        action
        for action in parser._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction)
    ]
    action = data.draw(st.sampled_from(options))
    flag = action.option_strings[-1]
    values = [
        data.draw(VALUES) for _ in range(action.nargs if isinstance(action.nargs, int) else 1)
    ]
    words = [f"{flag}={values[0]}"] if len(values) == 1 else [flag, *values]
    capsys.readouterr()
    try:
        parsed = parser.parse_args(words)
    except SystemExit as ended:
        status, told = ended.code, capsys.readouterr()
        assert (status, told.out) == (2, "")
        assert told.err.startswith("error: ")
        assert told.err.count("\n") == 1, told.err
        assert "\x1b" not in told.err
        assert len(told.err) < 2000
        return
    for number in numbers_in(getattr(parsed, action.dest)):
        assert math.isfinite(number), words


def test_everything_that_takes_options_is_tried():
    assert len(NAMES) > 15
    assert all(
        Path(sys.modules[__name__].__file__).parents[1].joinpath(name).is_file() for name in NAMES
    )
