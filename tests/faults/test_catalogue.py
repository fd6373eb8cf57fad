"""Every case of the catalogue has a test, or a reason to have none."""

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.catalogue import CASES, NOT_APPLICABLE
from tests.faults.fault_table import PROOFS

TESTS = Path(__file__).resolve().parents[1]


def test_the_catalogue_is_complete():
    rooms = Counter(case.split("-")[0] for case in CASES)
    assert rooms == {"P1": 56, "P2": 42, "P3": 54, "P4": 52, "C": 14}
    for room, count in rooms.items():
        assert [case for case in CASES if case.startswith(f"{room}-")] == [
            f"{room}-{number:02}" for number in range(1, count + 1)
        ]
    assert CASES.keys() > NOT_APPLICABLE.keys()


def test_every_mark_names_a_case_that_applies(request):
    marked = request.config.stash[PROOFS]
    assert marked.keys() - CASES.keys() == set()
    assert marked.keys() & NOT_APPLICABLE.keys() == set()


def test_every_case_has_a_test_or_a_reason(request):
    chosen = [Path(name.split("::")[0]) for name in request.config.args]
    if [request.config.rootpath / name for name in chosen] != [TESTS]:
        pytest.skip("not all tests were collected")
    proved = request.config.stash[PROOFS].keys()
    assert sorted(CASES.keys() - proved - NOT_APPLICABLE.keys()) == []
