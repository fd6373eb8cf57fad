"""Plans of an epoch: what must hold for any data, and small ones worked out by hand."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.coco import CocoSplit, ImageRecord
from common.models import resized_size
from phase1_training.batch_plan import (
    MAX_GROUPS,
    STRIDE,
    _least_padding,
    distinct_shapes,
    plan_epoch,
)

NOTHING = {
    "boxes_xyxy": np.zeros((0, 4), np.float32),
    "labels": np.zeros(0, np.int64),
    "is_crowd": np.zeros(0, bool),
    "areas": np.zeros(0, np.float32),
}


def split_of(*sizes):
    """Images of these (height, width)."""
    records = [ImageRecord(i, Path(f"{i}.png"), w, h, **NOTHING) for i, (h, w) in enumerate(sizes)]
    return CocoSplit(Path("instances_train.json"), tuple(records), ("thing",), (1,))


def plan_of(split, *, batch_size=2, min_sizes=(64,), max_size=128, seed=0, epoch=1, **ranks):
    return plan_epoch(
        split, batch_size=batch_size, min_sizes=min_sizes, max_size=max_size, seed=seed,
        epoch=epoch, **ranks,
    )  # fmt: skip


def indices_of(plan):
    return [index for batch in plan for index in batch.indices]


COMMON_SIZES = st.sampled_from([(48, 64), (64, 48), (60, 60), (54, 96), (20, 160), (160, 20)])
ANY_SIZE = st.tuples(st.integers(1, 400), st.integers(1, 400))
SETTINGS = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 5),
        "min_sizes": st.lists(st.integers(32, 200), min_size=1, max_size=4, unique=True).map(tuple),
        "max_size": st.integers(200, 400),
        "world_size": st.integers(1, 4),
    }
)


@settings(max_examples=150)
@given(
    st.lists(COMMON_SIZES | ANY_SIZE, min_size=1, max_size=40),
    SETTINGS,
    st.integers(-(2**63), 2**64 - 1),
    st.integers(1, 1000),
)
def test_what_holds_for_every_plan(sizes, setting, seed, epoch):
    split, ranks = split_of(*sizes), range(setting["world_size"])
    plans = [plan_epoch(split, **setting, seed=seed, epoch=epoch, rank=rank) for rank in ranks]
    global_batch = setting["batch_size"] * setting["world_size"]

    assert sorted(i for plan in plans for i in indices_of(plan)) == list(range(len(sizes)))
    assert {len(plan) for plan in plans} == {-(-len(sizes) // global_batch)}
    together = [sum(len(batch.indices) for batch in step) for step in zip(*plans, strict=True)]
    assert sum(count < global_batch for count in together) <= 1
    shapes = distinct_shapes(split, **setting)
    assert len(shapes) <= len(setting["min_sizes"]) * MAX_GROUPS * (MAX_GROUPS + 1) // 2
    for step in zip(*plans, strict=True):
        assert len({(batch.min_size, batch.canvas, batch.epoch) for batch in step}) == 1
        assert max(len(batch.indices) for batch in step) <= setting["batch_size"]
        (height, width), side = step[0].canvas, step[0].min_size
        assert (height, width) in shapes
        assert height % STRIDE == width % STRIDE == 0
        for index in itertools.chain.from_iterable(batch.indices for batch in step):
            resized = resized_size(*sizes[index], side, setting["max_size"])
            assert resized[0] <= height
            assert resized[1] <= width
    again = [plan_epoch(split, **setting, seed=seed, epoch=epoch, rank=rank) for rank in ranks]
    assert again == plans
    whole = {**setting, "batch_size": global_batch, "world_size": 1}
    for rank, plan in enumerate(plans):  # one process with the whole batch reads the same images
        dealt = plan_epoch(split, **whole, seed=seed, epoch=epoch)
        assert [b.indices for b in plan] == [b.indices[rank :: len(ranks)] for b in dealt]


def test_epochs_and_seeds_have_orders_of_their_own():
    split = split_of(*[(48, 64)] * 12)
    orders = {
        tuple(indices_of(plan_of(split, epoch=e, seed=s)))
        for e in (1, 2, 3)
        for s in (0, 3, -3, 2**63)
    }
    assert len(orders) == 12
    neighbours = [{frozenset(b.indices) for b in plan_of(split, epoch=e)} for e in range(1, 9)]
    assert len(frozenset().union(*neighbours)) > 12  # who meets whom changes too


def test_aspect_ratios_have_batches_and_canvases_of_their_own():
    split = split_of(*[(48, 64), (64, 48)] * 4)  # at 64: 64x85 and 85x64
    plan = plan_of(split, batch_size=4)
    assert {batch.canvas: {i % 2 for i in batch.indices} for batch in plan} == {
        (64, 96): {0},
        (96, 64): {1},
    }
    assert distinct_shapes(split, batch_size=4, min_sizes=(64,), max_size=128) == [
        (64, 96),
        (96, 64),
    ]


def test_the_batch_at_the_end_of_a_group_holds_images_of_both():
    """Three tall and three wide images in batches of two: one batch has one of each."""
    split = split_of(*[(64, 48)] * 3, *[(48, 64)] * 3)
    for epoch in range(1, 6):
        canvases = sorted(
            (batch.canvas, sorted(i // 3 for i in batch.indices))
            for batch in plan_of(split, epoch=epoch)
        )
        assert canvases == [((64, 96), [1, 1]), ((96, 64), [0, 0]), ((96, 96), [0, 1])]


def test_a_batch_that_no_group_fills_is_not_split():
    split = split_of((48, 64), (64, 48), (60, 60))
    (batch,) = plan_of(split, batch_size=8)
    assert sorted(batch.indices) == [0, 1, 2]
    assert batch.canvas == (96, 96)


def test_every_scale_is_drawn_and_has_its_canvas():
    split = split_of(*[(48, 64)] * 40)
    plan = plan_of(split, min_sizes=(48, 96), max_size=100)
    assert {(batch.min_size, batch.canvas) for batch in plan} == {(48, (64, 64)), (96, (96, 128))}
    # 48: 48x64. 96: 96x128 would be too long, so 75x100.
    drawn = [batch.min_size for batch in plan]
    assert drawn != sorted(drawn)
    assert 4 <= drawn.count(48) <= 16


def test_more_processes_than_images():
    split = split_of(*[(48, 64)] * 3)
    plans = [plan_of(split, rank=rank, world_size=5) for rank in range(5)]
    assert [len(plan) for plan in plans] == [1] * 5
    assert [len(plan[0].indices) for plan in plans] == [1, 1, 1, 0, 0]
    assert {plan[0].canvas for plan in plans} == {(64, 96)}


def padded_area(kinds, counts, starts):
    runs = itertools.pairwise([*starts, len(kinds)])
    return sum(kinds[a:b].max(axis=0).prod() * counts[a:b].sum() for a, b in runs)


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=7
    ),
    st.integers(1, 4),
)
def test_no_other_cut_pads_less(kinds_and_counts, group_count):
    array = np.array(kinds_and_counts)
    kinds, counts = array[:, :2], array[:, 2]
    starts = _least_padding(kinds, counts, group_count)
    assert starts[0] == 0
    assert len(starts) <= group_count
    others = (
        [0, *cuts]
        for number in range(group_count)
        for cuts in itertools.combinations(range(1, len(kinds)), number)
    )
    least = min(padded_area(kinds, counts, other) for other in others)
    assert padded_area(kinds, counts, starts) == least


def test_shapes_come_in_random_order():
    split = split_of(*[(64, 48)] * 6, *[(48, 64)] * 5)
    plans = [plan_of(split, epoch=epoch) for epoch in range(1, 13)]
    assert {plan[0].canvas for plan in plans} == {(96, 64), (64, 96)}
    assert len({[len(batch.indices) for batch in plan].index(1) for plan in plans}) > 2


def test_a_side_never_rounds_to_nothing():
    (batch,) = plan_of(split_of((1, 400)), min_sizes=(64,), max_size=128)  # 128 / 400 < 1
    assert batch.canvas == (32, 128)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_images_of_one_size_are_never_padded_beyond_the_stride(count):
    split = split_of(*[(100, 300)] * count)  # 42x128
    assert {batch.canvas for batch in plan_of(split)} == {(64, 128)}
