"""The pictures of the export's gate."""

import numpy as np

from phase4_deployment.checks import parity


def test_the_dark_picture_of_a_batch_is_not_even():
    """In an even one all regions score the same, and rounding alone decides which NMS keeps: a
    correct export of a trained detector was refused for it."""
    batches = parity.gate_batches([])
    assert [(len(batch), *batch[0].shape[:2]) for batch in batches] == list(parity.GATE_SHAPES)
    dark = [batch[-1] for batch in batches if len(batch) > 1]
    assert len(dark) == 2
    for picture in dark:
        assert picture.max() < parity.DARK_LEVELS
        blocks = picture[: picture.shape[0] // 8 * 8, : picture.shape[1] // 8 * 8]
        means = blocks.reshape(blocks.shape[0] // 8, 8, -1, 8, 3).mean((1, 3, 4))
        assert len(np.unique(means)) > 100


def test_the_pictures_are_the_same_in_every_run():
    first, second = parity.gate_batches([]), parity.gate_batches([])
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
