"""Faulty data, each case in a training of its own process: a crash there is a failure here.

The tables of faults are those of tests/phase1_training/test_check_data_faults.py, where it is
tested what the data check says of each.
"""

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common import artifacts
from common.coco_format import parse_split
from tests.child_processes import obey_permissions, run_ranks
from tests.faults.trainings import assert_refused
from tests.phase1_training import test_check_data_faults as tables
from tests.training_runs import checksums

NUMBERED = "P1-"


@pytest.fixture
def refuses(train, older_run):
    """A training that is to replace an older run ends in one line and leaves that as it was."""

    def expect(data: Path, says: str) -> None:
        before = checksums(older_run)
        assert_refused(*train(data, older_run, "--epochs", 1, "--overwrite"), says)
        assert checksums(older_run) == before

    return expect


def changed(folder: Path, change: tables.Change) -> Path:
    """Good data but for a change of the content of its train annotations."""
    path = tables.write_good(folder)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    val = path.with_name("instances_val.json")
    known = {"categories": content.get("categories", tables.GOOD["categories"])}
    val.write_text(json.dumps({**json.loads(val.read_text()), **known}), encoding="utf-8")
    return folder


# --- refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"), [row[1:] for row in tables.FILES], ids=[row[0] for row in tables.FILES]
)
def test_what_is_no_annotation_file_ends_a_training(tmp_path, refuses, damage, said):
    damage(tables.write_good(tmp_path / "data"))
    refuses(tmp_path / "data", said)


ERRORS = [row for row in tables.CONTENTS if row[3] == "error" and row[0].startswith(NUMBERED)]
ERRORS += [("P1-11-literal", tables.of_box(area=float("-inf"), bbox=[1, 2, float("inf"), 3]),
            "box not finite", "error", 1, "")]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "annotation_id"), [(r[1], r[4]) for r in ERRORS], ids=[r[0] for r in ERRORS]
)
def test_wrong_annotations_end_a_training(tmp_path, refuses, change, annotation_id):
    where = "" if annotation_id is None else f"annotation {annotation_id}: "
    refuses(changed(tmp_path / "data", change), f"instances_train.json: {where}")


def test_p1_34_a_link_out_of_the_images_ends_a_training(tmp_path, refuses):
    data = tmp_path / "data"
    tables.write_good(data)
    picture = data / "images" / "a.png"
    picture.rename(tmp_path / "secret.png")
    picture.symlink_to(tmp_path / "secret.png")
    refuses(data, "instances_train.json: file_name 'a.png' leaves the image folder")


BAD_IMAGES = [r for r in tables.IMAGES if r[3] == "error" and r[0].startswith(NUMBERED)]


@pytest.mark.parametrize("damage", [r[1] for r in BAD_IMAGES], ids=[r[0] for r in BAD_IMAGES])
def test_an_image_that_is_none_ends_a_training(tmp_path, refuses, damage):
    tables.write_good(tmp_path / "data")
    damage(tmp_path / "data" / "images" / "a.png")
    refuses(tmp_path / "data", "a.png: ")


def test_p1_47_an_image_without_permission_ends_a_training(tmp_path, train):
    tables.write_good(tmp_path / "data")
    (tmp_path / "data" / "images" / "a.png").chmod(0)
    words = (tmp_path / "data", tmp_path / "run", "--epochs", 1)
    status, printed = train(*words, change=obey_permissions)
    assert_refused(status, printed, "a.png: cannot be read (Permission denied)")
    assert checksums(tmp_path / "run") == {}


# --- trained on -------------------------------------------------------------------------------


def assert_trained(train, data: Path, output: Path) -> str:
    """A whole training on finite numbers; returns what was printed."""
    status, printed = train(data, output, "--epochs", 1)
    assert status == 0, printed
    report = artifacts.read_json(output / "training.json")
    assert report["complete"]
    assert np.isfinite(report["epochs"][0]["train_loss"])
    assert report["epochs"][0]["skipped_steps"] == 0
    return printed


ACCEPTED = [row for row in tables.CONTENTS if row[3] != "error" and row[0].startswith(NUMBERED)]


@pytest.mark.parametrize(
    ("change", "kind", "severity"), [r[1:4] for r in ACCEPTED], ids=[r[0] for r in ACCEPTED]
)
def test_imperfect_annotations_are_trained_on(tmp_path, train, change, kind, severity):
    data = changed(tmp_path / "data", change)
    printed = assert_trained(train, data, tmp_path / "run")
    if severity == "warning":
        assert f"warning: {kind} (train)" in printed or kind in printed


