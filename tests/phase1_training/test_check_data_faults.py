"""Every known way of a data set to be wrong, one row each: what is said of it, and what follows.

A row's id is the number of the case. Rows with an error must stop `examine`, which a training
calls first; the others must not.
"""

import json
import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common import coco
from common.cli import UserError
from common.coco_format import parse_split
from phase1_training import data_doctor
from tests.coco_data import annotation, image

SETTINGS = {"architecture": "demo", "min_size": 240, "max_size": 512, "workers": 0, "cache": None}
GOOD = {
    "images": [image(1, "a.png"), image(2, "b.png")],
    "annotations": [
        {**annotation([4, 5, 20, 18], 1), "iscrowd": 0, "area": 360},
        {**annotation([9, 2, 22, 16], 2, 2), "iscrowd": 0, "area": 352, "category_id": 7},
    ],
    "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "box"}],
}


def noise(seed: int, height: int = 30, width: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def write_good(folder: Path) -> Path:
    """Two images each in train and val; returns the train annotations."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for seed, name in enumerate(("a", "b", "c", "d")):
        noise(seed).save(folder / "images" / f"{name}.png")
    val = {**GOOD, "images": [image(1, "c.png"), image(2, "d.png")]}
    for split, content in (("train", GOOD), ("val", val)):
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder / "annotations" / "instances_train.json"


def examine(folder: Path) -> dict[str, Any]:
    return data_doctor.examine(folder, **SETTINGS)


def inspect(folder: Path) -> dict[str, Any]:
    return data_doctor.inspect(folder, **SETTINGS)


def test_good_data_has_no_finding_but_its_ids(tmp_path):
    write_good(tmp_path)
    found = examine(tmp_path)["problems"]
    assert {(problem["kind"], problem["severity"]) for problem in found} == {
        ("category ids", "note")
    }


# --- files that are no annotations ------------------------------------------------------------


def replaced_by(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


TEXT = json.dumps(GOOD)
FILES = [
    ("P1-01", Path.unlink, "no train annotations"),
    ("P1-02", folder_in_place, "not a regular file"),
    ("P1-03", replaced_by(b""), "not valid JSON"),
    ("P1-04", replaced_by(TEXT.encode()[:-40]), "not valid JSON"),
    ("P1-05", replaced_by(bytes(range(256))), "not UTF-8 at byte 128"),
    ("P1-06", replaced_by(TEXT.replace("disc", "disqué").encode("latin-1")), "not UTF-8 at byte"),
    ("P1-07", replaced_by(TEXT.encode("utf-16")), "not UTF-8 at byte 0"),
    ("P1-09", replaced_by(b"[]"), "does not hold a JSON object"),
    ("P1-10", replaced_by(b'{"images":' * 100_000), "not readable as JSON"),
]


@pytest.mark.parametrize(("damage", "said"), [row[1:] for row in FILES], ids=[r[0] for r in FILES])
def test_a_file_that_is_no_annotation_file_is_one_line(tmp_path, damage, said):
    damage(write_good(tmp_path))
    for check in (examine, inspect):
        with pytest.raises(UserError, match=said) as raised:
            check(tmp_path)
        assert "\n" not in str(raised.value)


# --- contents ---------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]


def of_box(**values: Any) -> Change:
    """Changes the first annotation; None leaves a key out."""

    def change(content: dict[str, Any]) -> None:
        entry = {**content["annotations"][0], **values}
        content["annotations"][0] = {k: v for k, v in entry.items() if v is not ...}

    return change


def of_image(**values: Any) -> Change:
    return lambda content: content["images"][0].update(values)


def without(key: str) -> Change:
    return lambda content: content.pop(key)


def setting(**values: Any) -> Change:
    return lambda content: content.update(values)


def added(key: str, entry: dict[str, Any]) -> Change:
    return lambda content: content[key].append(entry)


def corners(content: dict[str, Any]) -> None:
    boxes = [[x, y, x + 12, y + 9] for x in range(2, 26, 5) for y in range(3, 20, 5)]
    content["annotations"] = [
        {**annotation(box, number), "iscrowd": 0, "area": 108}
        for number, box in enumerate(boxes, 1)
    ]


E, W, N = "error", "warning", "note"
# case, change, kind, severity, annotation id, what its message says
CONTENTS: list[tuple[str, Change, str, str, int | None, str]] = [
    ("P1-11-nan", of_box(bbox=[math.nan, 1, 5, 5]), "box not finite", E, 1, "loss into NaN"),
    ("P1-11-width", of_image(width=math.nan), "image entry", E, None, "width and height"),
    ("P1-12-images", without("images"), "structure", E, None, '"images" is missing'),
    ("P1-12-annotations", without("annotations"), "structure", E, None, '"annotations" is missing'),
    ("P1-12-categories", without("categories"), "structure", E, None, '"categories" is missing'),
    ("P1-13", setting(images=[]), "structure", E, None, "the data set is empty"),
    ("P1-14", setting(annotations=[]), "no annotations", W, None, "only background"),
    ("P1-15", lambda c: c["annotations"].pop(0), "image without boxes", N, None, "1 images"),
    ("P1-16", added("images", image(1, "b.png")), "duplicate image id", E, None, "either picture"),
    ("P1-17", of_box(id=2), "duplicate annotation id", W, 2, "keep one of the boxes"),
    ("P1-18", of_box(id=0), "annotation id 0", W, 0, "lower the AP"),
    ("P1-19-id", added("categories", {"id": 3, "name": "x"}), "category", E, None, "appears twice"),
    ("P1-19-name", added("categories", {"id": 9, "name": "box"}), "category name", W, None, "(9)"),
    ("P1-20", of_box(image_id=99), "unknown image", E, 1, "would be left out"),
    ("P1-21", of_box(category_id=99), "unknown category", E, 1, "would crash the training"),
    ("P1-22", lambda c: None, "category ids", N, None, "(3, 7, …) become the labels 1 to 2"),
    ("P1-22-zero", of_box(category_id=0), "unknown category", E, 1, "not among the categories"),
    ("P1-24-null", of_box(bbox=None), "unreadable box", E, 1, "would crash the training"),
    ("P1-24-missing", of_box(bbox=...), "unreadable box", E, 1, "bbox None"),
    ("P1-24-three", of_box(bbox=[1, 2, 3]), "unreadable box", E, 1, "four finite numbers"),
    ("P1-24-text", of_box(bbox=["1", "2", "3", "4"]), "unreadable box", E, 1, "four finite"),
    ("P1-25", of_box(bbox=[5, 5, -3, 4]), "box without area", W, 1, "teaches background"),
    ("P1-26", of_box(bbox=[5, 5, 0, 4]), "box without area", W, 1, "left out"),
    ("P1-27", of_box(bbox=[1, 1, math.nan, 5]), "box not finite", E, 1, "loss into NaN"),
    ("P1-28", of_box(bbox=[1, 1, math.inf, 5]), "box not finite", E, 1, "with SIGSEGV"),
    ("P1-28-digits", of_box(bbox=[10**400, 1, 5, 5]), "box not finite", E, 1, "with SIGSEGV"),
    ("P1-29", of_box(bbox=[50, 5, 9, 9]), "box outside", W, 1, "teaches background"),
    ("P1-30", of_box(bbox=[25, 15, 20, 20]), "box partly outside", W, 1, "clipped"),
    ("P1-31", of_image(width=41), "image size", E, None, "is 40x30, the annotations say 41x30"),
    ("P1-32", of_box(iscrowd=1), "crowd", N, None, "1 crowd regions: not trained on"),
    ("P1-33-iscrowd", of_box(iscrowd=...), "no iscrowd", N, None, "1 annotations have no iscrowd"),
    ("P1-33-area", of_box(area=...), "no area", N, None, "taken from the box"),
    ("P1-33-id", of_box(id=...), "no id", N, None, "numbered"),
    ("P1-34-up", of_image(file_name="../../etc/passwd"), "path", E, None, "another file"),
    ("P1-34-absolute", of_image(file_name="/etc/passwd"), "path", E, None, "another file"),
    ("P1-34-drive", of_image(file_name="C:\\a.png"), "path", E, None, "not a path inside"),
    ("P1-34-nul", of_image(file_name="a\0.png"), "path", E, None, "not a path inside"),
    ("P1-37", of_image(file_name="none.png"), "unreadable image", E, None, "no such image"),
    ("xyxy", corners, "boxes as x1,y1,x2,y2", E, None, "--fix converts"),
    ("repeated", lambda c: c["annotations"].append({**c["annotations"][0], "id": 3}),
     "repeated box", W, 3, "counts twice"),
    ("unused", added("categories", {"id": 8, "name": "bird"}), "unused class", N, None, "'bird'"),
    ("tiny", of_box(bbox=[5, 5, 0.9, 20]), "tiny box", W, 1, "below the stride of 8 px"),
    ("no-anchor", of_box(bbox=[0, 0, 40, 1.5]), "no anchor", W, 1, "low-quality matching"),
    ("recall", of_box(bbox=[0, 0, 40, 1.5]), "anchor recall", W, None, "50.0% of the boxes"),
    ("listed-twice", added("images", image(3, "a.png")), "image listed twice", W, None, "each"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kind", "severity", "annotation_id", "said"),
    [row[1:] for row in CONTENTS],
    ids=[row[0] for row in CONTENTS],
)
def test_what_is_wrong_with_the_annotations(tmp_path, change, kind, severity, annotation_id, said):
    path = write_good(tmp_path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    val = path.with_name("instances_val.json")
    categories = content.get("categories", GOOD["categories"])
    val.write_text(json.dumps({**json.loads(val.read_text()), "categories": categories}))
    found = [p for p in inspect(tmp_path)["problems"] if p["kind"] == kind]
    assert [(p["severity"], p["split"]) for p in found[:1]] == [(severity, "train")]
    assert found[0]["annotation_id"] == annotation_id
    assert said in found[0]["message"]
    if severity == "error":
        with pytest.raises(UserError, match=r"instances_train\.json: .*list all with: python"):
            examine(tmp_path)
    else:
        examine(tmp_path)


def test_p1_08_a_byte_order_mark_is_accepted(tmp_path):
    path = write_good(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    examine(tmp_path)


def test_p1_34_a_link_out_of_the_images_is_refused(tmp_path):
    folder = tmp_path / "data"
    write_good(folder)
    (folder / "images" / "a.png").rename(tmp_path / "secret.png")
    (folder / "images" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"a\.png: .*leaves the image folder"):
        examine(folder)


@pytest.mark.parametrize("name", ["with space.png", "图像é.png", "100%d.png", "-x.png", "x/y.png"])
def test_p1_35_any_other_name_works(tmp_path, name):
    path = write_good(tmp_path)
    path.write_text(path.read_text().replace("a.png", json.dumps(name)[1:-1]))
    (tmp_path / "images" / "x").mkdir()
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / name)
    assert data_doctor.summary_lines(examine(tmp_path)) == []


def test_p1_36_a_large_file_takes_memory_in_proportion_to_it(tmp_path):
    """Outlines are most of a large file, as in COCO's own."""
    path = write_good(tmp_path)
    outline = [[round(0.37 * number, 2) for number in range(60)]]
    box = {**GOOD["annotations"][0], "segmentation": outline}
    boxes = [{**box, "id": number, "bbox": [number / 999, 1, 9, 9]} for number in range(1, 5000)]
    path.write_text(json.dumps({**GOOD, "annotations": boxes}))
    tracemalloc.start()
    split, problems = parse_split(tmp_path, "train")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert problems == []
    assert len(split.records[0].labels) == 4999
    assert peak < 12 * path.stat().st_size


# --- images -----------------------------------------------------------------------------------


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def cut(path: Path) -> None:
    """A JPEG that ends in its middle, whatever its name."""
    noise(0).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rotten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


IMAGES: list[tuple[str, Callable[[Path], Any], str, str, str]] = [
    ("P1-38", lambda path: path.write_bytes(b""), "unreadable image", E, "cannot be decoded"),
    ("P1-39", lambda path: path.write_text("hello"), "unreadable image", E, "cannot be decoded"),
    ("P1-40", cut, "unreadable image", E, "cannot be decoded"),
    ("P1-41", rotten, "unreadable image", E, "cannot be decoded"),
    ("P1-44-stored", lambda path: noise(0).save(path, exif=turned(6)), "EXIF rotation", W,
     "annotated as stored"),
    ("P1-44-mirror", lambda path: noise(0).save(path, exif=turned(2)), "EXIF rotation", W,
     "look whether its boxes fit"),
    ("P1-45", bomb, "unreadable image", E, "decompression bomb"),
    ("P1-47-folder", folder_in_place, "unreadable image", E, "no such image"),
    ("P1-47-pipe", pipe, "unreadable image", E, "no such image"),
    ("leakage", lambda path: noise(2).save(path), "leakage", W, "same picture as a.png in train"),
    ("leakage-encoding", lambda path: noise(2).save(path, "BMP"), "leakage", W, "a.png in train"),
    ("duplicate", lambda path: noise(1).save(path), "duplicate image", W, "same picture as a.png"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "kind", "severity", "said"), [r[1:] for r in IMAGES], ids=[r[0] for r in IMAGES]
)
def test_what_is_wrong_with_an_image(tmp_path, damage, kind, severity, said):
    write_good(tmp_path)
    damage(tmp_path / "images" / "a.png")
    found = [p for p in inspect(tmp_path)["problems"] if p["severity"] != "note"]
    assert [(p["kind"], p["severity"]) for p in found] == [(kind, severity)]
    assert found[0]["image"] == {"leakage": "c.png", "duplicate image": "b.png"}.get(kind, "a.png")
    assert said in found[0]["message"]
    if severity == "error":
        with pytest.raises(UserError, match=r"instances_train\.json: a\.png: .*list all with"):
            examine(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_p1_47_permission_denied(tmp_path):
    write_good(tmp_path)
    (tmp_path / "images" / "a.png").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        examine(tmp_path)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_p1_42_p1_43_every_kind_of_picture_under_any_name_works(tmp_path, mode):
    write_good(tmp_path)
    grey = noise(0).convert("L")
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else None
    picture = picture or (grey if mode[0] == "L" else noise(0)).convert(mode)
    (tmp_path / "images" / "a.png").unlink()
    picture.save(tmp_path / "images" / "a.png", "TIFF" if mode == "CMYK" else "PNG")
    path = tmp_path / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace("a.png", "a.jpg"))
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "a.jpg")
    assert data_doctor.summary_lines(examine(tmp_path)) == []


