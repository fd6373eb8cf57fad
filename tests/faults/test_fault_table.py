"""The table tells every case's end, whatever process its tests ran in, and fails with them."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import paths
from tests.faults.catalogue import CASES, NOT_APPLICABLE
from tests.faults.fault_table import FAILED, FaultTable, numbers_in

EXAMPLES = """
import pytest

def test_p1_01_p1_02_passes(): pass

@pytest.mark.fault("P1-02")
def test_fails(): assert False

@pytest.mark.parametrize("x", [1, 2], ids=["P1-03-good", "P1-04-bad"])
def test_each(x): assert x == 1

@pytest.mark.fault("P1-05")
def test_is_skipped(): pytest.skip("no such | machine")

@pytest.mark.fault("P1-01", "P1-06")
def test_with_a_broken_end(request): request.addfinalizer(lambda: 1 / 0)

@pytest.mark.xfail
@pytest.mark.fault("P1-07")
def test_expected_to_fail(): assert False

def test_of_no_case(): assert False
"""


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("test_p2_26_p2_28_a_gpu[benchmark]", ["P2-26", "P2-28"]),
        ("test_x[P1-28-digits]", ["P1-28"]),
        ("test_x[p3_30_file]", ["P3-30"]),
        ("test_c_05_x", ["C-05"]),
        ("test_x[P1-281]", []),
        ("test_up1_28_x", []),
        ("test_p5_28_x", []),
        ("test_x", []),
    ],
)
def test_numbers_in_names(name, numbers):
    assert numbers_in(name) == numbers


@pytest.fixture(scope="module", params=["0", "2"], ids=["one process", "two processes"])
def run(request, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("examples")
    (folder / "test_examples.py").write_text(EXAMPLES, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = fault: a case\n", encoding="utf-8")
    options = ["-p", "tests.faults.fault_table", "-p", "no:cacheprovider", "-n", request.param]
    options += ["-m", "fault", "-c", folder / "pytest.ini"]
    options += ["--fault-table", folder / "new" / "table.md"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, options), str(folder)],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    table = (folder / "new" / "table.md").read_text(encoding="utf-8")
    return SimpleNamespace(status=done.returncode, printed=done.stdout, table=table)


def test_a_table_of_all_ends(run):
    rows = [line.split(" | ") for line in run.table.splitlines() if line.startswith("| ")]
    results = {row[0].removeprefix("| "): row[2] for row in rows[2:]}
    assert list(results) == list(CASES)
    assert [results[f"P1-0{number}"] for number in range(1, 9)] == [
        *("FAILED", "FAILED", "passed", "FAILED", r"skipped: no such \| machine"),
        *("FAILED", "FAILED", "NO RESULT"),
    ]
    assert results["C-03"].startswith("does not apply: ")
    tests = {row[0].removeprefix("| "): row[3].removesuffix(" |") for row in rows[2:]}
    assert tests["P1-03"].endswith("test_examples.py::test_each")


def test_the_status_and_the_count_are_told(run):
    assert run.status == 1
    count = f"{1 + len(NOT_APPLICABLE)} of 218 cases: 1 passed, {len(NOT_APPLICABLE)} do not apply"
    assert count in run.printed
    assert count in run.table
    assert "test_of_no_case" not in run.printed


@pytest.mark.parametrize(("result", "fails"), [("passed", 0), ("skipped: x", 0), (FAILED, 1)])
def test_a_case_that_failed_fails_the_run(result, fails):
    table = FaultTable(Path("table.md"))
    for case in CASES:
        table.outcomes[case]["test"] = "passed"
    table.outcomes["P1-09"]["test"] = result
    session = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    table.pytest_sessionfinish(session)
    assert session.exitstatus == fails
    del table.outcomes["P1-10"]
    table.pytest_sessionfinish(session)
    assert session.exitstatus == 1
