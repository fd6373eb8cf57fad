"""What a training is told of its data before it begins, and the checks of a data set as a whole."""

import cProfile
from pathlib import Path

import numpy as np
import pytest

from common import coco
from common.cli import UserError
from common.coco_files import read_annotations
from common.coco_format import parse_content, parse_split
from phase1_training import data_checks, data_doctor
from phase1_training.anchor_fit import anchors_of
from tests.coco_data import annotation, image, write_annotations, write_shapes

SETTINGS = {"architecture": "demo", "min_size": 240, "max_size": 512, "workers": 0}


def parsed(folder: Path):
    path = folder / "annotations" / "instances_train.json"
    return parse_content(folder, path, read_annotations(path))


# --- before a training ------------------------------------------------------------------------


def test_errors_of_the_annotations_stop_before_any_image_is_read(tmp_path, monkeypatch):
    data = write_shapes(tmp_path / "data", splits={"train": 3, "val": 2})
    boxes = [annotation([1, 1, 5], 1), annotation([1, 1, 5], 2)]
    write_annotations(data, *boxes, images=[image(1, "train_0.png", 64, 48)])
    monkeypatch.setattr(coco, "read_image", None)
    with pytest.raises(UserError) as raised:
        data_doctor.examine(data, **SETTINGS, cache=None)
    text = str(raised.value)
    assert text.startswith(f"{data}/annotations/instances_train.json: train_0.png: annotation 1: ")
    assert "(and 1 more errors)" in text
    assert text.endswith(f"check_data.py --data-path {data}")


def test_the_command_that_lists_all_can_be_typed_whatever_the_folder_is_called(tmp_path):
    data = write_shapes(tmp_path / "my data", splits={"train": 3, "val": 2})
    write_annotations(data, annotation([1, 1, 5], 1), images=[image(1, "train_0.png", 64, 48)])
    for refuse in (
        lambda: data_doctor.examine(data, **SETTINGS, cache=None),
        lambda: coco.load_split(data, "train"),
    ):
        with pytest.raises(UserError) as raised:
            refuse()
        assert raised.value.remedy.endswith(f"check_data.py --data-path '{data}'")


def test_a_single_image_without_val_is_told_of_the_folder(tmp_path):
    with pytest.raises(UserError, match="one image only: none can be held out") as raised:
        data_doctor.examine(write_annotations(tmp_path), **SETTINGS, cache=None)
    assert str(raised.value).startswith(f"{tmp_path}: ")


def test_a_second_start_reads_no_image(tmp_path, monkeypatch):
    data = write_shapes(tmp_path / "data", splits={"train": 3, "val": 2})
    cache = tmp_path / "cache.json"
    first = data_doctor.examine(data, **SETTINGS, cache=cache)
    monkeypatch.setattr(coco, "read_image", None)
    assert data_doctor.examine(data, **SETTINGS, cache=cache) == first


def test_warnings_are_a_few_lines(tmp_path):
    data = write_shapes(tmp_path / "data", splits={"train": 3, "val": 2})
    boxes = [annotation([n, 40, 20, 10], n) for n in range(30)]  # 2 px below the image
    write_annotations(data, *boxes, images=[image(1, "train_0.png", 64, 48)])
    lines = data_doctor.summary_lines(data_doctor.examine(data, **SETTINGS, cache=None))
    assert len(lines) == 2
    assert lines[0].startswith("data, train: box partly outside, 30 times, first train_0.png: ")
    assert lines[1].startswith("data, train: annotation id 0: train_0.png: annotation 0: ")


def test_many_kinds_of_warnings_are_summed_up():
    problem = {"severity": "warning", "split": "train", "image": None, "message": "m"}
    report = {"problems": [{**problem, "kind": f"kind {n}"} for n in range(20)]}
    lines = data_doctor.summary_lines(report)
    assert len(lines) == data_doctor.SUMMARY_KINDS + 1
    assert lines[0] == "data, train: kind 0: m"
    assert lines[-1].startswith("data: also kind 8, kind 9")


