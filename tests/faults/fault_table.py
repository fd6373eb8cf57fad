"""pytest plugin: which tests prove which case of catalogue.py, and a table of how they ended.

A test proves a case when its name or the id of its parameters has the number
(`test_p2_26_p2_28_a_disturbed_gpu`, `[P1-28-digits]`, `[p3_04_text]`), or when it is marked:

    @pytest.mark.fault("P1-49")

    pytest -m fault --fault-table outputs/metrics/fault_table.md      # what `make faults` runs
"""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.faults.catalogue import CASES, NOT_APPLICABLE

IN_NAME = re.compile(r"(?<![a-zA-Z0-9])([pP][1-4]|[cC])[-_](\d\d)(?![a-zA-Z0-9])")
PROPERTY = "fault"  # of a test's reports: how a number comes from a worker to the table
PROOFS = pytest.StashKey[dict[str, list[str]]]()  # number -> tests that were collected
FAILED, NO_RESULT = "FAILED", "NO RESULT"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write the table of fault cases here")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PROOFS] = defaultdict(list)
    target = config.getoption("--fault-table")
    if target and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultTable(target))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Before tests are deselected by their marks, which come from their names, too."""
    for item in items:
        cases = numbers_in(item.name)
        if cases:
            item.add_marker(pytest.mark.fault(*cases))
        cases += [case for mark in item.iter_markers("fault") for case in mark.args]
        for case in dict.fromkeys(cases):
            config.stash[PROOFS][case].append(item.nodeid)
            item.user_properties.append((PROPERTY, case))


def numbers_in(name: str) -> list[str]:
    """`test_p2_26_p2_28_x[P1-03-y]` -> ["P2-26", "P2-28", "P1-03"]."""
    return [f"{room.upper()}-{number}" for room, number in IN_NAME.findall(name)]


class FaultTable:
    """Gathers how tests end, and tells it by case.

    Attributes:
        outcomes: number of the case -> test -> "passed", FAILED or why it was skipped.
    """

    def __init__(self, target: Path):
        self.target = target
        self.outcomes: dict[str, dict[str, str]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, case in report.user_properties:
            if name == PROPERTY:
                tests = self.outcomes[case]
                tests[report.nodeid] = _worse(tests.get(report.nodeid), _outcome(report))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        results = {self.result(case) for case in CASES}
        if results & {FAILED, NO_RESULT} and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from common import artifacts

        terminalreporter.section("fault cases")
        for case, what in CASES.items():
            terminalreporter.line(f"{case}  {self.result(case):{len(NO_RESULT)}}  {what}")
        terminalreporter.line(self.count())
        artifacts.write_text(self.target, self.markdown())
        terminalreporter.line(f"Saved {self.target}")

    def result(self, case: str) -> str:
        """In a word or, of a case that was not tried, with its reason."""
        outcomes = set(self.outcomes[case].values())
        if FAILED in outcomes:
            return FAILED
        if case in NOT_APPLICABLE:
            return f"does not apply: {NOT_APPLICABLE[case]}"
        return "passed" if "passed" in outcomes else "; ".join(sorted(outcomes)) or NO_RESULT

    def count(self) -> str:
        results = [self.result(case) for case in CASES]
        passed, failed, lacking = map(results.count, ("passed", FAILED, NO_RESULT))
        no_case = sum(result.startswith("does not apply") for result in results)
        skipped = len(results) - passed - failed - lacking - no_case
        return (
            f"{passed + no_case} of {len(CASES)} cases: {passed} passed, {no_case} do not apply, "
            f"{skipped} skipped, {failed} failed, {lacking} without a result."
        )

    def markdown(self) -> str:
        from common import environment
        from common.reporting.blocks import escape_markdown

        rows = [("case", "what goes wrong", "result", "tests"), ("---",) * 4]
        for case, what in CASES.items():
            names = sorted({_short(test) for test in self.outcomes[case]})
            cells = (what, self.result(case), ", ".join(names))
            rows.append((case, *map(escape_markdown, cells)))
        where = f"Written by `make faults`: {escape_markdown(environment.summary_line('cpu'))}."
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return f"# Fault cases\n\n{self.count()}\n\n{where}\n\n{table}\n"


def _outcome(report: pytest.TestReport) -> str:
    if report.outcome != "skipped":
        return FAILED if report.failed else "passed"
    if isinstance(report.longrepr, tuple):
        return f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}"
    return FAILED  # expected to fail: no proof


def _worse(before: str | None, now: str) -> str:
    """A test reports its preparation, itself and its cleaning up."""
    if before is None or now == FAILED:
        return now
    return now if before == "passed" else before


def _short(test: str) -> str:
    return test.partition("[")[0].removeprefix("tests/")
