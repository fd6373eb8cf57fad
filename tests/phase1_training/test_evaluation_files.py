"""evaluation.json and worst_misses.png: what is in them, also when there is nothing to show."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from common import artifacts, error_analysis, recorded_files
from common.coco import load_split
from common.evaluation import coco_map
from phase1_training import evaluation_files, panels
from phase1_training.evaluation_files import PICTURE, REPORT
from tests.coco_data import annotation, image, write_annotations
from tests.common.test_evaluation import detections, perfect
from tests.phase1_training.test_plots import is_picture

SIZE = (400, 300)  # width, height


@pytest.fixture
def split(tmp_path):
    """Two pictures: a disc and a box in the first, a small disc in the second."""
    boxes = [
        annotation([20, 30, 100, 60], 1),
        annotation([200, 100, 80, 120], 2) | {"category_id": 7},
        annotation([380, 280, 12, 10], 3, 2),
    ]
    images = [image(1, "a.png", *SIZE), image(2, "b.png", *SIZE)]
    write_annotations(tmp_path / "data", *boxes, images=images, split="val")
    (tmp_path / "data" / "images").mkdir()
    for index, name in enumerate(("a.png", "b.png")):
        pixels = np.full((*SIZE[::-1], 3), 60 + 90 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / name)
    return load_split(tmp_path / "data", "val")


FOUND = [
    detections([[20, 30, 120, 90], [200, 100, 280, 219], [5, 5, 9, 9]], [0.9, 0.8, 0.3], [1, 1, 1]),
    detections([[100, 100, 140, 150]], [0.7], [2]),
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures instead of their files."""
    figures = []
    monkeypatch.setattr(panels, "_save", lambda figure, path: figures.append(figure))
    yield figures
    plt.close("all")


def write(folder, split, found):
    head = {"schema": "evaluation/1", "command": "a test"}
    return evaluation_files.write(folder, head, split, coco_map(split, found), found)


def test_both_files_are_written_and_belong_together(tmp_path, split):
    folder = tmp_path / "new"
    assert write(folder, split, FOUND) == [folder / PICTURE, folder / REPORT]
    assert sorted(path.name for path in folder.iterdir()) == [REPORT, PICTURE]
    report = artifacts.read_json(folder / REPORT)
    assert list(report)[:2] == ["schema", "command"]
    assert report["confusion"]["counts"] == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert {kind: one["count"] for kind, one in report["errors"].items()} == dict.fromkeys(
        error_analysis.KINDS, 1
    )
    assert is_picture(folder / PICTURE)
    assert recorded_files.tells_of(report, folder / PICTURE)
    assert report["files"][PICTURE]["bytes"] == (folder / PICTURE).stat().st_size


def test_without_an_error_an_older_picture_goes(tmp_path, split):
    write(tmp_path, split, FOUND)
    assert write(tmp_path, split, [perfect(record) for record in split.records]) == [
        tmp_path / REPORT
    ]
    assert not (tmp_path / PICTURE).exists()
    report = artifacts.read_json(tmp_path / REPORT)
    assert report["map"] == pytest.approx(1.0)
    assert "files" not in report


def test_a_failure_leaves_the_older_files_as_they_were(tmp_path, split, monkeypatch):
    write(tmp_path, split, FOUND)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    (split.records[0].path).unlink()
    with pytest.raises(Exception, match="no such image"):
        write(tmp_path, split, [detections()] * 2)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def boxes_of(axis):
    """(corner, width, height), colour and style of each box in a panel."""
    return [
        ((*p.get_xy(), p.get_width(), p.get_height()), to_hex(p.get_edgecolor()), p.get_linestyle())
        for p in axis.patches
    ]


def test_cuttings_show_the_error_in_red_among_what_lies_there(split, drawn):
    analysis = error_analysis.analyse(split, FOUND)
    evaluation_files.worst_misses(split, FOUND, analysis, "unused")
    missed, false_alarm, confusion = drawn[0].axes[:3]
    assert missed.get_title() == "Missed: disc\nb.png"
    assert false_alarm.get_title() == "False alarm: background\nb.png"
    assert confusion.get_title() == "Wrong class, it is: box\na.png"
    # 12x10 pixels at the lower right corner: the cutting is 96x72 and ends with the picture.
    assert boxes_of(missed) == [((76, 52, 12, 10), panels.VERMILION.lower(), "-")]
    assert (missed.get_xlim(), missed.get_ylim()) == ((0, 96), (72, 0))
    assert [text.get_text() for text in false_alarm.texts] == ["box 0.70"]
    # 2.4 times 119 pixels are 286: from 14 on, the lower edge; as wide as 4/3 of it, from 19 on.
    assert boxes_of(confusion) == [
        ((1, 16, 100, 60), panels.SKY.lower(), "-"),
        ((181, 86, 80, 120), panels.SKY.lower(), "-"),
        ((1, 16, 100, 60), panels.YELLOW.lower(), "--"),
        ((181, 86, 80, 119), panels.VERMILION.lower(), "-"),
    ]
    assert [text.get_text() for text in confusion.texts] == [
        *("disc", "box", "disc 0.90", "disc 0.80")
    ]


def test_at_most_four_of_each_kind_are_shown(split, drawn):
    boxes = [[10 * i, 10, 10 * i + 8, 20] for i in range(12)]
    found = [detections(boxes, np.linspace(0.9, 0.6, 12), [2] * 12), detections()]
    evaluation_files.worst_misses(split, found, error_analysis.analyse(split, found), "unused")
    titles = [axis.get_title() for axis in drawn[0].axes if axis.images]
    assert [title.split(":")[0] for title in titles] == ["Missed"] * 3 + ["False alarm"] * 4


def test_hostile_names_are_drawn_and_written(tmp_path, split, recwarn):
    names = ("<script>", r"$\frac{")
    hostile = type(split)(split.annotation_file, split.records, names, split.category_ids)
    write(tmp_path, hostile, FOUND)
    assert is_picture(tmp_path / PICTURE)
    classes = json.loads((tmp_path / REPORT).read_text())["classes"]
    assert tuple(row["name"] for row in classes) == names
    assert [str(warning.message) for warning in recwarn] == []
