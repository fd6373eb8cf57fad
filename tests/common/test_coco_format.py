"""Annotation files: every one gives either a usable split or named problems, never a crash."""

import json
import math

import numpy as np
import pytest

from common.cli import UserError
from common.coco import load_split
from common.coco_files import MissingSplitError, find_annotations
from common.coco_format import MIN_BOX_SIDE, parse_split
from tests.coco_data import CATEGORIES, annotation, image, write_annotations

INF, NAN = math.inf, math.nan


def problems_of(folder, split="train"):
    return parse_split(folder, split)[1]


def only_record(folder):
    (record,) = load_split(folder, "train").records
    return record


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.fault("P1-22")
def test_category_ids_with_gaps_become_labels_from_one_in_the_order_of_the_ids(tmp_path):
    categories = [{"id": 90, "name": "z"}, {"id": 0, "name": "zero"}, {"id": 5, "name": "five"}]
    boxes = [
        annotation([0, 0, 5, 5], number, category_id=category_id)
        for number, category_id in enumerate((90, 5, 0, 90))
    ]
    split = load_split(write_annotations(tmp_path, *boxes, categories=categories), "train")
    assert split.category_ids == (0, 5, 90)
    assert split.class_names == ("zero", "five", "z")
    assert split.records[0].labels.tolist() == [3, 2, 1, 3]
    assert split.records[0].labels.dtype == np.int64


