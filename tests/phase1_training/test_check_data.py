"""The data check: every planted fault is listed, nothing of the person's is changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import artifacts, paths
from common.cli import UserError
from phase1_training import check_data, data_doctor
from tests.coco_data import CATEGORIES, annotation, image, write_annotations, write_shapes

REAL_DATA = paths.ROOT.parent / "shared" / "data"


def checksums(folder: Path) -> dict[str, str]:
    return {str(path): artifacts.sha256(path) for path in folder.rglob("*") if path.is_file()}


def picture(path: Path, seed: int, size=(30, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(path)


def inspect(data: Path, min_size: int = 256, max_size: int = 512) -> dict:
    settings = {"architecture": "demo", "min_size": min_size, "max_size": max_size}
    return data_doctor.inspect(data, **settings)


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
    ids = {
        kind: [p["annotation_id"] for p in report["problems"] if p["kind"] == kind]
        for kind in ("box not finite", "unreadable box", "unknown image", "unknown category",
                     "box outside", "box partly outside", "duplicate annotation id", "tiny box")
    }  # fmt: skip
    assert ids == {
        "box not finite": [2, 3], "unreadable box": [4], "unknown image": [5],
        "unknown category": [6], "box outside": [7], "box partly outside": [8],
        "duplicate annotation id": [1], "tiny box": [9],
    }  # fmt: skip
    unreadable = {p["image"]: p["message"] for p in found(report, "unreadable image")}
    assert unreadable.keys() == {"cut.png", "missing.png"}
    assert "cannot be decoded" in unreadable["cut.png"]
    assert "is 30x40, the annotations say 40x30" in found(report, "image size")[0]["message"]
    assert [p["image"] for p in found(report, "duplicate image id")] == ["twice.png"]
    assert [p["image"] for p in found(report, "path")] == ["../../secret.png"]
    duplicates = [p["image"] for p in found(report, "duplicate image", "warning")]
    assert duplicates == ["again.png", "sub/good.png"]
    assert [p["image"] for p in found(report, "leakage", "warning", "val")] == ["val.png"]
    assert "differ" in found(report, "category", split="val")[0]["message"]
    assert found(report, "no annotations", "warning", "val")
    captured = capsys.readouterr()
    assert "error: box not finite (train), 2 times" in captured.out
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    errors = [problem for problem in report["problems"] if problem["severity"] == "error"]
    assert f"{len(errors)} errors" in captured.err
    assert str(tmp_path) not in json.dumps(report["problems"])


def test_the_table_counts_each_kind_and_the_list_shows_the_first_of_it(broken, tmp_path, capsys):
    check_data.main(["--data-path", str(broken), "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(f"{'severity':8} {'kind':24} {'split':5} {'times':>6}") + 1
    rows = [line.split() for line in lines[start : lines.index("", start)]]
    severities = [row[0] for row in rows]
    assert severities == sorted(severities, key=("error", "warning", "note").index)
    assert ["error", "box", "not", "finite", "train", "2"] in rows
    position = lines.index("error: box not finite (train), 2 times")
    assert all("SIGSEGV" in line or "NaN" in line for line in lines[position + 1 : position + 3])


def test_only_the_first_offenders_are_shown_and_all_are_saved(tmp_path, capsys):
    data = write_shapes(tmp_path / "data", splits={"train": 3, "val": 2})
    boxes = [annotation([n, 40, 20, 10], n) for n in range(1, 30)]  # 2 px below the image
    write_annotations(data, *boxes, images=[image(1, "train_0.png", 64, 48)])
    assert check_data.main(["--data-path", str(data), "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("reaches outside") == check_data.SHOWN_PER_KIND
    report = artifacts.read_json(tmp_path / "out" / "data_report.json")
    assert len(found(report, "box partly outside", "warning")) == 29


def test_good_data_passes_and_is_counted(tmp_path, capsys):
    data = write_shapes(tmp_path / "data", splits={"train": 4, "val": 2})
    command = ["--data-path", str(data), "--output", str(tmp_path / "out")]
    assert check_data.main(command) == 0
    report = artifacts.read_json(tmp_path / "out" / "data_report.json")
    assert not [p for p in report["problems"] if p["severity"] == "error"]
    train = report["counts"]["train"]
    assert (train["images"], train["images_without_boxes"], train["boxes"]) == (4, 1, 3)
    assert sum(train["per_class"].values()) == 3
    assert report["counts"]["val"]["images"] == 2
    printed = capsys.readouterr().out
    assert "Nothing found that would stop a training." in printed
    assert f"Next:  python phase1_training/train.py --data-path {data}" in printed
    assert len(artifacts.read_json(tmp_path / "out" / "image_cache.json")["images"]) == 6


def test_without_val_images_will_be_held_out_unless_there_is_one_only(tmp_path):
    for number, severity in ((2, "warning"), (1, "error")):
        data = write_shapes(tmp_path / str(number), splits={"train": number})
        (problem,) = found(inspect(data), "structure", severity, "val")
        assert "held out" in problem["message"] or "hold images out" in problem["message"]


def test_boxes_are_judged_after_the_resize(tmp_path):
    data = tmp_path / "data"
    write_annotations(data, annotation([0, 0, 40, 10]), images=[image(1, "a.png", 400, 300)])
    picture(data / "images" / "a.png", 0, (300, 400))
    assert not found(inspect(data, 240, 1000), "tiny box", "warning")  # 10 px become 8, a stride
    (problem,) = found(inspect(data, 239, 1000), "tiny box", "warning")
    assert "is 31.8x8.0 px after the resize, below the stride of 8 px" in problem["message"]


def test_own_data_is_judged_by_the_model_and_resize_it_is_trained_with(tmp_path, capsys):
    data = tmp_path / "data"
    for split, name in (("train", "a"), ("val", "b")):
        images = [image(1, f"{name}.png", 400, 300)]
        write_annotations(data, annotation([0, 0, 40, 8]), images=images, split=split)
        picture(data / "images" / f"{name}.png", ord(name), (300, 400))
    command = ["--data-path", str(data), "--output", str(tmp_path / "out")]
    assert check_data.main(command) == 0
    assert "tiny box" not in capsys.readouterr().out  # 21 px at a short side of 800
    assert check_data.main([*command, "--architecture", "demo"]) == 0
    assert "warning: tiny box (train), 1 times" in capsys.readouterr().out  # 7.7 px at 288
    assert check_data.main([*command, "--architecture", "demo", "--min-size", "400"]) == 0
    assert "tiny box" not in capsys.readouterr().out
    report = artifacts.read_json(tmp_path / "out" / "data_report.json")
    assert (report["architecture"], report["min_size"], report["max_size"]) == ("demo", 400, 512)
    assert report["anchors"]["own"]["boxes"] == 1


def test_no_training_annotations_is_one_line(tmp_path, capsys):
    with pytest.raises(UserError, match="no train annotations"):
        inspect(tmp_path)
    assert check_data.main(["--data-path", str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["coco128", "penn_fudan"])
def test_real_data_has_no_errors(name):
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"needs {name} in the folder of real data beside the project")
    report = data_doctor.inspect(
        REAL_DATA / name,
        architecture="fasterrcnn_resnet50_fpn",
        min_size=800,
        max_size=1333,
        workers=2,
    )
    assert [p for p in report["problems"] if p["severity"] == "error"] == []
    expected = {"coco128": (128, 80), "penn_fudan": (119, 1)}[name]
    train = report["counts"]["train"]
    assert (train["images"], len(train["per_class"])) == expected
