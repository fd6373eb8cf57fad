"""The line that tells how far a fleet is."""

import logging

from common.cli import log
from phase3_tracking.fleet import progress
from phase3_tracking.fleet.progress import ProgressLine, Tally


def test_a_plain_line_every_few_seconds(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tally = Tally(total=20, done=3, failed=1, running=2, frames=90, began_s=100.0)
    with caplog.at_level(logging.INFO, log.name), ProgressLine(tally) as line:
        for seconds in (0, 4, 6, 7, 11):
            now[0] = 100.0 + seconds
            line.show()
    assert [record.message for record in caplog.records] == [
        "3 done, 1 failed, 2 running of 20 videos, 8.2 frames/s"  # 90 in 11 s
    ]