def test_images_without_boxes_and_crowds_are_kept(tmp_path):
    crowd = annotation([1, 2, 3, 4], iscrowd=1, area=7.5)
    plain = annotation([2, 2, 4, 4], 2)
    images = [image(1), image(2, "b.png")]
    split = load_split(write_annotations(tmp_path, crowd, plain, images=images), "train")
    first, second = split.records
    assert first.is_crowd.tolist() == [True, False]
    assert first.areas.tolist() == [7.5, 16]  # as annotated, and the box's where it is missing
    assert first.boxes_xyxy.tolist() == [[1, 2, 4, 6], [2, 2, 6, 6]]
    assert second.boxes_xyxy.shape == (0, 4)
    assert (second.boxes_xyxy.dtype, second.labels.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("area", [None, "12", -1, 0, NAN, INF, 1e300, 10**400, True, [4]])
def test_an_impossible_area_is_replaced_by_the_area_of_the_box(tmp_path, area):
    assert only_record(write_annotations(tmp_path, annotation([1, 1, 4, 5], area=area))).areas == 20


@pytest.mark.parametrize(
    ("bbox", "expected", "warned"),
    [
        ([0, 0, 40, 30], [0, 0, 40, 30], False),
        ([-0.5, -0.5, 10, 10], [0, 0, 9.5, 9.5], False),  # rounding of some annotation tools
        ([-5, 3, 10, 10], [0, 3, 5, 13], True),
        ([35, 25, 10, 10], [35, 25, 40, 30], True),
        ([20, 10, 38, 28], [20, 10, 40, 30], True),  # x1, y1, x2, y2 in place of w, h
        ([0, 0, 1e308, 1e308], [0, 0, 40, 30], True),
        ([1e308, 0, 1e308, 5], None, True),
        ([5, 5, 0, 5], None, True),
        ([5, 5, 5, -3], None, True),
        ([50, 5, 5, 5], None, True),
        ([-9, 5, 9, 5], None, True),
        ([30, 5, 1e-9, 5], None, True),  # x2 > x1 in float64, equal in float32
        ([-9.95, 5, 10, 5], None, True),  # 0.05 px of it are inside
    ],
)
@pytest.mark.fault("P1-25", "P1-26", "P1-29", "P1-30")
def test_boxes_are_clipped_to_the_image_or_left_out(tmp_path, bbox, expected, warned):
    folder = write_annotations(tmp_path, annotation(bbox, 41))
    boxes = only_record(folder).boxes_xyxy
    assert boxes.tolist() == ([] if expected is None else [expected])
    found = problems_of(folder)
    assert [(p.severity, p.annotation_id) for p in found] == [("warning", 41)] * bool(warned)


def test_every_box_that_is_kept_survives_resize_and_flip_in_float32(tmp_path):
    thin = annotation([39_000.013, 7, 1.01 * MIN_BOX_SIDE, 5])
    folder = write_annotations(tmp_path, thin, images=[image(width=40_000)])
    x1, _, x2, _ = only_record(folder).boxes_xyxy[0]
    scale = np.float32(0.01)
    assert x2 * scale > x1 * scale
    assert np.float32(40_000) - x1 > np.float32(40_000) - x2


@pytest.mark.fault("P1-19")
def test_two_categories_of_one_name_stay_apart(tmp_path):
    categories = [{"id": number, "name": "car"} for number in (1, 2)]
    folder = write_annotations(tmp_path, categories=categories)
    assert load_split(folder, "train").class_names == ("car", "car (2)")
    assert ("category name", "warning") in {(p.kind, p.severity) for p in problems_of(folder)}


def test_an_annotation_id_of_zero_and_missing_ids_are_fine(tmp_path):
    without_id = annotation([1, 1, 5, 5])
    del without_id["id"]
    folder = write_annotations(tmp_path, annotation([0, 0, 5, 5], 0), without_id, without_id)
    assert len(only_record(folder).labels) == 3
    assert problems_of(folder) == []


def test_whole_floats_are_whole_numbers(tmp_path):
    """As a table with gaps writes a column of numbers."""
    boxes = [annotation([1, 1, 5, 5], 7.0, 2.0, iscrowd=1.0), annotation([9, 9, 5, 5], 7, 2)]
    boxes = [{**box, "category_id": 3.0} for box in boxes]
    listed = {**image(2), "id": 2.0, "width": 40.0, "height": 30.0}
    categories = [{"id": 3.0, "name": "disc"}]
    folder = write_annotations(tmp_path, *boxes, images=[listed], categories=categories)
    (problem,) = problems_of(folder)
    assert (problem.kind, problem.annotation_id) == ("duplicate annotation id", 7)
    split = load_split(folder, "train")
    record = split.records[0]
    numbers = (record.image_id, record.width, record.height, *split.category_ids)
    assert numbers == (2, 40, 30, 3)
    assert {type(number) for number in numbers} == {int}
    assert record.is_crowd.tolist() == [True, False]


def test_names_with_spaces_unicode_and_signs_are_read(tmp_path):
    names = ["ein Bild.png", "图像.png", "100%.png", "-x.png", "sub/dir/a.png", ".hidden"]
    images = [image(number, name) for number, name in enumerate(names)]
    (tmp_path / "images").mkdir()
    split = load_split(write_annotations(tmp_path, images=images), "train")
    root = (tmp_path / "images").resolve()
    assert [record.path.relative_to(root).as_posix() for record in split.records] == names


# --- what is refused --------------------------------------------------------------------------

WRONG_BOXES = [
    None, "1,2,3,4", [], [1, 2, 3], [1, 2, 3, 4, 5], ["1", "2", "3", "4"], [1, 2, None, 4],
    [NAN, 0, 5, 5], [0, 0, INF, 5], [-INF, 0, 5, 5], [True, 0, 5, 5], {"x": 1}, [[1, 2, 3, 4]],
    [10**400, 0, 5, 5],
]  # fmt: skip


@pytest.mark.parametrize("bbox", WRONG_BOXES, ids=repr)
def test_a_box_that_is_not_four_finite_numbers_is_an_error(tmp_path, bbox):
    folder = write_annotations(tmp_path, annotation([0, 0, 5, 5], 1), annotation(bbox, 17))
    (problem,) = problems_of(folder)
    assert problem.kind in ("unreadable box", "box not finite")
    assert problem.severity == "error"
    assert (problem.image, problem.annotation_id) == ("a.png", 17)
    with pytest.raises(UserError, match=r"instances_train.json: annotation 17: bbox .*check_data"):
        load_split(folder, "train")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd", "a/../../b.png", "/etc/passwd", "C:\\a.png", "C:a.png", "\\\\host\\a",
        "..\\a.png", "a\0.png", "", "\ud800.png", None, 5, ["a.png"],
    ],
    ids=repr,
)  # fmt: skip
def test_a_file_name_that_is_no_path_inside_the_data_is_an_error(tmp_path, name):
    folder = write_annotations(tmp_path, images=[image(file_name=name)])
    assert ("path", "error") in {(p.kind, p.severity) for p in problems_of(folder)}