def test_p1_08_annotations_with_a_byte_order_mark_are_trained_on(tmp_path, train):
    path = tables.write_good(tmp_path / "data")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_trained(train, tmp_path / "data", tmp_path / "run")


def pictures(folder: Path, entries: list[tuple[str, Image.Image, str, dict]]) -> Path:
    """Data of these training images (name, picture, format, what save() takes), a box in each."""
    path = tables.write_good(folder)
    content = json.loads(path.read_text(encoding="utf-8"))
    images, boxes = [], []
    for number, (name, picture, kind, more) in enumerate(entries, 1):
        picture.save(folder / "images" / name, kind, **more)
        width, height = picture.size if not more else picture.size[::-1]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        box = {**content["annotations"][0], "id": number, "image_id": number}
        boxes.append({**box, "bbox": [0, 0, width, height], "area": width * height})
    path.write_text(json.dumps({**content, "images": images, "annotations": boxes}))
    return folder


def test_p1_35_files_of_any_name_are_trained_on(tmp_path, train):
    names = ["with space.png", "图像é.png", "100%d.png", "-x.png"]
    entries: list[Any] = [(name, tables.noise(9 + n), "PNG", {}) for n, name in enumerate(names)]
    assert_trained(train, pictures(tmp_path / "data", entries), tmp_path / "run")


def test_p1_42_p1_43_p1_44_pictures_of_every_kind_are_trained_on(tmp_path, train):
    """All under the name of a JPEG; the last one is stored lying on its side."""
    grey = tables.noise(20).convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    entries: list[Any] = [
        (f"{mode}.jpg", tables.noise(9 + n).convert(mode), "TIFF" if mode == "CMYK" else "PNG", {})
        for n, mode in enumerate(("L", "LA", "P", "RGBA", "CMYK"))
    ]
    entries += [("deep.jpg", deep, "PNG", {})]
    entries += [("turned.jpg", tables.noise(30), "PNG", {"exif": tables.turned(6)})]
    assert_trained(train, pictures(tmp_path / "data", entries), tmp_path / "run")


def test_p1_46_pictures_of_extreme_shape_are_trained_on(tmp_path, train):
    entries: list[Any] = [
        (f"{width}x{height}.png", tables.noise(width, height, width), "PNG", {})
        for width, height in ((1, 1), (1, 4000), (4000, 1))
    ]
    assert_trained(train, pictures(tmp_path / "data", entries), tmp_path / "run")


# --- large ------------------------------------------------------------------------------------

SIZE_MB = 200


def write_large(path: Path, size_mb: int) -> int:
    """Annotations with long outlines, as COCO's own; returns how many boxes."""
    outline = ", ".join(str(round(0.37 * number, 2)) for number in range(400))
    head = json.dumps({**tables.GOOD, "annotations": []}).replace('"annotations": []', "%s")
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        before, after = head.split("%s")
        file.write(f'{before}"annotations": [')
        while file.tell() < size_mb * 1_000_000:
            count += 1
            box = f'"image_id": 1, "category_id": 3, "bbox": [{count % 30}.5, 1, 9, 9]'
            comma = "," if count > 1 else ""
            file.write(f'{comma}{{"id": {count}, {box}, "segmentation": [[{outline}]]}}')
        file.write(f"]{after}")
    return count


def parse_and_measure(folder: Path) -> tuple[int, float, float]:
    """Boxes read, MB the process grew by at its peak, seconds of the processor."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    split, problems = parse_split(folder, "train")
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert split is not None
    assert problems == []
    grown_mb = (after.ru_maxrss - before.ru_maxrss) * 1024 / 1e6
    return len(split.records[0].labels), grown_mb, after.ru_utime - before.ru_utime


@pytest.mark.slow
def test_p1_36_a_file_of_200_mb_is_read_in_bounded_memory_and_time(tmp_path):
    path = tables.write_good(tmp_path)
    count = write_large(path, SIZE_MB)
    ((boxes, grown_mb, seconds),) = run_ranks(parse_and_measure, 1, tmp_path)
    assert boxes == count
    assert grown_mb < 12 * SIZE_MB
    assert seconds < 60


def test_a_segmentation_fault_would_be_noticed(tmp_path, train):
    """What the other tests rely on."""
    tables.write_good(tmp_path / "data")
    status, _ = train(tmp_path / "data", tmp_path / "run", change=crash)
    assert status == -signal.SIGSEGV


def crash(_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
