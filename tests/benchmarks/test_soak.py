"""What counts as growth, on figures made by hand; a small run of both parts."""

import json

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.soak import main, trend

DONE = np.arange(1, 101) * 1000.0
NOISE = np.random.default_rng(0).uniform(-2, 2, 100)


def test_the_slope_is_that_of_the_values_after_the_warm_up():
    values = np.where(DONE <= 20_000, 5.0, 100 + 0.002 * DONE)
    measured = trend(DONE, values, 1.0)
    assert measured["slope"] == pytest.approx(0.002)
    assert measured["growth"] == pytest.approx(0.002 * 79_000)
    assert measured["noise"] == pytest.approx(0, abs=1e-9)
    assert (measured["first"], measured["last"]) == (pytest.approx(142), pytest.approx(300))
    assert not measured["flat"]


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        (np.full(100, 50.0), True),
        (50 + NOISE, True),
        (50 + NOISE - 1e-4 * DONE, True),  # it shrinks
        (50 + NOISE + 2e-4 * DONE, False),  # 16 MiB in a noise of 4
        (50 + 1e-5 * DONE, True),  # 0.8 MiB in all
        (50 + 2e-5 * DONE, False),
        (50 + 5 * (DONE // 10_000), False),  # a leak in steps
        (np.where(DONE < 60_000, 50.0, 70.0), False),  # one step up: worth a look
        (50 + 30 * (np.arange(100) % 10 == 0), True),
    ],
)
def test_what_is_flat(values, flat):
    assert trend(DONE, values, 1.0)["flat"] is flat


def test_a_figure_is_read_a_hundred_times(monkeypatch):
    monkeypatch.setattr(soak, "held", lambda: {"resident_mib": 1.0, "open_files": 2.0})
    samples = soak.Samples(1000)
    for done in range(4, 1001, 4):
        samples.at(done)
    assert samples.of("done")[-1] == 1000
    assert (np.diff(samples.of("done")) >= 8).all()


def test_objects_walk_vanish_and_come_again():
    counts = [len(soak.walkers(number)) for number in range(400)]
    assert set(counts) == {0, 1, 2, 3}
    first = soak.walkers(0)
    np.testing.assert_array_equal(soak.walkers(160 * 170 * 190)[0], first[0])
    boxes = np.concatenate([soak.walkers(number) for number in range(400)])
    assert (boxes[:, 2] <= soak.WIDTH).all()
    assert (boxes[:, 3] <= soak.HEIGHT).all()


@pytest.mark.slow
def test_a_short_run(tmp_path):
    output = tmp_path / "soak.json"
    status = main(["--frames", "400", "--steps", "100", "--output", str(output), "--quiet"])
    report = json.loads(output.read_text(encoding="utf-8"))
    rows = {(row["run"], row["figure"]): row for row in report["rows"]}
    figures = ("resident_mib", "open_files")
    assert set(rows) == {(run, figure) for run in ("pipeline", "trainer") for figure in figures}
    assert status == (0 if all(row["flat"] for row in rows.values()) else 1)
    assert report["samples"]["pipeline"]["done"][-1] == 400
    assert report["samples"]["trainer"]["done"][-1] == 100
    assert all(value > 0 for run in report["samples"].values() for value in run["open_files"])


@pytest.mark.parametrize("words", [["--frames", "99"], ["--steps", "0"], ["--steps", "x"]])
def test_too_few_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {words[0]}: ")