# --- classes, repeats, speed ------------------------------------------------------------------


def test_a_class_that_only_val_has_is_told(tmp_path):
    data = write_annotations(tmp_path, annotation([1, 1, 9, 9]), images=[image(1)])
    other = {**annotation([1, 1, 9, 9]), "category_id": 7}
    write_annotations(data, other, split="val")
    train = parsed(data)
    path = data / "annotations" / "instances_val.json"
    val = parse_content(data, path, read_annotations(path))
    (problem,) = data_checks.pair_problems(train, val)
    assert (problem.kind, problem.message) == (
        "untaught class",
        "'box' has boxes in val and none in train: AP 0",
    )


def test_a_repeat_is_the_same_box_of_the_same_class_and_image(tmp_path):
    box = [1, 2, 3, 4]
    rows = [annotation(box, 1), {**annotation(box, 2), "category_id": 7}, annotation(box, 3, 2)]
    rows += [annotation([1, 2, 3, 4.5], 4), annotation(box, 5), annotation([1.0, 2, 3, 4], 6)]
    folder = write_annotations(tmp_path, *rows, images=[image(1), image(2, "b.png")])
    repeated = data_checks.repeated_boxes(parsed(folder))
    assert repeated.tolist() == [False, False, False, False, True, True]


def test_crowd_regions_are_not_judged_by_anchors_or_size(tmp_path):
    thin = [annotation([0, 0, 40, 1], 1, iscrowd=1), annotation([5, 5, 20, 18], 2)]
    file = parsed(write_annotations(tmp_path, *thin))
    problems, report = data_checks.resized_problems(file, anchors_of("demo"), 240, 512)
    assert problems == []
    assert report["own"]["boxes"] == 1


def test_a_row_of_the_table_and_a_record_hold_the_same_boxes(tmp_path):
    """Records are in the order of the images, rows in that of the file."""
    rng = np.random.default_rng(0)
    images = [image(n, f"{n}.png") for n in (9, 4, 7)]
    rows = [
        annotation([*rng.uniform(0, 20, 2), *rng.uniform(1, 30, 2)], n, int(rng.choice([9, 4, 7])))
        for n in range(40)
    ]
    file = parsed(write_annotations(tmp_path, *rows, images=images))
    split, _ = parse_split(tmp_path, "train")
    for index, record in enumerate(split.records):
        mine = (file.table.image_index == index) & file.usable
        assert np.array_equal(record.boxes_xyxy, file.boxes_xyxy[mine].astype(np.float32))
        assert {entry["image_id"] for entry in file.table.part(mine).entries} <= {record.image_id}


def test_large_files_are_checked_as_columns(tmp_path):
    """5,000 images and 40,000 boxes, by the number of calls: a clock would tell of the machine."""
    rng = np.random.default_rng(0)
    images = [image(n, f"{n}.png", 640, 480) for n in range(5000)]
    boxes = np.hstack([rng.uniform(0, 400, (40_000, 2)), rng.uniform(5, 80, (40_000, 2))])
    owners = rng.integers(0, 5000, 40_000).tolist()
    pairs = zip(boxes.tolist(), owners, strict=True)
    rows = [annotation(box, number, owner) for number, (box, owner) in enumerate(pairs, 1)]
    folder = write_annotations(tmp_path, *rows, images=images)
    profile = cProfile.Profile()
    settings = {"architecture": "demo", "min_size": 240, "max_size": 512}
    settings["anchors"] = anchors_of("demo")  # a model is built for them, once
    (report, _) = profile.runcall(data_doctor._check_annotations, folder, **settings)
    assert report["counts"]["train"]["boxes"] == 40_000
    calls = sum(entry.callcount for entry in profile.getstats())
    assert calls < 60 * 45_000  # most of them dict.get and isinstance
