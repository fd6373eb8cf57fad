"""The pictures of a benchmark hold what the rows say, also where little was measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image

from phase2_optimization.benchmark_plot import draw, draw_waterfall, pareto_front


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
    ],
    ids=["ladder", "baseline alone", "no comparison"],
)
def test_pictures_are_drawn(rows, tmp_path):
    absent = {"variant": "x", "batch_size": 1, "latency_ms": None}
    draw(report([*rows, absent]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1000


def test_the_front_by_hand():
    assert pareto_front([(1, 9), (2, 5), (3, 7), (4, 7), (5, 1)]) == [(1, 9), (4, 7), (5, 1)]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(points):
    front = pareto_front(points)
    for x, y in points:
        beaten = any(fx >= x and fy >= y and (fx, fy) != (x, y) for fx, fy in points)
        assert ((x, y) in front) == (not beaten)
