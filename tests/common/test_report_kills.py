"""The report's pages are whole whenever the process that writes them is killed."""

import os
import sys
from pathlib import Path

import pytest

from common import artifacts, paths
from tests.child_processes import CONTEXT
from tests.common import made_up_reports
from tests.killing import TIMEOUT_S, Moments, duration_of, ended_by_itself
from tests.long_runs import times

PAGES = {"report.html": "</html>", "report.md": "\n"}


def write_pages(outputs: Path) -> None:
    """In a child process."""
    from common import report

    for name in ("MODELS", "METRICS", "VIDEOS", "DEPLOYMENT"):
        setattr(paths, name, outputs / name.lower())
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = nowhere
        raise SystemExit(report.main(["--output", str(outputs / "metrics")]))


def pages(outputs: Path) -> dict[str, str]:
    return {name: (outputs / "metrics" / name).read_text(encoding="utf-8") for name in PAGES}


@pytest.mark.slow
@pytest.mark.long
def test_killed_at_any_moment_each_page_is_the_older_or_the_newer(tmp_path):
    """A plain rerun then makes the newer ones."""

    def start():
        process = CONTEXT.Process(target=write_pages, args=(tmp_path,))
        process.start()
        return process

    made_up_reports.write_all(tmp_path, ["car"])
    moments, older = Moments(4, duration_of(start)), pages(tmp_path)
    assert all(text.endswith(end) for text, end in zip(older.values(), PAGES.values(), strict=True))
    made_up_reports.write_all(tmp_path, ["bus"])
    assert ended_by_itself(start(), TIMEOUT_S)
    newer = pages(tmp_path)
    assert all(newer[name] != older[name] for name in PAGES)
    killed = 0
    while killed < times(3, 50):
        for name, text in older.items():
            artifacts.write_text(tmp_path / "metrics" / name, text)
        killed += not ended_by_itself(start(), moments.draw())
        found = pages(tmp_path)
        assert all(found[name] in (older[name], newer[name]) for name in PAGES)
    assert ended_by_itself(start(), TIMEOUT_S)
    assert pages(tmp_path) == newer
