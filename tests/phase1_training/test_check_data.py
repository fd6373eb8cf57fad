"""The data check: every planted fault is listed, nothing of the person's is changed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import artifacts, paths
from common.cli import UserError
from phase1_training import check_data
from tests.coco_data import CATEGORIES, annotation, image, write_annotations, write_shapes

REAL_DATA = paths.ROOT.parent / "shared" / "data"


def checksums(folder: Path) -> dict[str, str]:
    return {str(path): artifacts.sha256(path) for path in folder.rglob("*") if path.is_file()}


def picture(path: Path, seed: int, size=(30, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(path)


def found(report, kind, severity="error", split="train"):
    return [
        problem
        for problem in report["problems"]
        if (problem["kind"], problem["severity"], problem["split"]) == (kind, severity, split)
    ]


@pytest.fixture
def broken(tmp_path) -> Path:
    """One of each fault."""
    folder = tmp_path / "data"
    names = ["good", "again", "cut", "missing", "small", "turned"]
    images = [image(number, f"{name}.png") for number, name in enumerate(names, 1)]
    images += [image(7, "../../secret.png"), image(8, "sub/good.png"), image(1, "twice.png")]
    annotations = [
        annotation([1, 1, 20, 20], 1),
        annotation([float("nan"), 1, 20, 20], 2),
        annotation([1, 1, float("inf"), 20], 3),
        annotation([1, 1, 20], 4),
        annotation([1, 1, 20, 20], 5, image_id=99),
        annotation([1, 1, 20, 20], 6) | {"category_id": 4},
        annotation([50, 50, 20, 20], 7),
        annotation([10, 10, 38, 28], 8),
        annotation([1, 1, 0.5, 20], 9, image_id=5),
        annotation([1, 1, 20, 20], 1, image_id=2),
    ]
    write_annotations(folder, *annotations, images=images)
    for number, name in enumerate(["good", "small"]):
        picture(folder / "images" / f"{name}.png", number)
    shutil.copy(folder / "images" / "good.png", folder / "images" / "again.png")
    (folder / "images" / "sub").mkdir()
    shutil.copy(folder / "images" / "good.png", folder / "images" / "sub" / "good.png")
    whole = (folder / "images" / "small.png").read_bytes()
    (folder / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    picture(folder / "images" / "turned.png", 5, (40, 30))
    picture(tmp_path / "secret.png", 6)
    shutil.copy(folder / "images" / "small.png", folder / "images" / "val.png")
    val_image = image(1, "val.png")
    write_annotations(
        folder, images=[val_image], split="val", categories=[CATEGORIES[0], {"id": 9, "name": "x"}]
    )
    return folder


def test_every_planted_fault_is_listed_and_nothing_is_changed(broken, tmp_path, capsys):
    before = checksums(broken)
    command = ["--data-path", str(broken), "--output", str(tmp_path / "out")]
    assert check_data.main([*command, "--architecture", "demo"]) == 2
    assert checksums(broken) == before
    report = artifacts.read_json(tmp_path / "out" / "data_report.json")
    assert report["schema"] == "data_report/1"
    assert {p["annotation_id"] for p in found(report, "box")} == {2, 3, 4}
    assert {p["annotation_id"] for p in found(report, "annotation")} == {5, 6}
    assert {p["annotation_id"] for p in found(report, "box", "warning")} == {7, 8}
    assert [p["annotation_id"] for p in found(report, "annotation", "warning")] == [1]
    messages = {p["image"]: p["message"] for p in found(report, "image")}
    assert messages.keys() == {"cut.png", "missing.png", "turned.png", "twice.png"}
    assert "cannot be decoded" in messages["cut.png"]
    assert "no such image" in messages["missing.png"]
    assert "is 30x40, the annotations say 40x30" in messages["turned.png"]
    assert "appears twice" in messages["twice.png"]
    assert [p["image"] for p in found(report, "path")] == ["../../secret.png"]
    duplicates = [p["image"] for p in found(report, "duplicate image", "warning")]
    assert duplicates == ["again.png", "good.png"]  # also of the same name in another folder
    assert [p["image"] for p in found(report, "tiny box", "warning")] == ["small.png"]
    assert [p["image"] for p in found(report, "leakage", "warning", "val")] == ["val.png"]
    assert "differ" in found(report, "category", split="val")[0]["message"]
    assert found(report, "no annotations", "warning", "val")
    captured = capsys.readouterr()
    assert "error: box (train), 3 times" in captured.out
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    errors = [problem for problem in report["problems"] if problem["severity"] == "error"]
    assert f"{len(errors)} errors" in captured.err


def test_good_data_passes_and_is_counted(tmp_path, capsys):
    data = write_shapes(tmp_path / "data", splits={"train": 4, "val": 2})
    assert check_data.main(["--data-path", str(data), "--output", str(tmp_path / "out")]) == 0
    report = artifacts.read_json(tmp_path / "out" / "data_report.json")
    assert report["problems"] == []
    train = report["counts"]["train"]
    assert (train["images"], train["images_without_boxes"], train["boxes"]) == (4, 1, 3)
    assert sum(train["per_class"].values()) == 3
    assert report["counts"]["val"]["images"] == 2
    printed = capsys.readouterr().out
    assert "Nothing found that would stop a training." in printed
    assert f"Next:  python phase1_training/train.py --data-path {data}" in printed


def test_crowds_and_unused_classes_are_told(tmp_path, capsys):
    data = write_shapes(tmp_path / "data", splits={"train": 2})
    crowd = annotation([1, 1, 30, 30], 1, iscrowd=1)
    write_annotations(data, crowd, images=[image(1, "train_0.png", 64, 48)], split="train")
    write_annotations(data, images=[image(1, "train_1.png", 64, 48)], split="val")
    report = check_data.check(data, 256, 512)
    assert report["counts"]["train"]["crowd_boxes"] == 1
    assert check_data.main(["--data-path", str(data), "--output", str(tmp_path / "out")]) == 0
    assert "no box of: box" in capsys.readouterr().out


def test_without_val_images_will_be_held_out_unless_there_is_one_only(tmp_path):
    data = write_shapes(tmp_path / "two", splits={"train": 2})
    (problem,) = check_data.check(data, 256, 512)["problems"]
    assert (problem["severity"], problem["split"]) == ("warning", "val")
    data = write_shapes(tmp_path / "one", splits={"train": 1})
    severities = [p["severity"] for p in check_data.check(data, 256, 512)["problems"]]
    assert severities == ["warning", "error"]


def test_boxes_are_judged_after_the_resize(tmp_path):
    data = tmp_path / "data"
    write_annotations(data, annotation([0, 0, 40, 10]), images=[image(1, "a.png", 400, 300)])
    picture(data / "images" / "a.png", 0, (300, 400))
    kinds = [p["kind"] for p in check_data.check(data, 240, 1000)["problems"]]
    assert "tiny box" not in kinds  # 10 px become 8
    (problem,) = found(check_data.check(data, 239, 1000), "tiny box", "warning")
    assert problem["message"].startswith("1 boxes are narrower than 8 px")


def test_own_data_is_judged_by_the_resize_it_is_trained_with(tmp_path, capsys):
    data = tmp_path / "data"
    write_annotations(data, annotation([0, 0, 40, 8]), images=[image(1, "a.png", 400, 300)])
    write_annotations(
        data, annotation([0, 0, 40, 8]), images=[image(1, "b.png", 400, 300)], split="val"
    )
    for name in "ab":
        picture(data / "images" / f"{name}.png", ord(name), (300, 400))
    command = ["--data-path", str(data), "--output", str(tmp_path / "out")]
    assert check_data.main(command) == 0
    assert "tiny box" not in capsys.readouterr().out  # 21 px at a short side of 800
    assert check_data.main([*command, "--architecture", "demo"]) == 0
    assert "warning: tiny box (train), 1 times" in capsys.readouterr().out  # 7.7 px at 288


def test_a_kind_lists_the_messages_of_its_own_severity(broken, tmp_path, capsys):
    check_data.main(["--data-path", str(broken), "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("warning: box (train), 2 times") + 1
    listed = [line for line in lines[start : start + 3] if line.startswith("    ")]
    assert len(listed) == 2
    assert not any("four finite numbers" in line for line in listed)


def test_no_training_annotations_is_one_line(tmp_path, capsys):
    with pytest.raises(UserError, match="no train annotations"):
        check_data.check(tmp_path, 256, 512)
    assert check_data.main(["--data-path", str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["coco128", "penn_fudan"])
def test_real_data_has_no_errors(name):
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"needs {name} in the folder of real data beside the project")
    report = check_data.check(REAL_DATA / name, 800, 1333)
    assert [p for p in report["problems"] if p["severity"] == "error"] == []
    expected = {"coco128": (128, 80), "penn_fudan": (119, 1)}[name]
    train = report["counts"]["train"]
    assert (train["images"], len(train["per_class"])) == expected
