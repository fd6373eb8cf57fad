"""Association: hand-computed overlaps, brute force over all pairs, scipy's dense assignment."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from phase3_tracking.trackers import association
from phase3_tracking.trackers.association import assign, associate, overlapping_pairs, paired_iou

coordinate, side = st.integers(0, 30), st.integers(1, 15)
box = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), coordinate, coordinate, side, side)
boxes_of_classes = st.lists(st.tuples(box, st.integers(1, 2)), max_size=10)


def columns(rows: list) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (4, N) and classes (N,) of (box, class) tuples."""
    boxes = np.array([one for one, _ in rows], float).reshape(-1, 4).T
    return boxes, np.array([label for _, label in rows], float)


def iou_of(a: tuple, b: tuple) -> float:
    """As one would on paper."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0, width) * max(0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union


def test_iou_by_hand():
    a = np.array([[0.0, 0, 10, 10]]).T
    b = np.array([[5.0, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 7, 9]]).T
    iou = paired_iou(a, b, np.zeros(4, int), np.arange(4))
    np.testing.assert_allclose(iou, [50 / 150, 1, 0, 8 / 100])


@pytest.mark.parametrize("dense_pairs", [0, association.DENSE_PAIRS])
@settings(max_examples=100, deadline=None)
@given(first=boxes_of_classes, second=boxes_of_classes)
def test_overlapping_pairs_are_those_of_brute_force(dense_pairs, first, second):
    with mock.patch.object(association, "DENSE_PAIRS", dense_pairs):
        row, column = overlapping_pairs(*columns(first), *columns(second))
    expected = [
        (i, j)
        for i, (a, label) in enumerate(first)
        for j, (b, other) in enumerate(second)
        if label == other and iou_of(a, b) > 0
    ]
    assert sorted(zip(row.tolist(), column.tolist(), strict=True)) == expected
    assert (np.diff(row) >= 0).all()


def test_many_pairs_are_worked_off_in_parts():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 200, (2, 40))
    boxes, classes = np.concatenate([corners, corners + 30]), np.ones(40)
    whole = overlapping_pairs(boxes, classes, boxes, classes)
    with mock.patch.multiple(association, DENSE_PAIRS=0, MAX_PAIRS=100):
        parts = overlapping_pairs(boxes, classes, boxes, classes)
    assert sorted(zip(*parts, strict=True)) == sorted(zip(*whole, strict=True))


@st.composite
def gain_tables(draw) -> np.ndarray:
    rows, some = draw(st.integers(1, 12)), st.sampled_from([0.0, 0.0, 0.0, 0.2, 0.5, 0.9])
    count = draw(st.integers(1, 12))
    return np.array([[draw(some) for _ in range(count)] for _ in range(rows)])


@pytest.mark.parametrize(("small", "dense"), [(10_000, 10_000), (0, 10_000), (0, 0)])
@settings(max_examples=60, deadline=None)
@given(table=gain_tables())
def test_the_assignment_is_as_good_as_the_dense_one(small, dense, table):
    row, column = table.nonzero()
    with mock.patch.multiple(association, SMALL_ASSIGNMENT=small, DENSE_ASSIGNMENT=dense):
        best_row, best_column = assign(row, column, table[row, column], table.shape)
    assert len(set(best_row)) == len(best_row) == len(set(best_column))
    assert (table[best_row, best_column] > 0).all()
    best = table[linear_sum_assignment(table, maximize=True)].sum()
    assert table[best_row, best_column].sum() == pytest.approx(best, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    first=boxes_of_classes,
    second=boxes_of_classes,
    threshold=st.sampled_from([0.01, 0.3, 0.5, 1.0]),
)
def test_associate_is_the_best_choice_above_the_threshold(first, second, threshold):
    row, column = associate(*columns(first), *columns(second), threshold)
    gain = np.zeros((len(first), len(second)))
    for i, (a, label) in enumerate(first):
        for j, (b, other) in enumerate(second):
            iou = iou_of(a, b)
            gain[i, j] = iou if iou >= threshold and label == other else 0
    assert len(set(row)) == len(row) == len(set(column))
    assert (gain[row, column] > 0).all()
    best = gain[linear_sum_assignment(gain, maximize=True)].sum()
    assert gain[row, column].sum() == pytest.approx(best, abs=1e-6)


def test_a_large_crowd_has_the_dense_optimum():
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 700, (2, 400))
    a = np.concatenate([corners, corners + 40])
    b = a + rng.normal(0, 8, a.shape[1])
    classes = np.ones(400)
    row, column = associate(a, classes, b, classes, 0.2)
    pairs = overlapping_pairs(a, classes, b, classes)
    gain = np.zeros((400, 400))
    gain[pairs] = paired_iou(a, b, *pairs)
    gain[gain < 0.2] = 0
    best = gain[linear_sum_assignment(gain, maximize=True)].sum()
    assert gain[row, column].sum() == pytest.approx(best, abs=1e-6)


def lines_up(boxes_a: np.ndarray, boxes_b: np.ndarray) -> list[tuple[int, int]]:
    pairs = overlapping_pairs(
        boxes_a, np.ones(boxes_a.shape[1]), boxes_b, np.ones(boxes_b.shape[1])
    )
    return sorted(zip(*(one.tolist() for one in pairs), strict=True))


def test_what_lies_above_each_other_is_swept_along_y():
    rng = np.random.default_rng(2)
    corners = np.stack([rng.uniform(0, 3, 90), rng.uniform(0, 3000, 90)])
    a = np.concatenate([corners, corners + 40])
    b = a + rng.normal(0, 5, a.shape[1])
    expected = lines_up(a, b)
    assert 90 < len(expected) < 1000
    with mock.patch.multiple(association, DENSE_PAIRS=0, MAX_COMPARED=1000):
        assert lines_up(a, b) == expected  # 8100 along x


def test_of_too_many_overlaps_the_nearest_are_taken():
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 30, (2, 90))
    a = np.concatenate([corners, corners + 40])
    b = a + rng.normal(0, 0.1, a.shape[1])
    everything = set(lines_up(a, b))
    assert len(everything) > 8000
    with mock.patch.multiple(association, DENSE_PAIRS=0, MAX_PAIRS=100, MAX_OVERLAPS=90 * 9):
        some = lines_up(a, b)
    assert len(some) <= 90 * 9
    assert set(some) <= everything
    assert set(some) >= {(one, one) for one in range(90)}  # the box itself, moved a little


@pytest.mark.parametrize("limits", [{"MAX_OVERLAPS": 90}, {"MAX_OVERLAPS": 900, "MAX_COMPARED": 1}])
def test_of_too_many_that_are_alike_everyone_finds_another(limits):
    same = np.tile([[10.0], [10], [50], [60]], 90)
    with mock.patch.multiple(association, DENSE_PAIRS=0, **limits):
        row, column = associate(same, np.ones(90), same, np.ones(90), 0.3)
    assert sorted(row.tolist()) == sorted(column.tolist()) == list(range(90))


@pytest.mark.parametrize("dense_pairs", [0, association.DENSE_PAIRS])
@settings(max_examples=60, deadline=None)
@given(first=boxes_of_classes, second=boxes_of_classes)
def test_the_bounds_of_a_frame_never_make_a_pair_up(dense_pairs, first, second):
    limits = {"MAX_PAIRS": 3, "MAX_COMPARED": 5, "MAX_OVERLAPS": 4}
    with mock.patch.multiple(association, DENSE_PAIRS=dense_pairs, **limits):
        row, column = overlapping_pairs(*columns(first), *columns(second))
    pairs = list(zip(row.tolist(), column.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    for i, j in pairs:
        assert iou_of(first[i][0], second[j][0]) > 0
        assert first[i][1] == second[j][1]
