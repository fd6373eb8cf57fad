"""pytest plugin: how much the tests that search for faults do, and how much they have done.

Tests marked `long` try made-up inputs, damaged files or kills. They take a sample in `make check`
and `make slow`, and all in `make faults-long`, which sets FAULTS_LONG=1. What was tried is told at
the end, also where several processes have tried it.
"""

import os
from collections import Counter
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

IS_LONG = os.environ.get("FAULTS_LONG") == "1"
PROPERTY = "tried"  # of a test's reports: how a number comes from a worker to the summary

_tried: Counter[str] = Counter()  # in this process, since the test that runs has begun


def times(sample: int, long: int) -> int:
    """How often to try, in this run."""
    return long if IS_LONG else sample


def examples(sample: int, long: int) -> settings:
    """The settings of a hypothesis test. A folder that its examples share is no mistake."""
    return settings(
        max_examples=times(sample, long), deadline=None, suppress_health_check=list(HealthCheck)
    )


def count(what: str, number: int = 1) -> None:
    """Notes that something was tried; `what` in the plural, as it is to be told."""
    _tried[what] += number


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    if call.when == "call":
        item.user_properties.extend((PROPERTY, tried) for tried in _tried.items())
        _tried.clear()
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                total.update(dict(v for k, v in report.user_properties if k == PROPERTY))
    if total:
        parts = [f"{number:,} {what}" for what, number in sorted(total.items())]
        terminalreporter.line(f"Tried {', '.join(parts)}")
