"""Boxes in another format than x,y,width,height: what is said of them, and what --fix makes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import artifacts
from common.cli import UserError
from common.coco_files import read_annotations
from common.coco_format import Problem, parse_content
from phase1_training import data_boxes, data_checks, data_doctor
from phase1_training.data_fix import fix
from tests.coco_data import annotation, image, write_annotations

SETTINGS = {"architecture": "demo", "min_size": 240, "max_size": 512, "workers": 0, "cache": None}
WIDTH, HEIGHT = 96, 64
# name, what an exporter makes of x, y, w, h in pixels, the kind that is reported
FORMATS = [
    ("corners", lambda x, y, w, h: [x, y, x + w, y + h], "boxes as x1,y1,x2,y2"),
    ("centre", lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "boxes as cx,cy,w,h"),
    ("swapped", lambda x, y, w, h: [y, x, h, w], "boxes as y,x,h,w"),
]
EXPORTS = FORMATS + [
    (
        f"normalised-{name}",
        lambda *box, write=write: np.divide(write(*box), [WIDTH, HEIGHT, WIDTH, HEIGHT]).tolist(),
        "normalised boxes",
    )
    # Nobody divides y by the width: exchanged axes are not normalised by those of the image.
    for name, write, _ in [("xywh", lambda *box: [*box], ""), *FORMATS[:2]]
]


def pixel_boxes(count: int = 100) -> list[list[float]]:
    """x, y, w, h inside of the image, to whole pixels; no two the same."""
    rng = np.random.default_rng(0)
    side = rng.integers(8, 40, (count, 2))
    start = rng.integers(0, [WIDTH + 1, HEIGHT + 1] - side)
    return np.unique(np.hstack([start, side]), axis=0).astype(float).tolist()


def entries(boxes: list) -> list[dict]:
    return [{**annotation(box, n), "iscrowd": 0} for n, box in enumerate(boxes, 1)]


def write_data(folder: Path, boxes: list[dict], **listed: int) -> Path:
    size = {"width": WIDTH, "height": HEIGHT, **listed}
    write_annotations(folder, *boxes, images=[image(1, "a.png", **size)])
    write_annotations(folder, split="val")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    return folder


def file_errors(folder: Path) -> list[Problem]:
    path = folder / "annotations" / "instances_train.json"
    parsed = parse_content(folder, path, read_annotations(path))
    return [p for p in data_checks.file_problems(parsed) if p.severity == "error"]


@pytest.mark.parametrize(("write", "kind"), [e[1:] for e in EXPORTS], ids=[e[0] for e in EXPORTS])
def test_an_export_in_another_format_is_refused_and_fixed(tmp_path, write, kind):
    boxes = pixel_boxes()
    data = write_data(tmp_path / "data", entries([write(*box) for box in boxes]))
    (problem,) = file_errors(data)
    assert problem.kind == kind
    assert "--fix converts" in problem.message
    with pytest.raises(UserError, match=r"instances_train\.json: .*--fix converts"):
        data_doctor.examine(data, **SETTINGS)
    changes = fix(data, "train", tmp_path / "new.json")
    assert changes[0]["change"] == "boxes converted"
    content = artifacts.read_json(tmp_path / "new.json")
    fixed = [entry["bbox"] for entry in content["annotations"]]
    np.testing.assert_allclose(fixed, boxes, rtol=0, atol=1e-9)
    areas = [entry["area"] for entry in content["annotations"]]
    np.testing.assert_allclose(areas, [w * h for _, _, w, h in boxes])
    path = data / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    assert file_errors(data) == []


@pytest.mark.parametrize(
    ("boxes", "said"),
    [  # in an image of 96x64
        # As xywh each ends at 72 px of 64; as centre and as y,x,h,w it lies inside.
        ([[20 + n, 40, 20, 32] for n in range(9)], "they fit as each of cx,cy,w,h"),
        ([[2 * n for n in box] for box in pixel_boxes()], "they fit neither so nor as x1,y1"),
        # x,y,w,h or centre: nothing tells.
        ([[0.4, 0.5, n / 30, 0.2] for n in range(3, 9)], "fit as each of x,y,width,height; cx"),
    ],
    ids=["two formats", "none", "normalised"],
)
def test_what_only_a_guess_would_convert_is_refused(tmp_path, boxes, said):
    data = write_data(tmp_path / "data", entries(boxes))
    (problem,) = file_errors(data)
    assert said in problem.message
    assert "export them as pixel" in problem.message
    with pytest.raises(UserError, match=r"without a guess: .*export them as x,y,width,height"):
        fix(data, "train", tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


def test_where_the_sizes_of_images_are_exchanged_the_boxes_stay(tmp_path):
    boxes = pixel_boxes()
    data = write_data(tmp_path / "data", entries(boxes), width=HEIGHT, height=WIDTH)
    (problem,) = file_errors(data)
    assert "(or width and height of the images are exchanged)" in problem.message
    changes = fix(data, "train", tmp_path / "new.json")
    assert {change["change"] for change in changes} == {"size corrected", "area filled in"}
    content = artifacts.read_json(tmp_path / "new.json")
    assert [entry["bbox"] for entry in content["annotations"]] == boxes


def test_what_else_was_normalised_is_made_anew_and_what_was_not_is_kept(tmp_path):
    boxes = [[x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT] for x, y, w, h in pixel_boxes()]
    rows = entries(boxes)
    rows[0] |= {"area": 0.01, "segmentation": [[0.1, 0.2, 0.3, 0.4]]}
    rows[1] |= {"area": 90.0, "segmentation": [[10, 20, 30, 40]], "note": "mine"}
    rows[2] |= {"area": 10**400, "segmentation": {"counts": "x", "size": [1, 1]}}
    fix(write_data(tmp_path / "data", rows), "train", tmp_path / "new.json")
    first, second, third = artifacts.read_json(tmp_path / "new.json")["annotations"][:3]
    assert first["area"] == pytest.approx(first["bbox"][2] * first["bbox"][3])
    assert "segmentation" not in first
    assert second == {**rows[1], "bbox": second["bbox"]}
    assert third["area"] == pytest.approx(third["bbox"][2] * third["bbox"][3])
    assert third["segmentation"] == rows[2]["segmentation"]


# --- how sure it is ---------------------------------------------------------------------------


def judge(boxes, width: int = WIDTH, height: int = HEIGHT) -> data_boxes.BoxFormat:
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return data_boxes.box_format(array, np.tile([width, height], (len(array), 1)))


@pytest.mark.parametrize("share", [1.0, 0.99, 0.9, 0.5, 0.0])
def test_corners_are_told_from_the_file_as_a_whole(share):
    rng = np.random.default_rng(1)
    start, side = rng.uniform(0, 400, (200, 2)), rng.uniform(10, 80, (200, 2))
    corners = np.arange(200)[:, None] < 200 * share
    boxes = np.hstack([start, np.where(corners, start + side, side)])
    found = judge(boxes, 480, 480)
    expected = {1.0: ("x1,y1,x2,y2",), 0.99: ("x1,y1,x2,y2",), 0.0: ("x,y,width,height",)}
    assert found.readings == expected.get(share, ())
    assert found.is_xywh == (share == 0)


@pytest.mark.parametrize(
    ("leaving", "others", "by", "alarm"),
    [(5, 95, 4, True), (5, 96, 4, False), (4, 10, 4, False), (5, 5, 4, True), (50, 50, 3, False)],
)
def test_the_alarm_needs_a_share_a_number_and_a_distance(leaving, others, by, alarm):
    out = [[WIDTH - 20 + by, 10 + n / 9, 20, 20] for n in range(leaving)]
    inside = [[0, 0, 30, 30 + n / 9] for n in range(others)]
    assert judge(out + inside).is_xywh == (not alarm)


def test_whole_objects_that_the_border_cuts_are_a_warning():
    """Pedestrians of MOT17 and CrowdHuman reach out on both sides; no mistaken format does."""
    left, right = [[-9, 5 + n, 30, 30] for n in range(8)], [[80, 5 + n, 30, 30] for n in range(8)]
    inside = [[9, 9, 30, 30]] * 20
    (problem,) = data_boxes.format_problems(judge(left + right + inside))
    assert (problem.kind, problem.severity) == ("boxes leave images", "warning")
    assert judge(left + right + inside).is_xywh
    (problem,) = data_boxes.format_problems(judge(left + inside))
    assert problem.severity == "error"


@pytest.mark.parametrize(
    ("boxes", "width"),
    [
        ([], 96),
        ([[0, 0, 0, 0]] * 9, 96),  # placeholders are no boxes at all
        ([[0, 0, 0, 0]] * 9 + [[5, 5, 20, 20]], 96),
        ([[0.1, 0.2, 0.7, 0.3]] + [[9, 9, 20, 20]] * 20, 96),
        ([[0, 0, 1, 1]], 1),  # an image of one pixel
        ([[1e308, 0, 1e308, 5]], 96),
    ],
)
def test_what_is_no_fault_of_the_format(boxes, width):
    assert judge(boxes, width).is_xywh


def test_small_boxes_tell_their_format_by_those_at_the_border():
    rng = np.random.default_rng(0)
    side = np.full((5000, 2), 0.01)
    found = judge(np.hstack([rng.uniform(0, 0.99, (5000, 2)), side]), 1000, 800)
    assert (found.normalised, found.readings) == (True, ("x,y,width,height",))
