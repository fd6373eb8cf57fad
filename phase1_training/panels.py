"""Figures written whole, and panels of pictures with named boxes.

Class names come from a person's file, so they are drawn as they are: no mathematics between
dollars, no line breaks, cut where they are too long.
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display needed

import numpy as np
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from common import artifacts

# Okabe and Ito (2008): told apart with every kind of colour vision; line styles differ as well.
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILION, PURPLE, YELLOW, GREY = "#D55E00", "#CC79A7", "#F0E442", "#777777"
FONTS = (  # the first has no Chinese, Japanese or Korean; the others are used where installed
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR"),
    *("Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC"),
    *("Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"),
)
LETTER_WIDTH = 0.018  # of the longer side of a picture
PICTURE_SIDE = 640  # pixels; larger pictures are thinned out before they are drawn


def short(name: str, length: int = 24) -> str:
    """One line of at most so many characters."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 1]}…"


@functools.cache
def _fonts() -> list[str]:
    """matplotlib warns of each font that is not installed, at each text."""
    installed = set(font_manager.get_font_names())
    return [name for name in FONTS if name in installed]


@contextmanager
def new_figure(path: Path, *, figsize: tuple[float, float]) -> Iterator[Figure]:
    """A figure that is written to `path` at the end of the block."""
    with plt.rc_context({"font.family": _fonts(), "axes.titlesize": 11}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a box stands for what no font has
        figure = plt.figure(figsize=figsize, layout="constrained")
        try:
            yield figure
            _save(figure, path)
        finally:
            plt.close(figure)


def _save(figure: Figure, path: Path) -> None:
    """Laid out here, once: while a figure has an engine savefig lays out and draws twice."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)
    with artifacts.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, pil_kwargs={"compress_level": 2})


@contextmanager
def panels(path: Path, sizes: Sequence[tuple[int, int]], title: str) -> Iterator[Sequence[Axes]]:
    """Panels for pictures of these (height, width), four in a row, each row as high as needed."""
    columns = min(4, len(sizes))
    starts = range(0, len(sizes), columns)
    ratios = [min(1.0, max(h / w for h, w in sizes[i : i + columns])) for i in starts]
    inches = [3.7 * ratio + 0.3 for ratio in ratios]
    with new_figure(path, figsize=(3.7 * columns, sum(inches) + 0.4)) as figure:
        grid = {"height_ratios": inches}
        axes = figure.subplots(len(inches), columns, squeeze=False, gridspec_kw=grid).ravel()
        for axis in axes:
            axis.axis("off")
            axis.set_anchor("N")
        figure.suptitle(title, fontsize=11, wrap=True)
        yield list(axes[: len(sizes)])


def show(axis: Axes, picture: np.ndarray, size: tuple[int, int]) -> None:
    """A picture in the coordinates of its boxes: (height, width) pixels."""
    step = max(1, round(max(size) / PICTURE_SIDE))
    axis.imshow(
        picture[::step, ::step], extent=(0, size[1], size[0], 0), interpolation="antialiased"
    )
    axis.set_autoscale_on(False)


def draw_box(
    axis: Axes, box: np.ndarray, color: str, style: str, name: str, size: tuple[int, int]
) -> None:
    """A box, xyxy, with its name above, or inside where there is no room above, and never past the
    edge of the picture of this (height, width)."""
    x1, y1, x2, y2 = (float(side) for side in box)
    axis.add_patch(
        Rectangle(
            *((x1, y1), x2 - x1, y2 - y1),
            fill=False,
            color=color,
            linestyle=style,
            linewidth=1.6,
            path_effects=[withStroke(linewidth=2.6, foreground="black", alpha=0.5)],
        )
    )
    if not name:
        return
    height, width = size
    text_width = LETTER_WIDTH * len(name) * max(width, height)
    fits = x1 + text_width <= width
    axis.text(
        x1 if fits else width,
        y1,
        name,
        ha="left" if fits else "right",
        va="top" if y1 < 0.08 * height else "bottom",
        color="white" if color in (BLUE, VERMILION, GREY) else "black",
        fontsize=7,
        clip_on=True,
        parse_math=False,
        bbox={"facecolor": color, "alpha": 0.85, "pad": 0.8, "linewidth": 0},
    )
