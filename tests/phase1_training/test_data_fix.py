"""A repaired copy: every fault of it is gone, the rest is as it was, the original is untouched."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import artifacts
from common.cli import UserError
from common.coco import load_split
from phase1_training import check_data, data_doctor
from phase1_training.data_fix import fix
from tests.coco_data import CATEGORIES, annotation, image, write_annotations, write_shapes


def picture(path: Path, seed: int, width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def fixed(data: Path, split: str = "train") -> tuple[dict, list[dict]]:
    """The content of the repaired copy, and the changes."""
    new_file = data.parent / f"fixed_{split}.json"
    changes = fix(data, split, new_file)
    return artifacts.read_json(new_file), changes


def complete(bbox, number=1, **more) -> dict:
    return {**annotation(bbox, number), "iscrowd": 0, "area": 9.0, **more}


def one_image(tmp_path: Path, *boxes: dict, listed: dict | None = None, **more) -> Path:
    data = tmp_path / "data"
    write_annotations(data, *boxes, images=[listed or image()], **more)
    picture(data / "images" / "a.png", 0)
    return data


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([0.1, 0.2, 0.7, 0.3], [0.1, 0.2, 0.7, 0.3]),  # no digit of a good box changes
        ([-5, 3, 10, 10], [0, 3, 5, 10]),
        ([35, 25, 10, 10], [35, 25, 5, 5]),
        ([50, 5, 5, 5], None),
        ([5, 5, 0, 5], None),
        ([5, 5, 5, -3], None),
        ([math.nan, 5, 5, 5], None),
        ([5, 5, math.inf, 5], None),
        ([5, 5, 5], None),
        (None, None),
    ],
)
def test_boxes_are_kept_clipped_or_left_out(tmp_path, bbox, expected):
    data = one_image(tmp_path, complete([3, 3, 9, 9]), complete(bbox, 2))
    content, changes = fixed(data)
    assert [entry["bbox"] for entry in content["annotations"][1:]] == [expected] * bool(expected)
    assert [change["annotation_id"] for change in changes] == [2] * (bbox != expected or not bbox)


def test_ids_are_kept_where_they_can_be_and_numbered_where_not(tmp_path):
    boxes = [complete([number, 1, 9, 9], id_) for number, id_ in enumerate([7, 0, 7, "x", -4])]
    content, changes = fixed(one_image(tmp_path, *boxes))
    assert [entry["id"] for entry in content["annotations"]] == [7, 8, 9, 10, -4]
    assert {change["change"] for change in changes} == {"annotation numbered"}
    assert len(changes) == 3


def test_iscrowd_and_area_are_filled_in_and_all_else_is_kept(tmp_path):
    bare = annotation([1, 2, 3, 4], note="mine", area=math.nan)
    data = one_image(tmp_path, bare, complete([3, 3, 5, 5], 2, area=10**6, iscrowd=1))
    path = data / "annotations" / "instances_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "info": {"by": "me", "x": NAN}}))
    content, changes = fixed(data)
    assert content["annotations"] == [
        {**bare, "iscrowd": 0, "area": 12},
        complete([3, 3, 5, 5], 2, area=25, iscrowd=1),
    ]
    assert content["info"] == {"by": "me", "x": None}
    assert "number removed" in {change["change"] for change in changes}


NAN = math.nan


def test_a_wrong_size_is_taken_from_the_file(tmp_path):
    listed = image(width=30, height=40)  # swapped
    data = one_image(tmp_path, complete([1, 2, 38, 20]), listed=listed)
    content, _ = fixed(data)
    assert content["images"] == [image()]
    assert content["annotations"][0]["bbox"] == [1, 2, 38, 20]


def test_boxes_of_a_picture_that_was_resized_since_are_scaled(tmp_path):
    outline = [[2, 4, 6, 4, 6, 8]]
    data = one_image(
        tmp_path,
        complete([20, 40, 100, 60], segmentation=outline),
        listed=image(width=400, height=300),
    )
    content, changes = fixed(data)
    assert content["images"] == [image()]
    (box,) = content["annotations"]
    assert box["bbox"] == pytest.approx([2, 4, 10, 6])
    assert box["area"] == pytest.approx(60)
    assert "segmentation" not in box  # of the other size
    assert "size corrected" in {change["change"] for change in changes}


def test_images_of_one_id_are_left_out_and_a_file_listed_twice_is_merged(tmp_path):
    data = tmp_path / "data"
    names = ["a.png", "b.png", "c.png", "d.png"]
    images = [image(1, "a.png"), image(1, "b.png"), image(2, "c.png"), image(3, "c.png")]
    images += [image(4, "d.png"), image(4, "d.png"), image(5, "missing.png")]
    boxes = [complete([number, 1, 9, 9], number, image_id=number) for number in range(1, 6)]
    write_annotations(data, *boxes, images=images)
    for seed, name in enumerate(names):
        picture(data / "images" / name, seed)
    content, _ = fixed(data)
    assert [entry["file_name"] for entry in content["images"]] == ["c.png", "d.png"]
    assert [(box["id"], box["image_id"]) for box in content["annotations"]] == [
        (2, 2),
        (3, 2),
        (4, 4),
    ]


def test_corners_become_boxes(tmp_path):
    corners = [[x, y, x + 12, y + 9] for x in range(2, 26, 5) for y in range(3, 20, 5)]
    data = one_image(tmp_path, *(complete(box, number) for number, box in enumerate(corners, 1)))
    content, changes = fixed(data)
    assert [entry["bbox"][2:] for entry in content["annotations"]] == [[12, 9]] * len(corners)
    assert changes[0]["change"] == "boxes converted"


def test_everything_at_once_passes_the_doctor_afterwards(tmp_path, capsys):
    data = write_shapes(tmp_path / "data", splits={"train": 6, "val": 2})
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["images"] += [image(90, "../x.png"), image(91, "none.png"), {"id": "x"}]
    content["images"][0]["width"] = 65
    (data / "images" / "train_1.png").write_bytes(b"cut")
    entry = content["annotations"][2]
    for number, change in enumerate(
        [{"bbox": None}, {"bbox": [1, 1, math.inf, 5]}, {"image_id": 77}, {"category_id": 99},
         {"id": 0, "bbox": [1, 1, 12, 12]}, {"bbox": [60, 40, 30, 30]},
         {"image_id": 91}, {"bbox": [500, 1, 3, 3]}, {}]
    ):  # fmt: skip
        content["annotations"].append({**entry, "id": 100 + number, **change})
    content["categories"] += [{"id": 3, "name": "again"}, {"name": "no id"}]
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    words = ["--data-path", str(data), "--output", str(tmp_path / "out"), "--architecture", "demo"]
    assert check_data.main(words) == 2
    assert "--fix fixed.json" in capsys.readouterr().err
    new_file = tmp_path / "fixed.json"
    assert check_data.main([*words, "--fix", str(new_file)]) == 0
    assert "annotation left out, " in capsys.readouterr().out
    assert path.read_bytes() == before
    changes = artifacts.read_json(tmp_path / "out" / "data_fix.json")["changes"]
    assert {change["change"] for change in changes} >= {
        "image left out", "annotation left out", "category left out", "size corrected",
        "annotation numbered", "iscrowd filled in", "area filled in", "box clipped",
    }  # fmt: skip
    shutil.copy(new_file, path)
    assert check_data.main(words) == 0
    settings = {"architecture": "demo", "min_size": 240, "max_size": 512}
    problems = data_doctor.inspect(data, **settings)["problems"]
    allowed = {"no anchor", "anchor recall", "tiny box", "untaught class"}
    assert {p["kind"] for p in problems if p["severity"] != "note" and p["split"] == "train"} <= (
        allowed
    )
    again, changes = fixed(data)
    assert changes == []
    assert again == artifacts.read_json(path)
    assert len(load_split(data, "train").records) == 5


def test_an_input_is_never_replaced_nor_shadowed(tmp_path):
    data = one_image(tmp_path, complete([1, 1, 9, 9]))
    source = data / "annotations" / "instances_train.json"
    link = tmp_path / "link.json"
    link.symlink_to(source)
    before = source.read_bytes()
    for target in (source, link, data / "images" / "a.png"):
        with pytest.raises(UserError, match="exists and is not replaced"):
            fix(data, "train", target)
    for name in ("annotations/instances_train_fixed.json", "val.json", "annotations/val2.json"):
        with pytest.raises(UserError, match="would be taken for annotations"):
            fix(data, "train", data / name)
    assert source.read_bytes() == before
    assert [path.name for path in (data / "annotations").iterdir()] == [source.name]


@pytest.mark.parametrize(
    "change",
    [{"images": []}, {"images": [image(1, "none.png")]}, {"categories": []}, {"categories": 3}],
    ids=repr,
)
def test_what_cannot_be_repaired_is_one_line_and_no_file(tmp_path, change):
    data = one_image(tmp_path, complete([1, 1, 9, 9]))
    path = data / "annotations" / "instances_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="export it anew"):
        fix(data, "train", tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


def test_the_val_split_is_fixed_by_name(tmp_path):
    data = one_image(tmp_path, complete([1, 1, 9, 9]))
    write_annotations(data, complete([-1, 1, 9, 9], 5), categories=CATEGORIES, split="val")
    content, _ = fixed(data, "val")
    assert content["annotations"][0]["bbox"] == [0, 1, 8, 9]
