"""Anchor sizes of a detector: other ones than its architecture came with."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.cli import UserError

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

Sizes = tuple[tuple[int, ...], ...]
"""Of each pyramid level, the square roots of anchor areas in pixels after the resize."""


def arrange_sizes(sizes: Sequence[int], like: Sequence[Sequence[int]]) -> Sizes:
    """Sizes in the form of `like`: small ones on the fine levels, or all on every level if that is
    how the levels of `like` are.

    Raises:
        UserError: there are more or fewer than in `like`; the heads have one output for each.
    """
    shared = len(set(map(tuple, like))) == 1
    lengths = [len(like[0])] if shared else [len(level) for level in like]
    if len(sizes) != sum(lengths):
        what = f"{len(sizes)} sizes, the architecture has {sum(lengths)}"
        raise UserError("--anchor-sizes", what, f"give {sum(lengths)} of them, for instance by "
                        "those that check_data.py suggests")  # fmt: skip
    ordered = iter(sorted(sizes))
    levels = tuple(tuple(itertools.islice(ordered, length)) for length in lengths)
    return levels * len(like) if shared else levels


def flat_sizes(levels: Sequence[Sequence[int]]) -> list[int]:
    """The sizes that `arrange_sizes` makes `levels` from."""
    if len(set(map(tuple, levels))) == 1:
        return list(levels[0])
    return [size for level in levels for size in level]


def set_anchor_sizes(model: "FasterRCNN", sizes: Sequence[Sequence[int]]) -> None:
    """Gives the region proposal network other anchor sizes; aspect ratios and weights stay."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    own = model.rpn.anchor_generator
    levels = tuple(tuple(level) for level in sizes)
    if [len(level) for level in levels] != [len(level) for level in own.sizes]:
        raise ValueError(f"anchor sizes {levels} do not have the form of {own.sizes}")
    model.rpn.anchor_generator = AnchorGenerator(levels, own.aspect_ratios)
