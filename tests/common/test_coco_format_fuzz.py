"""Annotation files: every one gives either a usable split or named problems, never a crash."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from common.cli import UserError
from common.coco import load_split
from common.coco_format import MIN_BOX_SIDE, parse_split
from tests.coco_data import CATEGORIES, annotation, image, write_annotations
from tests.damage import assert_one_line_about, damaged_text
from tests.long_runs import count, examples, times

INF, NAN = math.inf, math.nan


def problems_of(folder, split="train"):
    return parse_split(folder, split)[1]


def only_record(folder):
    (record,) = load_split(folder, "train").records
    return record


# --- oracle and fuzz --------------------------------------------------------------------------


def test_boxes_labels_and_counts_equal_those_of_pycocotools(tmp_path, capsys):
    rng = np.random.default_rng(5)
    categories = [{"id": int(i), "name": f"c{i}"} for i in rng.permutation(200)[:20]]
    images = [image(int(i), f"{i}.png", 640, 480) for i in rng.permutation(10_000)[:60]]
    boxes = []
    for number in range(500):
        x, y = rng.uniform(0, 500), rng.uniform(0, 400)
        box = [x, y, rng.uniform(1, 640 - x), rng.uniform(1, 480 - y)]
        picture = images[rng.integers(40)]  # twenty images stay without boxes
        chosen = categories[rng.integers(20)]["id"]
        crowd = {"iscrowd": int(rng.random() < 0.1), "area": box[2] * box[3] / 2}
        boxes.append({**annotation(box, number, picture["id"]), "category_id": chosen, **crowd})
    folder = write_annotations(tmp_path, *boxes, images=images, categories=categories)
    split = load_split(folder, "train")
    oracle = COCO(split.annotation_file)
    assert sorted(oracle.getCatIds()) == list(split.category_ids)
    assert [record.image_id for record in split.records] == [entry["id"] for entry in images]
    for record in split.records:
        theirs = oracle.loadAnns(oracle.getAnnIds(record.image_id))
        xywh = np.array([entry["bbox"] for entry in theirs]).reshape(-1, 4)
        expected = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
        np.testing.assert_allclose(record.boxes_xyxy, expected, rtol=0, atol=1e-4)
        ids = [split.category_ids[label - 1] for label in record.labels]
        assert ids == [entry["category_id"] for entry in theirs]
        assert record.is_crowd.tolist() == [bool(entry["iscrowd"]) for entry in theirs]
        np.testing.assert_allclose(record.areas, [entry["area"] for entry in theirs], rtol=1e-6)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([1, 2, 3, 10**400, -(10**400), "a.png", "..", "\ud800", INF, NAN])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def objects(*keys):
    """Objects with some of the keys, whose values are right, wrong or of another kind."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, VALUES)) | VALUES


FILES = st.fixed_dictionaries(
    {},
    optional={
        "images": st.lists(
            objects("id", "file_name", "width", "height") | st.just(image()), max_size=4
        ),
        "annotations": st.lists(
            objects("id", "image_id", "category_id", "bbox", "area", "iscrowd")
            | st.builds(annotation, st.lists(st.floats() | st.integers(), min_size=4, max_size=4)),
            max_size=4,
        ),
        "categories": st.lists(objects("id", "name") | st.sampled_from(CATEGORIES), max_size=3),
    },
)


def assert_usable(split, folder):
    """What a training relies on, whatever the file was."""
    assert len(split.class_names) == len(set(split.class_names)) == len(split.category_ids) > 0
    for record in split.records:
        x1, y1, x2, y2 = record.boxes_xyxy.T
        assert np.isfinite(record.boxes_xyxy).all()
        assert ((x1 >= 0) & (y1 >= 0) & (x2 > x1) & (y2 > y1)).all()
        assert ((x2 <= record.width) & (y2 <= record.height)).all()
        assert np.isfinite(record.areas).all()
        assert set(record.labels.tolist()) <= set(range(1, len(split.class_names) + 1))
        assert record.path.is_relative_to(folder.resolve())


@pytest.mark.long
@examples(150, 3000)
@given(content=FILES)
def test_any_json_gives_a_valid_split_or_a_user_error(tmp_path, content):
    count("examples")
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    try:
        split = load_split(tmp_path, "train")
    except UserError:
        return
    assert_usable(split, tmp_path)


def expected_boxes(content, picture, ids) -> list[tuple[list[float], int]]:
    """Boxes and labels of an image, worked out one by one."""
    found = []
    for entry in content["annotations"]:
        if entry["image_id"] == picture["id"]:
            x, y, width, height = entry["bbox"]
            x1, y1 = max(x, 0), max(y, 0)
            x2, y2 = min(x + width, picture["width"]), min(y + height, picture["height"])
            if x2 - x1 >= MIN_BOX_SIDE and y2 - y1 >= MIN_BOX_SIDE:
                found.append(([x1, y1, x2, y2], ids.index(entry["category_id"]) + 1))
    return found


@pytest.mark.long
def test_a_damaged_file_is_refused_or_read_as_it_stands(tmp_path):
    """Where a digit has become another the file's numbers count; none is guessed or mixed up."""
    pictures = [image(number, f"{number}.png", 40, 30 + number) for number in (1, 2, 5)]
    boxes = [annotation([3.5, 2, 20, 25], 1, 1), annotation([0, 0, 9, 9], 2, 5)]
    boxes.append({**annotation([30, 20, 30, 30], 3, 5), "category_id": 7})
    write_annotations(tmp_path, *boxes, images=pictures)
    path = tmp_path / "annotations" / "instances_train.json"
    whole, read = path.read_bytes(), 0
    for seed in range(times(150, 2000)):
        count("damaged files")
        path.write_bytes(damaged_text(whole, seed))
        try:
            split = load_split(tmp_path, "train")
        except UserError as error:
            assert_one_line_about(tmp_path, error)
            continue
        read += 1
        assert_usable(split, tmp_path)
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        by_id = {int(entry["id"]): entry for entry in content["images"]}
        for record in split.records:
            expected = expected_boxes(content, by_id[record.image_id], list(split.category_ids))
            actual = zip(record.boxes_xyxy.tolist(), record.labels.tolist(), strict=True)
            for (box, label), (its_box, its_label) in zip(expected, actual, strict=True):
                np.testing.assert_allclose(its_box, box, rtol=1e-6)
                assert its_label == label
    assert read > times(10, 150), "hardly any was read, so hardly anything was compared"
