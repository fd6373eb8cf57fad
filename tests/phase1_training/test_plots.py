"""The pictures of a training can be drawn from any run, and show what they say."""

from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from common.coco import load_split
from common.models import Detections
from phase1_training import panels, plots
from tests.coco_data import CATEGORIES, annotation, image, write_annotations, write_shapes

NAMES = [
    r"$\frac{",
    "<script>",
    "x" * 300,
    "{0}",
    "a_b^c",
    "两轮车",
    "日本語\nラベル\t",
    r"$\nosuch$",
]
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def row(epoch, loss=1.0, mean_ap=None):
    losses = dict.fromkeys(plots.LOSS_TITLES, loss / 4)
    mean_ap = 0.1 * epoch if mean_ap is None else mean_ap
    val_losses = dict.fromkeys(plots.LOSS_TITLES, loss / 2) | {"loss": 2 * loss}
    return {
        "epoch": epoch,
        "train_loss": loss,
        "losses": losses,
        "val": {"map": mean_ap, "map_50": 2 * mean_ap, "losses": val_losses},
        "learning_rate": 0.01,
    }


@pytest.fixture
def drawn(monkeypatch):
    """The figures instead of their files."""
    figures = []
    monkeypatch.setattr(panels, "_save", lambda figure, path: figures.append(figure))
    yield figures
    plt.close("all")


