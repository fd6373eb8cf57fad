"""Which detection continues which track: overlapping pairs, and the assignment with the most gain.

    row, column = overlapping_pairs(boxes_a, classes_a, boxes_b, classes_b)
    gain = paired_iou(boxes_a, boxes_b, row, column)
    row, column = assign(row, column, gain, (len(classes_a), len(classes_b)))

Boxes are arrays of shape (4, N), one row for each of x1, y1, x2, y2, so that a coordinate of all
boxes lies in one piece of memory. Only pairs that overlap are ever looked at: a crowded frame has a
few for each box, where a full matrix has thousands. The assignment is the optimum that the
Hungarian method finds (Kuhn 1955), by scipy: with a dense matrix where it is small (Crouse 2016),
with a sparse one where it is not (Jonker and Volgenant 1987).
"""

from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

DENSE_PAIRS = 5_000  # up to here comparing every box with every other is faster than sorting
SMALL_ASSIGNMENT = 2_500  # cells up to which the whole assignment is solved at once
DENSE_ASSIGNMENT = 10_000  # cells up to which a dense solver is faster than a sparse one
MAX_PAIRS = 1 << 15  # pairs of boxes looked at in one go: about what a cache holds
MAX_COMPARED = 1 << 27  # pairs of boxes looked at in all, and of these
MAX_OVERLAPS = 1 << 21  # pairs that overlap: bound the time and memory of a frame gone mad
UNASSIGNED = 1e-9  # gain of leaving a box alone: less than that of any pair that counts

Pairs = tuple[np.ndarray, np.ndarray]  # indices into a and into b, of equal length


def associate(
    boxes_a: np.ndarray,
    classes_a: np.ndarray,
    boxes_b: np.ndarray,
    classes_b: np.ndarray,
    iou_threshold: float,
) -> Pairs:
    """One-to-one pairs of the same class with IoU >= iou_threshold and the largest total IoU.

    Args:
        boxes_a, boxes_b: (4, N) and (4, K) xyxy; finite, each box with an area.
        classes_a, classes_b: (N,) and (K,).

    Returns:
        Indices into a and into b, of equal length.
    """
    row, column = overlapping_pairs(boxes_a, classes_a, boxes_b, classes_b)
    iou = paired_iou(boxes_a, boxes_b, row, column)
    enough = iou >= iou_threshold
    shape = (len(classes_a), len(classes_b))
    return assign(row[enough], column[enough], iou[enough], shape)


def overlapping_pairs(
    boxes_a: np.ndarray, classes_a: np.ndarray, boxes_b: np.ndarray, classes_b: np.ndarray
) -> Pairs:
    """All pairs of the same class whose boxes overlap, in order of a; see `associate`.

    Of more than MAX_OVERLAPS only the nearest of each box are returned: time and memory stay
    bounded where thousands of boxes lie on each other, which no detector means.
    """
    if len(classes_a) * len(classes_b) <= DENSE_PAIRS:
        overlaps = boxes_a[0][:, None] < boxes_b[2]
        overlaps &= boxes_b[0] < boxes_a[2][:, None]
        overlaps &= boxes_a[1][:, None] < boxes_b[3]
        overlaps &= boxes_b[1] < boxes_a[3][:, None]
        overlaps &= classes_a[:, None] == classes_b
        row, column = overlaps.nonzero()
        return row, column
    return _sweep(boxes_a, classes_a, boxes_b, classes_b)


def _sweep(
    boxes_a: np.ndarray, classes_a: np.ndarray, boxes_b: np.ndarray, classes_b: np.ndarray
) -> Pairs:
    """`overlapping_pairs` by a sweep along x: b is sorted, each box of a looks into its stretch."""
    by_left, begin, count = _stretches(boxes_a, boxes_b)
    if count.sum() > MAX_COMPARED:  # too many lie above each other: along y there are fewer
        boxes_a, boxes_b = boxes_a[[1, 0, 3, 2]], boxes_b[[1, 0, 3, 2]]
        by_left, begin, count = _stretches(boxes_a, boxes_b)
    boxes = (boxes_a, classes_a, boxes_b, classes_b)
    if count.sum() <= MAX_COMPARED:
        parts, found = [], 0
        for part in _parts(count):
            parts.append(_overlapping_in(part, begin, count, by_left, *boxes))
            found += len(parts[-1][0])
            if found > MAX_OVERLAPS:
                break
        else:
            return _joined(parts)
    begin, count = _nearest(boxes_a[0], boxes_b[0][by_left], begin, count)
    return _joined([_overlapping_in(one, begin, count, by_left, *boxes) for one in _parts(count)])


