"""The pictures of a benchmark hold what the rows say, also where little was measured."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image

from benchmarks.ladder_table import default_reports
from common.artifacts import read_json
from phase2_optimization.benchmark_plot import (
    FULL,
    PALE,
    draw,
    draw_waterfall,
    pareto_front,
    spaced,
)


def row(variant, ratio, over=None, status="ok", batch_size=1, score=0.5):
    return {
        "variant": variant,
        "batch_size": batch_size,
        "latency_ms": {"p50": 100 / ratio},
        "throughput_img_s": batch_size * 10 * ratio,
        "speedup": {"ratio": ratio, "ci95": [0.98 * ratio, 1.02 * ratio]},
        "step": over and {"over": over, "ratio": 1.0, "ci95": [1.0, 1.0]},
        "map": score,
        "status": status,
    }


def report(rows):
    return {
        "results": rows,
        "architecture": "demo $\\frac{",
        "evaluated_images": 4,
        "image_size": [64, 48],
        "baseline": "eager_fp32",
        "noise": {"1": {"ratio": 1.0, "ci95": [0.97, 1.03]}},
        "environment": {
            "device": "cpu",
            "device_name": "a processor",
            "threads": 2,
            "packages": {"torch": "2.15.0"},
        },
    }


LADDER = [
    row("eager_fp32", 1.0),
    row("folded", 1.5, "eager_fp32"),
    row("slower", 1.2, "folded"),
    row("int8", 3.0, "folded", "invalid: map", score=0.2),
]


def test_bars_of_the_waterfall_start_where_the_rung_below_ends():
    figure, axis = plt.subplots()
    draw_waterfall(axis, LADDER, report(LADDER))
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches[:4]]
    plt.close(figure)
    expected = [(1.5, 3.0), (1.5, 1.2), (1.0, 1.5), (0.0, 1.0)]  # drawn from the bottom
    assert [pytest.approx(bar) for bar in expected] == bars


@pytest.mark.parametrize(
    "rows",
    [
        [*LADDER, row("folded", 1.7, "eager_fp32", batch_size=4)],
        LADDER[:1],
        [{**row("eager_fp32", 1.0), "map": None, "speedup": None}],
        [{**one, "speedup": {**one["speedup"], "ci95": None}} for one in LADDER],
        [{**one, "status": "invalid: 3 of 4 boxes are no numbers"} for one in LADDER],
    ],
    ids=["ladder", "baseline alone", "no comparison", "one round", "nothing valid"],
)
def test_pictures_are_drawn(rows, tmp_path):
    absent = {"variant": "x", "batch_size": 1, "latency_ms": None}
    draw(report([*rows, absent]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1000


def legend_of(rows):
    """Label -> opacity, of the waterfall."""
    figure, axis = plt.subplots()
    draw_waterfall(axis, rows, report(rows))
    legend = axis.get_legend()
    plt.close(figure)
    pairs = zip(legend.get_texts(), legend.legend_handles, strict=True)
    return {text.get_text(): handle.get_alpha() for text, handle in pairs}


def test_every_colour_of_the_waterfall_is_explained():
    faster, slower = (f"{word} than the rung it adds to" for word in ("faster", "slower"))
    keys = legend_of(LADDER)
    assert {faster, slower, "invalid: not the baseline's results", "95% interval"} < set(keys)
    assert not any(key.startswith("pale") for key in keys)
    alone = legend_of(LADDER[:1])
    assert not {faster, slower} & set(alone)
    assert "noise: what two equal arms differ by" in alone


def test_a_step_that_is_nothing_is_pale():
    untold = row("folded", 1.5, "eager_fp32")
    untold["step"]["verdict"] = "within noise"
    rows = [LADDER[0], untold]
    keys = legend_of(rows)
    figure, axis = plt.subplots()
    draw_waterfall(axis, rows, report(rows))
    bars = [bar.get_alpha() for bar in axis.patches[:2]]
    plt.close(figure)
    assert bars == [PALE, FULL]
    assert keys["pale: the step is not told from nothing"] == PALE


def test_numbers_of_batch_sizes_keep_their_distance():
    assert spaced([1, 2, 4, 8, 16]) == [1, 2, 4, 8, 16]
    assert spaced([1, 2, 4, 8, 12, 14, 15, 16, 32]) == [1, 2, 4, 8, 12, 16, 32]
    assert spaced([4]) == [4]


def lines_of(rows, tmp_path, monkeypatch):
    """Name -> points, of the picture of throughput."""
    kept = []
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", kept.append)
        draw(report(rows), tmp_path / "a.png")
    (figure,) = kept
    plt.close(figure)
    return {line.get_label(): line.get_xydata().tolist() for line in figure.axes[2].get_lines()}


def test_throughput_is_drawn_and_ranked_without_the_drift(tmp_path, monkeypatch):
    """A neighbour made all twice as slow at batch size 2."""
    rows = [
        {**row(name, ratio, batch_size=size), "drift_free_img_s": 10.0 * ratio * size}
        for name, ratio in (("eager_fp32", 1), ("slow", 2), ("fast", 3))
        for size in (1, 2)
    ]
    for one in rows:
        one["throughput_img_s"] /= one["batch_size"]
    rows[-1] |= {"throughput_img_s": 15.0}  # less than the slow one's
    lines = lines_of(rows, tmp_path, monkeypatch)
    assert lines == {
        "eager fp32": [[1, 10], [2, 20]],
        "fast": [[1, 30], [2, 60]],
        "slow": [[1, 20], [2, 40]],
    }
    assert list(lines) == ["eager fp32", "fast", "slow"]


def test_earlier_reports_are_drawn_as_they_were_timed(tmp_path, monkeypatch):
    rows = [row("eager_fp32", 1, batch_size=size) for size in (1, 2)]
    assert lines_of(rows, tmp_path, monkeypatch) == {"eager fp32": [[1, 10], [2, 20]]}


@pytest.mark.parametrize(
    "path", default_reports(), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_committed_results_of_earlier_code_are_drawn(path, tmp_path):
    draw(read_json(path), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def boxes_of(figure, artists):
    figure.draw_without_rendering()
    return [artist.get_window_extent() for artist in artists]


@pytest.mark.parametrize("count", [3, 15])
def test_legends_hide_nothing_and_no_label_is_clipped(tmp_path, monkeypatch, count):
    names = [f"a_long_rung_name_{index:02}" for index in range(count - 1)]
    rows = [row("eager_fp32", 1.0)]
    for index, name in enumerate(names):
        rows.append(row(name, 1.1 + index / 5, rows[-1]["variant"], score=0.4 + index / 50))
    sizes = [2, 4, 8, 12, 14, 15, 16]
    rows += [row(name, 2, batch_size=size) for size in sizes for name in names]
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    draw(report(rows), tmp_path / "a.png")
    monkeypatch.undo()
    (figure,) = kept
    for axis in figure.axes:
        (legend, panel), labels = boxes_of(figure, [axis.get_legend(), axis]), []
        labels += boxes_of(figure, axis.get_yticklabels())
        assert not legend.overlaps(panel)
        assert not any(legend.overlaps(label) for label in boxes_of(figure, axis.get_xticklabels()))
        for box in (legend, *labels):
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0
    named = [t for t in figure.axes[2].get_xticklabels() if t.get_text()]
    shown = boxes_of(figure, named)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(shown))
    plt.close(figure)


def test_the_front_by_hand():
    assert pareto_front([(1, 9), (2, 5), (3, 7), (4, 7), (5, 1)]) == [(1, 9), (4, 7), (5, 1)]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(points):
    front = pareto_front(points)
    for x, y in points:
        beaten = any(fx >= x and fy >= y and (fx, fy) != (x, y) for fx, fy in points)
        assert ((x, y) in front) == (not beaten)
