"""The quality benchmark on one small sequence of its own."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tracker_quality import ablations, main, read


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five people who walk past each other, found with jitter."""
    rng, rows = np.random.default_rng(0), []
    for frame in range(1, 61):
        for name in range(5):
            x = 100 + 80 * name + (2 if name % 2 else -2) * frame
            rows.append([frame, name + 1, x, 50 + 5 * name, 30, 60, 1, 1, 1])
    truth = np.array(rows, float)
    found = truth.copy()
    found[:, 1], found[:, 6] = -1, 0.9
    found[:, 2:6] += rng.normal(0, 1, (len(found), 4))
    sequence = tmp_path / "MOT17-99"
    for part, columns in (("gt", truth), ("det", found)):
        (sequence / part).mkdir(parents=True)
        np.savetxt(sequence / part / f"{part}.txt", columns, "%.3f", ",")
    info = "[Sequence]\nname=MOT17-99\nseqLength=60\nframeRate=20\n"
    (sequence / "seqinfo.ini").write_text(info)
    return tmp_path


def test_every_third_frame(folder):
    (third,) = read(folder, 3)
    assert len(third.frames) == 20
    assert third.times_s[:2] == [1 / 20, 4 / 20]
    assert third.ground_truth.frames.tolist() == sorted([*range(1, 21)] * 5)


def test_a_run(folder, tmp_path):
    output = tmp_path / "quality.json"
    assert main([str(folder), "--only", "ours", "--output", str(output), "--quiet"]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    best = next(row for row in report["rows"] if row["name"] == "ours cmcsort")
    assert best["idf1"] > 0.95
    assert [row["without"] for row in report["ablation"]] == list(ablations())
