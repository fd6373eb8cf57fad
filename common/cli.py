"""The command-line contract every script keeps.

Exit status 0: done. 2: something the person can mend, told in one line. 1: a bug of ours, with its
traceback in a log file. 130 / 143: stopped by SIGINT / SIGTERM. Nothing here imports torch, so
`--help` and a bad option answer at once.
"""

import argparse
import difflib
import io
import logging
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from common import paths
from common.addresses import text_without_secrets, word_without_secrets
from common.errors import UserError as UserError  # part of what a script needs
from common.errors import shortage

EXIT_OK, EXIT_BUG, EXIT_USER_ERROR = 0, 1, 2
PROGRESS_INTERVAL_S = 10.0  # between plain progress lines when there is no terminal
LARGEST_COUNT = 2**31 - 1  # of anything; far beyond it neither arrays nor floats can take it
LONGEST_WORD = 200  # characters of a value that an error repeats
STATUS_INTERVAL_S = 2.0  # between looks at the status beside a bar

log = logging.getLogger("detection")
Item = TypeVar("Item")


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that `finally` blocks and savers run."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors and the nearest name for a misspelt option or choice."""

    def __init__(self, description: str | None, **kwargs):
        super().__init__(
            description=description,
            formatter_class=_DefaultsAndLayout,
            allow_abbrev=False,
            **kwargs,
        )

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = list(self._option_string_actions)
            hint = did_you_mean(unknown[0].split("=")[0], flags) or "see --help"
            self.error(f"{unknown[0]}: unknown option – {hint}")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what, remedy = unknown_choice(value, action.choices)
            raise argparse.ArgumentError(action, f"{what} – {remedy}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # `script --help | head`
            _discard_stdout()
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        told = text_without_secrets(message.removeprefix("argument "))
        told = re.sub(rf"(\S{{{LONGEST_WORD}}})\S+", r"\1…", told)
        self.exit(EXIT_USER_ERROR, f"error: {told}\n")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the known name that is nearest; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def unknown_choice(value: object, choices: Iterable[object]) -> tuple[str, str]:
    """What is wrong with a value that is none of the choices, and what to do: for a UserError."""
    names = [str(choice) for choice in choices]
    hint = did_you_mean(str(value), names)
    return f"{str(value)!r} is unknown", f"{hint} choose from {', '.join(names)}".strip()


class _DefaultsAndLayout(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Keeps the layout of the module docstring and adds `(default: X)` where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None:
            return action.help
        if isinstance(action.default, Path):
            return f"{action.help} (default: {paths.display(action.default)})"
        return super()._get_help_string(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """A list without spaces breaks behind a comma, not in the middle of a name."""
        lines = super()._split_lines(re.sub(r",(?=\S)", ",\0 ", text), width)
        return [line.replace(",\0 ", ",").replace(",\0", ",") for line in lines]


def add_common_arguments(
    parser: argparse.ArgumentParser, *, output: Path | None, output_help: str, seed: int = 0
) -> None:
    """Adds --device, --seed, --output, --quiet and --debug, which every script has."""
    group = parser.add_argument_group("common")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument(
        "--seed", type=seed_number, default=seed, help="seed of every random generator"
    )
    group.add_argument("--output", type=Path, default=output, help=output_help)
    group.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(work: Callable[[], int | None], args: argparse.Namespace) -> int:
    """Calls `work` and turns every way it can end into the exit status of the contract."""
    previous = signal.signal(signal.SIGTERM, _raise_terminated)
    handler = _StdoutHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.WARNING if args.quiet else logging.INFO)
    try:
        return work() or EXIT_OK
    except UserError as error:
        return _tell(error, args)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT
    except Terminated:
        sys.stderr.write("terminated\n")
        return 128 + signal.SIGTERM
    except Exception as error:  # noqa: BLE001 - the last place that can turn a bug into one line
        lacking = shortage(error)
        if lacking is not None:
            return _tell(lacking, args)
        _report_bug(error, show=args.debug)
        return EXIT_BUG
    finally:
        log.removeHandler(handler)
        signal.signal(signal.SIGTERM, previous)


def _tell(error: UserError, args: argparse.Namespace) -> int:
    if args.debug:
        traceback.print_exc()
    sys.stderr.write(f"error: {error}\n")
    return EXIT_USER_ERROR


def _raise_terminated(signum, frame) -> NoReturn:
    raise Terminated


class _StdoutHandler(logging.StreamHandler):
    """Messages to stdout, whatever the terminal's encoding and whether or not it still listens."""

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base's name
        if isinstance(sys.exc_info()[1], BrokenPipeError):  # `script | head`: the work goes on
            _discard_stdout()
        else:
            super().handleError(record)


def _discard_stdout() -> None:
    """Whatever is still in its buffer goes nowhere, and so does what is to come."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_bug(error: Exception, *, show: bool) -> None:
    """Keeps the traceback in outputs/crash.log, or shows it where that cannot be written.

    It is to be passed on, so no password of a camera is in it.
    """
    text = text_without_secrets(traceback.format_exc())
    command = [word_without_secrets(word) for word in sys.argv]
    crash_log = paths.OUTPUTS / "crash.log"
    try:
        crash_log.parent.mkdir(parents=True, exist_ok=True)
        crash_log.write_text(f"{command}\n{text}", encoding="utf-8", errors="backslashreplace")
        remedy = f"please report it with {paths.display(crash_log)}"
    except OSError:
        show, remedy = True, "please report it with the lines above"
    if show:
        sys.stderr.write(text)
    summary = text_without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
    sys.stderr.write(f"error: internal error ({summary}) – {remedy}\n")


def progress(
    items: Iterable[Item], *, total: int, label: str, status: Callable[[], str] = lambda: ""
) -> Iterator[Item]:
    """A tqdm bar on a terminal, a plain line every few seconds elsewhere, nothing when quiet.

    Args:
        status: what else to show, for instance the loss; asked for every few seconds only.
    """
    if not log.isEnabledFor(logging.INFO):
        yield from items
        return
    bar = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=total, desc=label, leave=False, ascii="NO_COLOR" in os.environ)
    interval = STATUS_INTERVAL_S if bar else PROGRESS_INTERVAL_S
    next_line = time.monotonic() + interval
    try:
        for done, item in enumerate(items):
            if time.monotonic() >= next_line:
                if bar:
                    bar.set_postfix_str(status())
                else:
                    log.info("%s: %d of %d%s", label, done, total, _after_comma(status()))
                next_line = time.monotonic() + interval
            yield item
            if bar:
                bar.update()
    finally:
        if bar:
            bar.close()


def _after_comma(text: str) -> str:
    return f", {text}" if text else ""


def finished(saved: Sequence[Path], next_command: str | None) -> None:
    """The closing lines of every script: what it saved and what to run next."""
    for path in saved:
        log.info("Saved %s", paths.display(path))
    if next_command:
        log.info("Next:  %s", next_command)


# --- argument types: argparse calls them, so they raise ArgumentTypeError --------------------


def _number(text: str, convert: type) -> float:
    try:
        value = convert(text)
    except ValueError:
        kind = "a whole number" if convert is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {kind}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not finite")
    return value


def _count(text: str) -> int:
    value = int(_number(text, int))
    if value > LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"{text} is more than {LARGEST_COUNT}")
    return value


def positive_int(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def seed_number(text: str) -> int:
    value = int(_number(text, int))
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} does not fit into 64 bits")
    return value


def non_negative_int(text: str) -> int:
    value = _count(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def finite_float(text: str) -> float:
    return _number(text, float)


def positive_float(text: str) -> float:
    value = _number(text, float)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def non_negative_float(text: str) -> float:
    value = _number(text, float)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def fraction(text: str) -> float:
    value = _number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def fraction_below_one(text: str) -> float:
    value = fraction(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"{text} is not below 1")
    return value


def names(text: str) -> list[str]:
    """`a, b` -> ["a", "b"]."""
    found = [name for part in text.split(",") if (name := part.strip())]
    if not found:
        raise argparse.ArgumentTypeError("the list is empty; write names with commas between")
    return found


def positive_int_list(text: str) -> list[int]:
    """`1,2,4` -> [1, 2, 4], sorted and without repeats."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the list is empty; write for instance 1,2,4")
    return sorted({positive_int(part.strip()) for part in text.split(",")})
