"""The look of the teaching pictures: 1600 pixels wide, and readable when shown at 800.

Colours are those of Okabe and Ito (2008), told apart with every kind of colour vision; whatever has
a colour has a line style of its own, too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed
import cv2
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from matplotlib.typing import LineStyleType

WIDTH_INCHES, DPI = 8.0, 200
TEXT_PT, SMALL_PT, HEADING_PT = 9, 8, 12  # 12.5, 11 and 17 pixels high when shown at 800
BLUE, GREEN, ORANGE = "#0072B2", "#009E73", "#E69F00"
VERMILION, GREY = "#D55E00", "#777777"
MARGIN = 0.25  # around what a detail shows, as a share of its longer side
SMALLEST_DETAIL_PX = 48.0
NAME, POINTS = "name", "points"  # texts that may be moved, and what they must not cover
NAME_GAP, POINT_PX = 5.0, 14.0  # pixels of the file: between names, and the radius of a point


@dataclass(frozen=True)
class Style:
    """How one kind of box is drawn, and what the legend says of it."""

    label: str
    color: str
    line: LineStyleType = "-"
    width: float = 2.0

    def handle(self) -> Line2D:
        return Line2D(
            [], [], color=self.color, linestyle=self.line, linewidth=self.width, label=self.label
        )


@contextmanager
def teaching_figure(path: Path, heading: str, height_inches: float) -> Iterator[Figure]:
    """A figure with a heading, written to `path` as PNG at the end of the block."""
    figure = plt.figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout="constrained")
    try:
        figure.suptitle(heading, fontsize=HEADING_PT, fontweight="bold")
        yield figure
        _spread_names(figure)
        figure.savefig(path, dpi=DPI, format="png")
    finally:
        plt.close(figure)


def two_parts(figure: Figure, height_ratios: Sequence[float]) -> tuple[SubFigure, SubFigure]:
    """One part above the other, each with a layout of its own."""
    grid = figure.add_gridspec(2, 1, height_ratios=height_ratios)
    return figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])


def detail_of(boxes_xyxy: np.ndarray, width: int, height: int, aspect: float) -> np.ndarray:
    """The part (4,) xyxy of a frame that shows boxes (4, N) with a margin.

    Args:
        width, height: of the frame in pixels.
        aspect: width over height wanted; a frame that is too small gives less.
    """
    low, high = boxes_xyxy[:2].min(axis=1), boxes_xyxy[2:].max(axis=1)
    sides = high - low + 2 * MARGIN * max(*(high - low), SMALLEST_DETAIL_PX)
    sides = np.maximum(sides, [sides[1] * aspect, sides[0] / aspect])
    sides = np.minimum(sides, [width, height])
    corner = np.clip((low + high - sides) / 2, 0, np.array([width, height]) - sides)
    return np.concatenate([corner, corner + sides])


def show_detail(axis: Axes, image_bgr: np.ndarray, detail: np.ndarray, title: str = "") -> None:
    """Shows a part (4,) xyxy of a frame; coordinates of the axis are pixels of the frame."""
    height, width = image_bgr.shape[:2]
    left, top = np.floor(detail[:2]).astype(int).clip(0)
    right, bottom = np.ceil(detail[2:]).astype(int).clip(None, [width, height])
    picture = cv2.cvtColor(image_bgr[top:bottom, left:right], cv2.COLOR_BGR2RGB)
    axis.imshow(picture, extent=(left, right, bottom, top), interpolation="bilinear")
    axis.set_xlim(detail[0], detail[2])
    axis.set_ylim(detail[3], detail[1])
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=TEXT_PT)


def draw_box(
    axis: Axes, box_xyxy: np.ndarray, style: Style, name: str = "", at: str = "top"
) -> None:
    """A box with its name on the side `at`: "top" or "bottom"."""
    x1, y1, x2, y2 = (float(side) for side in box_xyxy)
    axis.add_patch(
        Rectangle(
            *((x1, y1), x2 - x1, y2 - y1),
            fill=False,
            edgecolor=style.color,
            linestyle=style.line,
            linewidth=style.width,
            path_effects=[withStroke(linewidth=style.width + 1.6, foreground="white", alpha=0.7)],
        )
    )
    if name:
        y, side = (y1, "bottom") if at == "top" else (y2, "top")
        put_name(axis, (x1 + x2) / 2, y, name, style.color, side)


def put_name(axis: Axes, x: float, y: float, name: str, color: str, side: str) -> None:
    """White or black text on a patch of this colour; see `_spread_names`."""
    axis.text(
        *(x, y, name),
        ha="center",
        va=side,
        fontsize=SMALL_PT,
        color="white" if color in (BLUE, VERMILION, GREY, GREEN) else "black",
        parse_math=False,
        gid=NAME,
        in_layout=False,  # pictures keep their places when names move
        zorder=4,
        bbox={"facecolor": color, "alpha": 0.9, "pad": 1.2, "linewidth": 0},
    )


def _spread_names(figure: Figure) -> None:
    """Moves names into their pictures, and up or down until none covers another or a point.

    The name of a point that would end up far from it is left out.
    """
    figure.canvas.draw()  # only now places are known
    for axis in figure.axes:
        points = _points_of(axis)
        inside, taken = axis.get_window_extent(), list(points)
        for text in axis.texts:
            if text.get_gid() != NAME:
                continue
            begin = _moved_inside(text.get_window_extent().padded(NAME_GAP), inside)
            step = begin.height if text.get_verticalalignment() == "bottom" else -begin.height
            place = _free(begin, step, taken, inside) or _free(begin, -step, taken, inside) or begin
            text.set_visible(not points or abs(place.y0 - begin.y0) < 2 * begin.height)
            taken.append(place)
            _move(text, axis, place)


def _moved_inside(place: Bbox, inside: Bbox) -> Bbox:
    x = np.clip(0, inside.x0 - place.x0, inside.x1 - place.x1)
    y = np.clip(0, inside.y0 - place.y0, inside.y1 - place.y1)
    return place.translated(x, y)


def _points_of(axis: Axes) -> list[Bbox]:
    """The places of single points, which no name may cover."""
    points = [one.get_offsets() for one in axis.collections if one.get_gid() == POINTS]
    if not points:
        return []
    places = axis.transData.transform(np.concatenate(points))
    return [Bbox([place - POINT_PX, place + POINT_PX]) for place in places]


def _free(place: Bbox, step: float, taken: Sequence[Bbox], inside: Bbox) -> Bbox | None:
    """The first place in this direction that nothing overlaps, if there is one inside."""
    while place.y0 >= inside.y0 - 1 and place.y1 <= inside.y1 + 1:
        if not any(place.overlaps(other) for other in taken):
            return place
        place = place.translated(0, step / 4)
    return None


def _move(text: Text, axis: Axes, place: Bbox) -> None:
    """Puts a text into a place in pixels of the figure."""
    x, y = axis.transData.inverted().transform(
        ((place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2)
    )
    text.set_position((x, y))
    text.set(ha="center", va="center")


def draw_ellipses(axis: Axes, centre: np.ndarray, sigmas: np.ndarray, color: str) -> None:
    """The ellipses of one and of two standard deviations (2,) around a centre (2,), in pixels."""
    for count, line in ((1, "-"), (2, ":")):
        width, height = 2 * count * sigmas
        axis.add_patch(
            Ellipse(
                (float(centre[0]), float(centre[1])),
                *(width, height),
                facecolor=color,
                alpha=0.18,
                linewidth=0,
            )
        )
        axis.add_patch(
            Ellipse(
                (float(centre[0]), float(centre[1])),
                *(width, height),
                fill=False,
                edgecolor=color,
                linestyle=line,
                linewidth=1.5,
            )
        )


def legend(figure: Figure, handles: Sequence, columns: int = 3) -> None:
    """Below everything, in its own strip."""
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=TEXT_PT, frameon=False
    )


def put_note(axis: Axes, text: str, *, monospace: bool = False) -> None:
    """Lines of text in place of a plot."""
    axis.axis("off")
    axis.text(
        *(0.0, 1.0, text),
        transform=axis.transAxes,
        ha="left",
        va="top",
        fontsize=TEXT_PT,
        linespacing=1.5,
        family="monospace" if monospace else "sans-serif",
        parse_math=False,
    )
