"""The demo data: same options give the same bytes, and what is written is valid and consistent."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from common import artifacts, paths
from common.cli import UserError
from phase1_training import make_demo_data as command
from phase1_training.demo_backgrounds import TRAIN_STYLES, VAL_STYLES, VIDEO_STYLE, Background
from phase1_training.demo_scenes import Actor, Camera, render
from phase1_training.demo_sprites import CATEGORIES, Look

TINY = {"train_images": 6, "val_images": 3, "video_frames": 8}
CAMERA = Camera(gain=1.0, blur=0.0, noise=0.0, light=0.0)


def make(output: Path, **options) -> bool:
    return command.make_demo_data(output, **{**TINY, **options})


def checksums(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): artifacts.sha256(path) for path in found}


def video_rows(folder: Path) -> list[list[float]]:
    lines = (folder / "demo_video_gt.txt").read_text().splitlines()
    return [[float(value) for value in line.split(",")] for line in lines]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("data") / "demo"
    assert make(output)
    return output


def test_the_same_seed_gives_the_same_bytes_of_every_file(demo, tmp_path):
    make(tmp_path / "again")
    assert checksums(tmp_path / "again") == checksums(demo)
    assert {"demo_video.mp4", "demo_video_gt.txt"} < set(checksums(demo))


def test_another_seed_gives_other_files(demo, tmp_path):
    make(tmp_path / "other", seed=1)
    ours, others = checksums(demo), checksums(tmp_path / "other")
    assert ours.keys() == others.keys()
    assert all(ours[name] != others[name] for name in ours)


def test_more_pictures_leave_the_first_ones_and_the_video_unchanged(demo, tmp_path):
    make(tmp_path / "more", train_images=8)
    ours, more = checksums(demo), checksums(tmp_path / "more")
    unchanged = [name for name in ours if name.endswith((".jpg", ".mp4", "gt.txt", "val.json"))]
    assert len(unchanged) == 6 + 3 + 3
    assert all(more[name] == ours[name] for name in unchanged)


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("val", 3)])
def test_annotations_are_valid_coco(demo, split, count):
    coco = COCO(demo / "annotations" / f"instances_{split}.json")
    assert [c["id"] for c in coco.loadCats(coco.getCatIds())] == [1, 3, 6, 18]
    assert len(coco.imgs) == count
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for record in coco.imgs.values():
        picture = cv2.imread(str(demo / "images" / record["file_name"]))
        assert picture.shape == (record["height"], record["width"], 3)
        objects = coco.loadAnns(coco.getAnnIds(imgIds=record["id"]))
        assert 0 < len(objects) <= 7
        for item in objects:
            x, y, w, h = item["bbox"]
            assert x >= 0
            assert y >= 0
            assert w > 0
            assert h > 0
            assert x + w <= record["width"]
            assert y + h <= record["height"]
            assert 0 < item["area"] <= w * h
            assert 0.15 * 0.25 <= item["visibility"] <= 1
            assert item["iscrowd"] == 0


def test_picture_ids_are_unique_over_both_splits(demo):
    ids = [
        image["id"]
        for split in ("train", "val")
        for image in artifacts.read_json(demo / "annotations" / f"instances_{split}.json")["images"]
    ]
    assert len(ids) == len(set(ids)) == 9


def test_the_places_differ_between_training_validation_and_video(demo):
    names = [{s.name for s in styles} for styles in (TRAIN_STYLES, VAL_STYLES, (VIDEO_STYLE,))]
    assert sum(map(len, names)) == len(set.union(*names))
    pictures = [cv2.imread(str(path)) for path in sorted((demo / "images").rglob("*.jpg"))]
    small = [cv2.resize(p[: p.shape[0] // 3], (16, 8)).astype(int) for p in pictures]
    for index, one in enumerate(small):
        assert all(np.abs(one - other).mean() > 4 for other in small[:index])


def test_video_and_its_tracks_agree(demo):
    capture = cv2.VideoCapture(str(demo / "demo_video.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 12
    sizes = []
    while (answer := capture.read())[0]:
        sizes.append(answer[1].shape)
    assert sizes == [(432, 768, 3)] * TINY["video_frames"]
    rows = video_rows(demo)
    assert {row[0] for row in rows} == set(range(1, len(sizes) + 1))
    assert max(Counter((row[0], row[1]) for row in rows).values()) == 1
    classes: dict[float, set[float]] = {}
    for _, track_id, left, top, width, height, considered, class_id, visibility in rows:
        assert left >= 0
        assert top >= 0
        assert left + width <= 768
        assert top + height <= 432
        assert min(width, height) > 0
        assert considered == 1
        assert 0.15 * 0.25 <= visibility <= 1
        classes.setdefault(track_id, set()).add(class_id)
    assert all(len(kinds) == 1 for kinds in classes.values())
    assert set.union(*classes.values()) <= {1, 3, 6, 18}


def test_boxes_of_successive_frames_overlap(demo):
    tracks: dict[float, list[list[float]]] = {}
    for row in video_rows(demo):
        tracks.setdefault(row[1], []).append(row)
    overlaps = []
    for rows in tracks.values():
        for (_, _, x, y, w, h, *_), (_, _, p, q, r, s, *_) in itertools.pairwise(rows):
            inside = max(0, min(x + w, p + r) - max(x, p)) * max(0, min(y + h, q + s) - max(y, q))
            overlaps.append(inside / (w * h + r * s - inside))
    assert np.median(overlaps) > 0.7
    assert 0.7 < np.mean(overlaps) < 0.99  # they do move


# --- ground truth of a scene made by hand -----------------------------------------------------


def plain_background(width: int = 400, height: int = 300) -> Background:
    return Background(np.full((height, width, 3), 128, np.uint8), 100, ())


def actor(track_id: int, name: str, x: float, depth: float) -> Actor:
    category = next(category for category in CATEGORIES if category.name == name)
    red = (20, 20, 220)
    look = Look(category, (red,) * 4, red, variant=1, stretch=1.0, texture_seed=0)
    return Actor(track_id, look, x, depth, facing=1, phase=0.0)


def annotate(*actors: Actor):
    return render(plain_background(), list(actors), CAMERA, np.random.default_rng(0))[1]


@pytest.mark.parametrize("name", ["person", "car", "bus", "dog"])
@pytest.mark.parametrize("facing", [1, -1])
def test_the_box_is_the_extent_of_the_drawn_pixels(name, facing):
    one = actor(1, name, 200.4, 0.5)
    one.facing = facing
    frame, (item,) = render(plain_background(), [one], CAMERA, np.random.default_rng(0))
    changed = np.abs(frame.astype(int) - 128).max(axis=2) > 60
    changed[205:] = False  # the shadow, below the ground point at y = 100 + 0.5 * 200
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    x, y, w, h = item.box_xywh
    assert x == pytest.approx(columns[0], abs=3)
    assert x + w == pytest.approx(columns[-1] + 1, abs=3)
    assert y == pytest.approx(rows[0], abs=3)
    assert y + h == pytest.approx(200, abs=3)
    assert item.visibility == 1
    assert item.area <= w * h


def test_nearer_objects_hide_further_ones():
    bus, person = actor(1, "bus", 200, 0.6), actor(2, "person", 200, 0.4)
    assert [item.track_id for item in annotate(bus, person)] == [1]  # nothing of the person seen
    person.depth = 0.75
    both = annotate(bus, person)
    assert [item.track_id for item in both] == [1, 2]
    assert both[1].visibility == 1
    assert 0.7 < both[0].visibility < 0.99
    assert both[0].box_xywh == annotate(bus)[0].box_xywh  # the box includes the hidden part


def test_boxes_are_clipped_and_objects_mostly_outside_left_out():
    (whole,) = annotate(actor(1, "car", 200, 0.5))
    (half,) = annotate(actor(1, "car", 0, 0.5))
    assert half.box_xywh[0] == 0
    assert half.box_xywh[2] == pytest.approx(whole.box_xywh[2] / 2, abs=2)
    assert half.visibility == pytest.approx(0.5, abs=0.1)
    assert annotate(actor(1, "car", -0.45 * whole.box_xywh[2], 0.5)) == []


# --- the command ------------------------------------------------------------------------------


def test_complete_data_is_not_made_again(tmp_path):
    output = tmp_path / "demo"
    assert make(output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert not make(output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert make(output, overwrite=True)
    assert (output / "demo_video.mp4").stat().st_mtime_ns > before[output / "demo_video.mp4"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damaged_data_is_made_again(tmp_path, damage):
    output = tmp_path / "demo"
    make(output)
    expected, picture = checksums(output), output / "images" / "train" / "000002.jpg"
    if damage == "missing":
        picture.unlink()
    else:
        picture.write_bytes(b"\0" + picture.read_bytes())
    assert make(output)
    assert checksums(output) == expected


def test_data_of_other_options_is_replaced_only_when_asked(demo, tmp_path):
    output = tmp_path / "demo"
    make(output)
    with pytest.raises(UserError, match="other options – add --overwrite"):
        make(output, seed=3)
    assert checksums(output) == checksums(demo)
    assert make(output, seed=3, overwrite=True)
    assert checksums(output) != checksums(demo)


def test_a_folder_with_somebody_s_files_is_never_replaced(tmp_path):
    output = tmp_path / "demo"
    make(output)
    (output / "images" / "mine.jpg").write_bytes(b"holiday")
    with pytest.raises(UserError, match=r"not demo data \(images/mine.jpg\)"):
        make(output, overwrite=True)
    assert (output / "images" / "mine.jpg").read_bytes() == b"holiday"


@pytest.mark.parametrize("content", ["{}", '{"settings": {}}', '{"settings": {}, "files": []}'])
def test_a_damaged_manifest_is_one_line(tmp_path, content):
    (tmp_path / "demo_data.json").write_text(content)
    with pytest.raises(UserError, match=r"demo_data\.json: is damaged"):
        make(tmp_path)
    with pytest.raises(UserError, match=r"demo_data\.json: is damaged"):
        make(tmp_path, overwrite=True)


def test_a_failure_leaves_the_older_data_and_nothing_else(demo, tmp_path, monkeypatch):
    output = tmp_path / "demo"
    make(output)

    def fail(*_):
        raise RuntimeError("encoder broke")

    monkeypatch.setattr(command, "_write_video", fail)
    with pytest.raises(RuntimeError, match="encoder broke"):
        make(output, overwrite=True)
    assert checksums(output) == checksums(demo)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def run_script(*arguments: str, outputs: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(paths.ROOT / "phase1_training" / "make_demo_data.py"), *arguments],
        env={**os.environ, "OUTPUTS_DIR": str(outputs)},
        capture_output=True,
        text=True,
    )


def test_the_script_says_what_it_saved_and_recognises_it(tmp_path):
    options = ["--train-images", "2", "--val-images", "1", "--video-frames", "3"]
    first = run_script(*options, outputs=tmp_path)
    assert first.returncode == 0, first.stderr
    assert f"Saved {tmp_path}/demo/demo_video.mp4" in first.stdout
    assert first.stdout.splitlines()[-1] == "Next:  python phase1_training/train.py"
    manifest = json.loads((tmp_path / "demo" / "demo_data.json").read_text())
    assert manifest["settings"]["train_images"] == 2
    second = run_script(*options, outputs=tmp_path)
    assert second.returncode == 0
    assert "is complete" in second.stdout
    assert "Saved" not in second.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train-images", "0"], "error: --train-images: 0 is not 1 or more"),
        (["--video-frames", "ten"], "error: --video-frames: 'ten' is not a whole number"),
        (["--seed", "-1"], "error: --seed: -1 is negative"),
        (["--overwritten"], "error: --overwritten: unknown option – did you mean --overwrite?"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, arguments, message):
    result = run_script(*arguments, outputs=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_output_s_place_is_refused(tmp_path):
    (tmp_path / "demo").write_text("a note")
    with pytest.raises(UserError, match="is a file"):
        make(tmp_path / "demo")
    with pytest.raises(UserError, match="cannot be written"):
        make(tmp_path / "demo" / "below")
    assert (tmp_path / "demo").read_text() == "a note"
