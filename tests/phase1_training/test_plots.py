"""The pictures of a training can be drawn from any run, and show what they say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from common.coco import load_split
from common.models import Detections
from phase1_training import plots
from tests.coco_data import CATEGORIES, annotation, image, write_annotations, write_shapes


def row(epoch, loss=1.0):
    return {
        "epoch": epoch,
        "train_loss": loss,
        "losses": {"loss_classifier": loss / 2, "loss_box_reg": loss / 2},
        "val": {"map": 0.1 * epoch, "map_50": 0.2 * epoch},
        "learning_rate": 0.01,
    }


@pytest.fixture
def drawn(monkeypatch):
    """The figures instead of their files."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    yield figures
    plt.close("all")


def is_picture(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG" and np.asarray(picture).std() > 1


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves_are_written_whole(tmp_path, epochs):
    path = tmp_path / "new" / "training_curves.png"
    plots.training_curves([row(epoch) for epoch in range(1, epochs + 1)], path)
    assert is_picture(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert plt.get_fignums() == []  # figures of a long run would pile up


def test_curves_show_every_loss_and_both_means(drawn):
    plots.training_curves([row(1, 4.0), row(2, 3.0)], "unused")
    losses, scores, rates = drawn[0].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in losses.lines}
    assert lines == {"total": [4, 3], "classifier": [2, 1.5], "box_reg": [2, 1.5]}
    assert [list(line.get_ydata()) for line in scores.lines] == [[0.2, 0.4], [0.1, 0.2]]
    assert list(rates.lines[0].get_ydata()) == [0.01, 0.01]


NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@pytest.mark.parametrize("count", [1, 3, 11])
def test_at_most_eight_pictures_are_shown(tmp_path, drawn, count):
    data = write_shapes(tmp_path / "data", splits={"val": count})
    split = load_split(data, "val")
    plots.predictions_grid(split, [NOTHING] * count, tmp_path / "grid.png")
    assert sum(bool(axis.images) for axis in drawn[0].axes) == min(count, 8)


def test_truth_and_confident_predictions_are_drawn(tmp_path, drawn):
    split = load_split(write_shapes(tmp_path / "data", splits={"val": 1}), "val")
    boxes = np.array([[1, 2, 11, 22], [5, 5, 9, 9]], np.float32)
    detections = Detections(boxes, np.array([0.9, 0.49], np.float32), np.array([1, 2]))
    plots.predictions_grid(split, [detections], tmp_path / "grid.png")
    (axis,) = drawn[0].axes
    truth, prediction = axis.patches
    assert (*truth.get_xy(), truth.get_linestyle()) == (*split.records[0].boxes_xyxy[0][:2], "--")
    assert (*prediction.get_xy(), prediction.get_width(), prediction.get_height()) == (1, 2, 10, 20)
    assert [text.get_text() for text in axis.texts] == ["disc 0.90"]


def test_class_names_of_any_kind_are_drawn(tmp_path):
    names = [r"$\frac{$", "<script>", "x" * 300, "{0}", "a_b^c"]
    categories = [
        {**CATEGORIES[0], "id": number, "name": name} for number, name in enumerate(names)
    ]
    boxes = [annotation([1, 1, 9, 9], number) | {"category_id": number} for number in range(5)]
    data = write_annotations(
        tmp_path, *boxes, images=[image(1, "a.png")], categories=categories, split="val"
    )
    (data / "images").mkdir()
    Image.new("RGB", (40, 30)).save(data / "images" / "a.png")
    found = Detections(
        np.tile(np.array([1, 1, 30, 20], np.float32), (5, 1)), np.full(5, 0.9), np.arange(1, 6)
    )
    plots.predictions_grid(load_split(data, "val"), [found], tmp_path / "grid.png")
    assert is_picture(tmp_path / "grid.png")