def is_picture(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG" and np.asarray(picture).std() > 1


# --- curves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves_are_written_whole(tmp_path, epochs):
    path = tmp_path / "new" / "training_curves.png"
    plots.training_curves([row(epoch) for epoch in range(1, epochs + 1)], path)
    assert is_picture(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert plt.get_fignums() == []  # figures of a long run would pile up


def test_a_figure_is_closed_when_drawing_fails(tmp_path):
    history = [row(1)]
    del history[0]["learning_rate"]
    with pytest.raises(KeyError):
        plots.training_curves(history, tmp_path / "curves.png")
    assert plt.get_fignums() == []
    assert list(tmp_path.iterdir()) == []


def test_curves_show_every_loss_of_training_and_validation(drawn):
    plots.training_curves([row(1, 4.0), row(2, 3.0)], "unused")
    total, _, rate, *four = drawn[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in total.lines} == {
        "training": [4, 3],
        "validation": [8, 6],
    }
    assert [axis.get_title() for axis in four] == list(plots.LOSS_TITLES.values())
    for axis in four:
        assert [list(line.get_ydata()) for line in axis.lines] == [[1, 0.75], [2, 1.5]]
    assert list(rate.lines[0].get_ydata()) == [0.01, 0.01]
    for axis in (total, *four):
        bottom, top = axis.get_ylim()
        assert bottom == 0
        assert top > max(max(line.get_ydata()) for line in axis.lines)


def test_curves_mark_the_best_epoch(drawn):
    plots.training_curves([row(1, mean_ap=0.1), row(2, mean_ap=0.3), row(3, mean_ap=0.2)], "unused")
    at_50, overall, best = drawn[0].axes[1].lines
    assert list(at_50.get_ydata()) == pytest.approx([0.2, 0.6, 0.4])
    assert list(overall.get_ydata()) == pytest.approx([0.1, 0.3, 0.2])
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([2], [0.3])
    assert best.get_label() == "best: 0.300 in epoch 2"
    assert best.get_marker() == "*"


@pytest.mark.parametrize("epochs", [plots.MARKED_EPOCHS, plots.MARKED_EPOCHS + 1])
def test_markers_that_would_run_into_each_other_are_left_out(drawn, epochs):
    plots.training_curves([row(epoch, mean_ap=0.1) for epoch in range(1, epochs + 1)], "unused")
    markers = [[line.get_marker() for line in axis.lines] for axis in drawn[0].axes[:3]]
    if epochs <= plots.MARKED_EPOCHS:
        assert markers == [[".", "x"], [".", ".", "*"], ["."]]
    else:
        assert markers == [["", ""], ["", "", "*"], [""]]


# --- average precision per class --------------------------------------------------------------


def split_of(folder, names, counts):
    """As many boxes of each class as `counts` says, and a crowd region of the first class."""
    categories = [{**CATEGORIES[0], "id": i, "name": name} for i, name in enumerate(names)]
    labels = [i for i, count in enumerate(counts) for _ in range(count)]
    boxes = [annotation([1, 1, 9, 9], n) | {"category_id": i} for n, i in enumerate(labels)]
    boxes.append(annotation([5, 5, 30, 20], 10**6, iscrowd=1) | {"category_id": 0})
    images = [image(1, "a.png")]
    write_annotations(folder, *boxes, images=images, categories=categories, split="val")
    (folder / "images").mkdir()
    Image.new("RGB", (40, 30), "white").save(folder / "images" / "a.png")
    return load_split(folder, "val")


def test_bars_are_ordered_and_tell_their_boxes(tmp_path, drawn):
    split = split_of(tmp_path, ["disc", "box", "none"], [2, 1, 0])
    plots.per_class_ap(split, {"disc": 0.25, "box": 0.75, "none": None}, "unused")
    (axis,) = drawn[0].axes
    bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axis.patches}
    assert bars == {0: 0.75, 1: 0.25}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["box", "disc"]
    assert axis.yaxis_inverted()  # the best is at the top
    assert [text.get_text() for text in axis.texts] == ["0.75  (1 box)", "0.25  (2 boxes)"]
    assert axis.get_xlabel() == "Classes without a box in the validation images: 1 of 3"


def test_of_many_classes_the_best_and_the_worst_are_shown(tmp_path, drawn):
    names = [f"class {number}" for number in range(80)]
    split = split_of(tmp_path, names, [1] * 80)
    plots.per_class_ap(split, {name: i / 100 for i, name in enumerate(names)}, "unused")
    (axis,) = drawn[0].axes
    half = plots.CLASSES_SHOWN // 2
    shown = [label.get_text() for label in axis.get_yticklabels()]
    assert shown == names[: 80 - half - 1 : -1] + names[half - 1 :: -1]
    assert f"{80 - 2 * half} classes between these" in [text.get_text() for text in axis.texts]
    ticks = axis.get_yticks()
    assert len(set(ticks)) == len(shown)
    assert half not in ticks  # where that line stands


def test_bars_without_any_class_measured(tmp_path):
    split = split_of(tmp_path, ["disc"], [0])
    plots.per_class_ap(split, {"disc": None}, tmp_path / "bars.png")
    assert is_picture(tmp_path / "bars.png")


# --- predictions beside the ground truth ------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 11])
def test_at_most_eight_pairs_are_shown(tmp_path, drawn, count):
    data = write_shapes(tmp_path / "data", splits={"val": count})
    split = load_split(data, "val")
    plots.predictions_grid(split, [NOTHING] * count, tmp_path / "grid.png")
    shown = [axis for axis in drawn[0].axes if axis.images]
    assert len(shown) == 2 * min(count, 8)
    titles = [axis.get_title() for axis in shown]
    assert (titles[0], titles[-2]) == ("val_0.png", f"val_{count - 1}.png")
    assert set(titles[1::2]) == {"0 predicted"}


def styles(axis):
    """(x, y, width, height), colour and line style of each box."""
    return [
        ((*patch.get_xy(), patch.get_width(), patch.get_height()), to_hex(patch.get_edgecolor()))
        for patch in axis.patches
    ]


def test_found_missed_right_and_wrong(tmp_path, drawn):
    folder = tmp_path / "data"
    crowd = annotation([60, 60, 40, 40], 3, iscrowd=1)
    boxes = (annotation([10, 10, 20, 20]), annotation([40, 10, 20, 20], 2), crowd)
    write_annotations(folder, *boxes, images=[image(1, "a.png", 100, 100)], split="val")
    (folder / "images").mkdir()
    Image.new("RGB", (100, 100)).save(folder / "images" / "a.png")
    split = load_split(folder, "val")
    found = [
        ([10, 10, 30, 31], 0.9, 1),  # right
        ([11, 10, 31, 30], 0.8, 1),  # finds the same box again
        ([40, 10, 60, 30], 0.7, 2),  # another class
        ([70, 70, 80, 80], 0.6, 1),  # in the crowd
        ([70, 70, 80, 80], 0.55, 2),  # in a crowd of another class
        ([40, 10, 60, 30], 0.49, 1),  # not confident
        ([np.nan, 10, 60, 30], 0.99, 1),
    ]
    detections = Detections(*(np.array(column) for column in zip(*found, strict=True)))
    plots.predictions_grid(split, [detections], "unused")
    truth, predicted = drawn[0].axes
    assert styles(truth) == [
        ((10, 10, 20, 20), panels.SKY.lower()),
        ((40, 10, 20, 20), panels.VERMILION.lower()),
        ((60, 60, 40, 40), panels.GREY.lower()),
    ]
    assert [color for _, color in styles(predicted)] == [
        color.lower()
        for color in (
            *(panels.GREEN, panels.VERMILION, panels.VERMILION),
            *(panels.GREY, panels.VERMILION),
        )
    ]
    assert styles(predicted)[0][0] == (10, 10, 20, 21)
    assert [text.get_text() for text in truth.texts] == ["disc"] * 3
    assert [text.get_text() for text in predicted.texts] == [
        *("disc 0.90", "disc 0.80", "box 0.70", "disc 0.60", "box 0.55")
    ]
    assert predicted.get_title() == "5 predicted"


def test_boxes_keep_their_place_on_a_thinned_out_picture(tmp_path, drawn):
    size = (4 * panels.PICTURE_SIDE, 3 * panels.PICTURE_SIDE)
    (tmp_path / "images").mkdir()
    Image.new("RGB", size).save(tmp_path / "images" / "a.png")
    box = annotation([2000, 1000, 300, 400])
    write_annotations(tmp_path, box, images=[image(1, "a.png", *size)], split="val")
    plots.predictions_grid(load_split(tmp_path, "val"), [NOTHING], "unused")
    axis = drawn[0].axes[0]
    assert max(axis.images[0].get_array().shape) <= panels.PICTURE_SIDE
    assert (axis.get_xlim(), axis.get_ylim()) == ((0, size[0]), (size[1], 0))
    assert styles(axis)[0][0] == (2000, 1000, 300, 400)


# --- a training batch -------------------------------------------------------------------------


def batch(count=2):
    images = torch.zeros(count, 3, 64, 96, dtype=torch.uint8)
    images[:, 0, :50, :80] = 200  # the padding stays black
    targets = [
        {"boxes": torch.tensor([[10.0, 20, 30, 45], [5, 6, 7, 8]]), "labels": torch.tensor([1, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return images, [(50, 80)] * count, (targets * count)[:count]


def test_training_batch_shows_the_pixels_without_the_padding(drawn):
    plots.training_batch(*batch(), ["disc", "box"], "unused", titles=["a.png", "b.png"])
    first, second = drawn[0].axes
    assert first.get_title() == "a.png  80x50, 2 boxes"
    assert second.get_title() == "b.png  80x50, 0 boxes"
    assert np.array_equal(
        first.images[0].get_array(), np.full((50, 80, 3), (200, 0, 0), dtype=np.uint8)
    )
    places = [place for place, _ in styles(first)]
    assert places == [(10, 20, 20, 25), (5, 6, 2, 2)]
    assert [text.get_text() for text in first.texts] == ["disc", "box"]
    assert not second.patches


def test_a_large_training_batch_is_cut(drawn):
    plots.training_batch(*batch(20), ["disc", "box"], "unused")
    assert sum(bool(axis.images) for axis in drawn[0].axes) == plots.GRID_IMAGES


# --- class names ------------------------------------------------------------------------------


def test_class_names_of_any_kind_are_drawn(tmp_path, recwarn):
    split = split_of(tmp_path, NAMES, [1] * len(NAMES))
    count = len(NAMES)
    boxes = np.tile(np.array([1, 1, 10, 10], np.float32), (count, 1))
    found = Detections(boxes, np.full(count, 0.9), np.arange(1, count + 1))
    plots.predictions_grid(split, [found], tmp_path / "grid.png")
    plots.per_class_ap(split, dict.fromkeys(NAMES, 0.5), tmp_path / "bars.png")
    target = {"boxes": torch.from_numpy(boxes), "labels": torch.arange(1, count + 1)}
    pictures = torch.full((1, 3, 32, 64), 99, dtype=torch.uint8)
    path = tmp_path / "batch.png"
    plots.training_batch(pictures, [(30, 60)], [target], NAMES, path, titles=["$x$.png"])
    assert all(is_picture(tmp_path / f"{name}.png") for name in ("grid", "bars", "batch"))
    assert [str(warning.message) for warning in recwarn] == []


def test_long_names_keep_their_score_and_stay_inside(tmp_path, drawn):
    split = split_of(tmp_path, ["x" * 300], [1])
    found = Detections(np.array([[30, 20, 39, 29]], np.float32), np.array([0.75]), np.array([1]))
    plots.predictions_grid(split, [found], "unused")
    figure = drawn[0]
    figure.draw_without_rendering()
    axis = figure.axes[1]
    (text,) = axis.texts
    assert text.get_text() == "x" * 18 + "… 0.75"
    inside, picture = text.get_window_extent(), axis.get_window_extent()
    assert picture.x0 <= inside.x0 < inside.x1 <= picture.x1


def test_only_the_first_boxes_of_a_crowded_picture_are_named(tmp_path, drawn):
    split = split_of(tmp_path, ["disc"], [100])
    plots.predictions_grid(split, [NOTHING], "unused")
    axis = drawn[0].axes[0]
    assert len(axis.patches) == 101
    assert len(axis.texts) == plots.MAX_LABELS


def test_panels_do_not_overlap(tmp_path, drawn):
    data = write_shapes(tmp_path / "data", splits={"val": 8})
    split = load_split(data, "val")
    split = replace(split, class_names=("y" * 300, "box"))
    plots.predictions_grid(split, [NOTHING] * 8, "unused")
    plots.training_curves([row(epoch, mean_ap=0.2) for epoch in range(1, 60)], "unused")
    for figure in drawn:
        figure.draw_without_rendering()
        boxes = [axis.get_tightbbox() for axis in figure.axes if axis.images or axis.lines]
        assert len(boxes) > 6
        for i, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_colours_are_all_different():
    colors = sorted(plots.CLASS_COLORS)
    assert all(one != other for one, other in pairwise(colors))