def test_a_link_out_of_the_image_folder_is_an_error(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    folder = write_annotations(tmp_path / "data")
    (folder / "images").mkdir()
    (folder / "images" / "a.png").symlink_to(tmp_path / "secret.png")
    assert ("path", "error") in {(p.kind, p.severity) for p in problems_of(folder)}


def test_a_linked_image_folder_and_a_looping_link_are_no_crash(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"")
    folder = write_annotations(tmp_path / "data", images=[image(1), image(2, "loop.png")])
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop.png").symlink_to("loop.png")
    first, _ = load_split(folder, "train").records
    assert first.path == (tmp_path / "elsewhere" / "a.png").resolve()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"images": [image(), image()]}, "duplicate image id"),
        ({"images": [image(image_id="1")]}, "image entry"),
        ({"images": [image(image_id=True)]}, "image entry"),
        ({"images": [image(width=0)]}, "image entry"),
        ({"images": [image(width=-40)]}, "image entry"),
        ({"images": [image(width=40.5)]}, "image entry"),
        ({"images": [image(image_id=1e300)]}, "image entry"),  # whole, but not exact
        ({"images": [image(image_id=1.5)]}, "image entry"),
        ({"images": [image(height=None)]}, "image entry"),
        ({"images": [image(height=10**400)]}, "image entry"),
        ({"images": []}, "structure"),
        ({"images": ["a.png"]}, "structure"),
        ({"categories": []}, "category"),
        ({"categories": [{"id": 1}]}, "category"),
        ({"categories": [{"id": "1", "name": "a"}]}, "category"),
        ({"categories": [*CATEGORIES, {"id": 3, "name": "again"}]}, "category"),
    ],
    ids=repr,
)
def test_wrong_images_and_categories_are_errors(tmp_path, change, kind):
    folder = write_annotations(tmp_path, **change)
    assert (kind, "error") in {(p.kind, p.severity) for p in problems_of(folder)}
    with pytest.raises(UserError):
        load_split(folder, "train")


@pytest.mark.parametrize(
    "change",
    [{"image_id": 99}, {"image_id": None}, {"image_id": [1]}, {"image_id": {}}, {"image_id": True}]
    + [{"category_id": value} for value in (99, 0, -1, None, "3", [3], {}, True)],
    ids=repr,
)
def test_annotations_of_unknown_images_or_categories_are_errors(tmp_path, change):
    folder = write_annotations(tmp_path, {**annotation([0, 0, 5, 5], 8), **change})
    (problem,) = problems_of(folder)
    assert problem.kind == f"unknown {next(iter(change)).removesuffix('_id')}"
    assert (problem.severity, problem.annotation_id) == ("error", 8)
    assert ("(text, no number)" in problem.message) == ("3" in change.values())


def test_repeated_annotation_ids_and_shared_files_are_warnings(tmp_path):
    boxes = [annotation([0, 0, 5, 5], 4), annotation([9, 9, 5, 5], 4)]
    folder = write_annotations(tmp_path, *boxes, images=[image(1), image(2)])
    assert [(p.kind, p.severity) for p in problems_of(folder)] == [
        ("image listed twice", "warning"),
        ("duplicate annotation id", "warning"),
    ]
    assert len(load_split(folder, "train").records[0].labels) == 2


