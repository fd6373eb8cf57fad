"""The teaching pictures: which moments are taken, what is left out, and what is refused."""

import json

import cv2
import numpy as np
import pytest

from phase3_tracking.explain_tracking import PICTURES, main
from tests.phase3_tracking import explained_scene as scene


def run(video, detections, output, *more) -> int:
    return main(
        [
            *("--input", str(video), "--detections", str(detections)),
            *("--output", str(output), *map(str, more)),
        ]
    )


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The folder that a run over the whole scene leaves."""
    folder = tmp_path_factory.mktemp("scene")
    assert run(*scene.write(folder), folder / "made", "--quiet") == 0
    return folder / "made"


@pytest.fixture(scope="module")
def numbers(explained):
    return json.loads((explained / "explained.json").read_text(encoding="utf-8"))


def test_there_are_five_pictures_1600_pixels_wide(explained, numbers):
    names = sorted(path.name for path in explained.iterdir())
    assert names == sorted([*PICTURES, "explained.json"])
    assert numbers["pictures"] == list(PICTURES)
    for name in PICTURES:
        picture = cv2.imread(str(explained / name))
        assert picture.shape[1] == 1600
        assert picture.std() > 20  # neither blank nor black


def test_the_report_names_what_it_is_made_of(numbers):
    assert numbers["schema"] == "tracking_explained/1"
    assert [path.rsplit("/", 1)[-1] for path in numbers["inputs"]] == ["scene.mp4", "scene.det.txt"]
    assert numbers["confidence"] == 0.5


def test_iou(numbers):
    # 40 x 40 boxes 6 pixels apart share 34 x 40 of 46 x 40: of all pairs nearest to 0.6
    assert numbers["iou"]["frames"] == [11, 12]
    assert numbers["iou"]["boxes_xyxy"] == [[40, 20, 80, 60], [46, 20, 86, 60]]
    assert numbers["iou"]["iou"] == pytest.approx(34 / 46, abs=1e-4)


def test_assignment_where_greedy_is_wrong(numbers):
    made = numbers["assignment"]
    assert made["frame"] == 12
    # A is 16 pixels from D1 (24 of 56 shared); B 4 from D1 (36 of 44) and 6 from D2 (34 of 46);
    # A and D2 share 14 of 66, below the threshold of 0.3
    pair = np.array(made["predicted_xyxy"])[:, 0].tolist()
    a, b = pair.index(20), pair.index(40)
    cost = np.array(made["cost"], float)
    expected = [[1 - 24 / 56, 1 - 14 / 66], [1 - 36 / 44, 1 - 34 / 46]]
    columns = [np.array(made["detected_xyxy"])[:, 0].tolist().index(x) for x in (36, 46)]
    np.testing.assert_allclose(cost[np.ix_([a, b], columns)], expected, atol=1e-4)
    assert [a, columns[0]] in made["chosen"]
    assert [b, columns[1]] in made["chosen"]
    assert [b, columns[0]] in made["greedy"]
    difference = 24 / 56 + 34 / 46 - 36 / 44
    assert made["total_iou"] - made["total_iou_greedy"] == pytest.approx(difference, abs=2e-4)


def test_prediction_across_a_gap(numbers):
    steps = numbers["prediction"]["frames"]
    missed = [step["frame"] for step in steps if step["detected_xyxy"] is None]
    assert missed == [14, 15]
    assert [step["frame"] for step in steps] == list(
        range(steps[0]["frame"], steps[0]["frame"] + 6)
    )
    sigma = {step["frame"]: np.array(step["predicted_sigma"]) for step in steps}
    assert (sigma[16] > sigma[15]).all()  # the longer out of sight, the less is known
    assert (sigma[15] > sigma[14]).all()
    for step in steps:
        if step["detected_xyxy"] is not None:
            assert (np.array(step["corrected_sigma"]) < step["predicted_sigma"]).all()


def test_low_score(numbers):
    made = numbers["low_score"]
    assert (made["first_frame"], made["strong_again_in_frame"]) == (10, 13)
    assert (made["weak_detections"], made["without_them"]) == (3, "same")
    assert 0.5 <= made["iou"] <= 1


def test_camera_motion(numbers):
    made = numbers["camera_motion"]
    assert (made["frame"], made["shift"]) == (8, [4.0, 0.0])
    assert made["displacements"].count([4.0, 0.0]) == len(scene.LONELY)


def test_what_does_not_occur_is_said_and_left_out(tmp_path, capsys):
    one = [row for row in scene.rows() if row[2] == 120 and row[5] == 0.8]
    assert run(*scene.write(tmp_path, one), tmp_path / "made") == 0
    told = capsys.readouterr().out
    assert [line[:3] for line in told.splitlines()].count("No ") == 3
    for missing in ("2_assignment.png", "4_low_score.png", "5_camera_motion.png"):
        assert PICTURES[missing] in told
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {"1_iou.png", "3_prediction.png", "explained.json"}
    numbers = json.loads((tmp_path / "made" / "explained.json").read_text(encoding="utf-8"))
    assert numbers["assignment"] is numbers["low_score"] is numbers["camera_motion"] is None
    assert told.splitlines()[-1] == "Next:  python phase3_tracking/video_detector.py"


def test_pictures_of_an_earlier_run_go_and_files_of_others_stay(tmp_path):
    video, detections = scene.write(tmp_path)
    output = tmp_path / "made"
    assert run(video, detections, output, "--quiet") == 0
    (output / "notes.txt").write_text("mine")
    one = [row for row in scene.rows() if row[2] == 120 and row[5] == 0.8]
    scene.write(tmp_path, one)
    assert run(video, detections, output, "--quiet") == 0
    names = {path.name for path in output.iterdir()}
    assert names == {"1_iou.png", "3_prediction.png", "explained.json", "notes.txt"}


def test_a_damaged_report_is_replaced(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "explained.json").write_text("{")
    assert run(*scene.write(tmp_path), tmp_path / "made", "--quiet") == 0
    assert json.loads((tmp_path / "made" / "explained.json").read_text(encoding="utf-8"))


def test_nothing_to_explain(tmp_path, capsys):
    video, detections = scene.write(tmp_path, [])
    assert run(video, detections, tmp_path / "made", "--quiet") == 2
    assert "shows no object that is tracked at --confidence 0.5" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_max_frames_and_start_choose_the_frames(tmp_path):
    video, detections = scene.write(tmp_path)
    more = ("--start", "0.2", "--max-frames", "9", "--quiet")
    assert run(video, detections, tmp_path / "made", *more) == 0
    numbers = json.loads((tmp_path / "made" / "explained.json").read_text(encoding="utf-8"))
    assert numbers["low_score"]["first_frame"] == 10
    assert numbers["low_score"]["without_them"] == "open"  # frame 11 is the last one read


def test_the_folder_of_the_pictures_is_no_output(tmp_path, capsys):
    video, detections = scene.write(tmp_path)
    assert run(video, detections, video, "--quiet") == 2
    assert "is a file" in capsys.readouterr().err
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "a.png"), np.zeros((60, 80, 3), np.uint8))
    assert run(pictures, detections, pictures, "--quiet") == 2
    assert "is also the input" in capsys.readouterr().err
    assert [path.name for path in pictures.iterdir()] == ["a.png"]


def test_a_live_input_cannot_be_read_twice(tmp_path, capsys, monkeypatch):
    from phase3_tracking.explain import explain_chooser

    class Live:
        live, name = True, "camera 0"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(explain_chooser, "open_source", lambda *_: Live())
    _, detections = scene.write(tmp_path)
    assert run("0", detections, tmp_path / "made", "--quiet") == 2
    assert "camera 0: is live and cannot be read twice" in capsys.readouterr().err


def test_no_video_and_no_demo(run_script, outputs_dir):
    done = run_script("phase3_tracking/explain_tracking.py")
    assert done.returncode == 2
    assert "make_demo_data.py" in done.stderr
    assert not (outputs_dir / "metrics").exists()
