"""Ids as text and whole floats, and a repair that would leave nothing."""

import json

import pytest

from common import artifacts
from common.cli import UserError
from phase1_training import data_doctor
from phase1_training.data_fix import fix
from phase1_training.data_ids import with_numeric_ids
from tests.coco_data import annotation, image, write_annotations, write_shapes

KEYS = {
    "images": ("id", "width", "height"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id"),
}


@pytest.mark.parametrize(
    ("keys", "write", "lists"),
    [
        ({"annotations": ("image_id",)}, str, 1),
        ({"annotations": ("image_id",)}, "{:012d}".format, 1),
        ({"annotations": ("image_id", "category_id")}, "{}.0".format, 1),
        ({"images": ("id",)}, str, 1),
        (KEYS, str, 3),
        (KEYS, float, 0),
    ],
    ids=["image_id", "zeros", "decimals", "images", "all", "floats"],
)
def test_numbers_in_another_dress_are_fixed_without_a_loss(tmp_path, keys, write, lists):
    data = write_shapes(tmp_path / "data", splits={"train": 4, "val": 2})
    path = data / "annotations" / "instances_train.json"
    right = json.loads(path.read_text())
    content = {
        name: [{**e, **{key: write(e[key]) for key in keys.get(name, ())}} for e in entries]
        for name, entries in right.items()
    }
    path.write_text(json.dumps(content))
    settings = {"architecture": "demo", "min_size": 240, "max_size": 512, "workers": 0}
    if lists:
        with pytest.raises(UserError, match="id"):
            data_doctor.examine(data, **settings, cache=None)
    else:
        data_doctor.examine(data, **settings, cache=None)
    changes = fix(data, "train", tmp_path / "new.json")
    fixed = artifacts.read_json(tmp_path / "new.json")
    assert (fixed["images"], fixed["categories"]) == (right["images"], right["categories"])
    assert [{key: e[key] for key in KEYS["annotations"]} for e in fixed["annotations"]] == [
        {key: e[key] for key in KEYS["annotations"]} for e in right["annotations"]
    ]
    assert [c["change"] for c in changes].count("text read as numbers") == lists
    path.write_text(json.dumps(fixed))
    data_doctor.examine(data, **settings, cache=None)


@pytest.mark.parametrize("text", ["", "x7", "7x", "-7", "7.5", " 7", "٧", "7" * 5000])
def test_other_text_stays_text(text):
    content = {"images": [{"id": text}], "annotations": [], "categories": None}
    assert with_numeric_ids(content) == (content, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": "a.png"}, "image 'a.png'"),
        ({"category_id": 99}, "category 99"),
        ({"bbox": [500, 500, 9, 9]}, "no area inside the image"),
    ],
    ids=str,
)
def test_a_copy_without_any_annotation_is_not_written(tmp_path, change, said):
    data = write_shapes(tmp_path / "data", splits={"train": 2})
    boxes = [{**annotation([5, 5, 20, 20], number), **change} for number in (1, 2)]
    write_annotations(data, *boxes, images=[image(1, "train_0.png", 64, 48)])
    with pytest.raises(UserError, match=f"none of its 2 annotations can be used.*{said}.*anew"):
        fix(data, "train", tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


def test_a_file_of_background_only_may_be_written(tmp_path):
    data = write_shapes(tmp_path / "data", splits={"train": 2})
    write_annotations(data, images=[image(1, "train_0.png", 64, 48)])
    assert fix(data, "train", tmp_path / "new.json") == []
    assert artifacts.read_json(tmp_path / "new.json")["annotations"] == []
