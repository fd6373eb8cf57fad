"""What loader processes hold in memory, and the seeds of what they draw."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.coco import ImageRecord
from phase1_training.batch_reader import PackedRecords, sample_seeds

RECORDS = st.builds(
    lambda image_id, name, size, count: ImageRecord(
        image_id,
        Path("/data") / name,
        *size,
        np.arange(4 * count, dtype=np.float32).reshape(count, 4),
        np.arange(1, count + 1),
        np.arange(count) % 2 == 1,
        np.arange(count, dtype=np.float32) + 0.5,
    ),
    st.integers(-(2**70), 2**70),
    st.text("aé漢\udc80 .", min_size=1, max_size=6).filter(lambda name: name.strip(".")),
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.integers(0, 3),
)


@given(st.lists(RECORDS, min_size=1, max_size=6))
def test_packed_records_are_the_records(records):
    packed = PackedRecords(records)
    assert len(packed) == len(records)
    for found, record in zip(packed, records, strict=True):
        assert found.__dict__.keys() == record.__dict__.keys()
        for name, value in record.__dict__.items():
            other = getattr(found, name)
            if isinstance(value, np.ndarray):
                assert other.dtype == value.dtype
                assert np.array_equal(other, value)
            else:
                assert (type(other), other) == (type(value), value)


def test_seeds_of_samples():
    seeds = [
        seed
        for key in [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0), (-1, 1, 0), (2**64 - 2, 1, 0)]
        for seed in sample_seeds(*key)
    ]
    assert len(set(seeds)) == len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seeds(4, 5, 6) == sample_seeds(4, 5, 6)