def test_p1_44_boxes_and_pixels_of_a_turned_picture_agree(tmp_path):
    """Annotated upright, 30x40: the pixels are turned; the finding of P1-44-stored is absent."""
    path = write_good(tmp_path)
    noise(0).save(tmp_path / "images" / "a.png", exif=turned(6))
    content = json.loads(path.read_text())
    content["images"][0].update(width=30, height=40)
    path.write_text(json.dumps(content))
    assert data_doctor.summary_lines(examine(tmp_path)) == []
    record = coco.load_split(tmp_path, "train").records[0]
    pixels = coco.read_image(record.path, (record.width, record.height))
    assert np.array_equal(pixels, np.rot90(np.asarray(noise(0)), -1))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 4000), (4000, 1)])
def test_p1_46_images_of_extreme_shape_are_handled(tmp_path, width, height):
    path = write_good(tmp_path)
    noise(0, height, width).save(tmp_path / "images" / "a.png")
    content = json.loads(path.read_text())
    content["images"][0].update(width=width, height=height)
    content["annotations"][0]["bbox"] = [0, 0, width, height]
    path.write_text(json.dumps(content))
    kinds = {p["kind"] for p in examine(tmp_path)["problems"]}
    assert ("image of extreme shape" in kinds) == (width != height)


# --- what could take the interpreter with it --------------------------------------------------


@pytest.mark.parametrize("case", ["P1-10", "P1-28"])
def test_what_crashes_others_is_one_line_and_status_2(tmp_path, run_script, case):
    path = write_good(tmp_path / "data")
    if case == "P1-10":
        path.write_bytes(b"[" * 1_000_000)
    else:
        path.write_text(path.read_text().replace("[4, 5, 20, 18]", "[4, 5, Infinity, 18]"))
    words = ["--data-path", tmp_path / "data", "--architecture", "demo"]
    done = run_script("phase1_training/check_data.py", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