def test_no_annotation_at_all_is_a_warning(tmp_path):
    (problem,) = problems_of(write_annotations(tmp_path))
    assert (problem.kind, problem.severity) == ("no annotations", "warning")


def test_the_error_counts_the_others(tmp_path):
    boxes = [annotation(None, number) for number in range(4)]
    with pytest.raises(UserError, match=r"annotation 0: .*\(and 3 more\)"):
        load_split(write_annotations(tmp_path, *boxes), "train")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}, "x"])
def test_each_missing_list_is_named(tmp_path, key, value):
    path = write_annotations(tmp_path) / "annotations" / "instances_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    split, (problem,) = parse_split(tmp_path, "train")
    assert split is None
    assert f'"{key}"' in problem.message


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"7", b"{", b"\x00\x01\x02", '{"a": "é"}'.encode("latin-1"),
        '{"images": []}'.encode("utf-16"), b"[" * 100_000, b'{"images":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "list", "number", "cut", "binary", "latin-1", "utf-16", "deep list",
         "deep object", "long number"],
)  # fmt: skip
def test_a_file_that_is_no_json_object_is_one_line_naming_it(tmp_path, content):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_split(tmp_path, "train")
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = write_annotations(tmp_path) / "annotations" / "instances_train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_split(tmp_path, "train").records) == 1


def test_a_folder_in_place_of_the_file_is_one_line(tmp_path):
    (tmp_path / "annotations" / "instances_train.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"instances_train\.json"):
        load_split(tmp_path, "train")


# --- finding the files ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        ("annotations/instances_train2017.json", "train2017/a.png"),
        ("annotations/instances_train2017.json", "images/train2017/a.png"),
        ("annotations/instances_train.json", "images/a.png"),
        ("annotations/train.json", "images/train/a.png"),
        ("train/_annotations.coco.json", "train/a.png"),  # Roboflow
        ("train.json", "a.png"),
    ],
)
def test_the_usual_layouts_are_understood(tmp_path, layout):
    source = write_annotations(tmp_path / "source")
    annotation_file, image_file = (tmp_path / "data" / name for name in layout)
    for path in (annotation_file, image_file):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    annotation_file.write_bytes((source / "annotations" / "instances_train.json").read_bytes())
    split = load_split(tmp_path / "data", "train")
    assert split.annotation_file == annotation_file
    assert split.records[0].path == image_file.resolve()


def test_the_image_folder_is_found_when_the_first_image_is_missing(tmp_path):
    folder = write_annotations(tmp_path, images=[image(1, "lost.png"), image(2, "b.png")])
    (folder / "images").mkdir()
    (folder / "train").mkdir()
    (folder / "train" / "b.png").write_bytes(b"")
    assert load_split(folder, "train").records[1].path == (folder / "train" / "b.png").resolve()


def test_a_very_long_file_name_is_no_crash(tmp_path):
    folder = write_annotations(tmp_path, images=[image(file_name="x" * 5000)])
    assert len(load_split(folder, "train").records) == 1


def test_roboflow_calls_validation_valid(tmp_path):
    path = tmp_path / "valid" / "_annotations.coco.json"
    path.parent.mkdir()
    path.write_text("{}")
    assert find_annotations(tmp_path, "val") == path


def test_several_files_of_a_split_are_not_guessed_between(tmp_path):
    for split in ("train2014", "train2017"):
        write_annotations(tmp_path, split=split)
    with pytest.raises(UserError, match=r"instances_train2014.json, instances_train2017.json"):
        find_annotations(tmp_path, "train")


def test_a_missing_folder_and_a_missing_split_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no such folder – give the folder"):
        find_annotations(tmp_path / "none", "train")
    with pytest.raises(MissingSplitError, match=r"no val .*instances_val.json"):
        find_annotations(tmp_path, "val")