def _stretches(
    boxes_a: np.ndarray, boxes_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order of b by its left, and where therein the overlaps of each of a begin, and how many
    come into question."""
    by_left = np.argsort(boxes_b[0], kind="stable")
    left = boxes_b[0][by_left]
    widest = (boxes_b[2] - boxes_b[0]).max()
    begin = np.searchsorted(left, boxes_a[0] - widest)
    return by_left, begin, np.maximum(np.searchsorted(left, boxes_a[2]) - begin, 0)


def _nearest(
    left_a: np.ndarray, left: np.ndarray, begin: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The middle of each stretch, MAX_OVERLAPS in all; what is alike looks into different ones."""
    most = max(1, MAX_OVERLAPS // len(left_a))
    order = np.argsort(left_a, kind="stable")
    ordered = left_a[order]
    alike = np.empty(len(order), np.int64)
    alike[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    first = np.searchsorted(left, left_a) + alike - most // 2
    first = first.clip(begin, begin + np.maximum(count - most, 0))
    return first, np.minimum(count, most)


def _parts(count: np.ndarray) -> list[slice]:
    """Rows in which about MAX_PAIRS pairs are looked at."""
    end_of_row = np.cumsum(count)
    if end_of_row[-1] <= MAX_PAIRS:
        return [slice(0, len(count))]
    edges = np.flatnonzero(np.diff(end_of_row // MAX_PAIRS)) + 1
    return [slice(*pair) for pair in pairwise([0, *edges.tolist(), len(count)])]


def _joined(parts: list[Pairs]) -> Pairs:
    if len(parts) == 1:
        return parts[0]
    rows, columns = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(columns)


def _overlapping_in(
    part: slice,
    begin: np.ndarray,
    count: np.ndarray,
    by_left: np.ndarray,
    boxes_a: np.ndarray,
    classes_a: np.ndarray,
    boxes_b: np.ndarray,
    classes_b: np.ndarray,
) -> Pairs:
    """Pairs of the boxes of a in `part`, each with `count` of b from `begin` in order of left."""
    begin, count = begin[part], count[part]
    end_of_row = np.cumsum(count)
    row = np.repeat(np.arange(part.start, part.stop), count)
    column = np.arange(len(row)) + np.repeat(begin - (end_of_row - count), count)
    column = by_left[column]
    overlaps = boxes_a[0][row] < boxes_b[2][column]
    overlaps &= boxes_a[1][row] < boxes_b[3][column]
    overlaps &= boxes_b[1][column] < boxes_a[3][row]
    overlaps &= classes_a[row] == classes_b[column]
    overlapping = overlaps.nonzero()[0]
    return row[overlapping], column[overlapping]


def paired_iou(
    boxes_a: np.ndarray, boxes_b: np.ndarray, row: np.ndarray, column: np.ndarray
) -> np.ndarray:
    """IoU (P,) of the boxes at `row` (P,) in a with those at `column` (P,) in b."""
    a, b = boxes_a[:4].take(row, axis=1), boxes_b[:4].take(column, axis=1)
    sides = np.minimum(a[2:], b[2:])
    sides -= np.maximum(a[:2], b[:2])
    np.maximum(sides, 0, out=sides)
    intersection = sides[0] * sides[1]
    return intersection / (_areas(a) + _areas(b) - intersection)


def _areas(boxes: np.ndarray) -> np.ndarray:
    width_height = boxes[2:] - boxes[:2]
    return width_height[0] * width_height[1]


def assign(row: np.ndarray, column: np.ndarray, gain: np.ndarray, shape: tuple[int, int]) -> Pairs:
    """The one-to-one choice among these pairs with the largest total gain.

    Args:
        row, column, gain: (P,) pairs, each at most once, with positive gains.
        shape: rows and columns there are.

    Returns:
        rows and columns of the pairs chosen, of equal length.
    """
    if not len(row):
        return row, column
    if shape[0] * shape[1] <= SMALL_ASSIGNMENT:
        return _assign_dense(row, column, gain, shape)
    # A pair whose row and column occur in no other pair needs no assignment.
    single = np.bincount(row, minlength=shape[0])[row] == 1
    single &= np.bincount(column, minlength=shape[1])[column] == 1
    chosen, contested = np.flatnonzero(single), np.flatnonzero(~single)
    if not len(contested):
        return row, column
    rows, compact_row = _compact(row[contested], shape[0])
    columns, compact_column = _compact(column[contested], shape[1])
    compact_shape = (len(rows), len(columns))
    small = len(rows) * len(columns) <= DENSE_ASSIGNMENT
    solve = _assign_dense if small else _assign_sparse
    best_row, best_column = solve(compact_row, compact_column, gain[contested], compact_shape)
    return (
        np.concatenate([row[chosen], rows[best_row]]),
        np.concatenate([column[chosen], columns[best_column]]),
    )


def _compact(index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The different values of `index`, ascending, and the place of each entry among them."""
    occurs = np.zeros(size, bool)
    occurs[index] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[index]


def _assign_dense(
    row: np.ndarray, column: np.ndarray, gain: np.ndarray, shape: tuple[int, int]
) -> Pairs:
    table = np.zeros(shape)
    table[row, column] = gain
    best_row, best_column = linear_sum_assignment(table, maximize=True)
    is_pair = table[best_row, best_column] > 0
    return best_row[is_pair], best_column[is_pair]


def _assign_sparse(
    row: np.ndarray, column: np.ndarray, gain: np.ndarray, shape: tuple[int, int]
) -> Pairs:
    """scipy wants every row assigned, so each has a column of its own that stands for nothing."""
    rows = np.arange(shape[0])
    all_gain = np.concatenate([gain, np.full(shape[0], UNASSIGNED)])
    all_row, all_column = np.concatenate([row, rows]), np.concatenate([column, shape[1] + rows])
    table = csr_array((all_gain, (all_row, all_column)), shape=(shape[0], shape[1] + shape[0]))
    best_row, best_column = min_weight_full_bipartite_matching(table, maximize=True)
    is_pair = best_column < shape[1]
    return best_row[is_pair], best_column[is_pair]
