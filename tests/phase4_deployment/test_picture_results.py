"""Pictures among inputs, folders that are refused, and what is drawn."""

import cv2
import numpy as np
import pytest

from common.cli import UserError
from phase4_deployment.package import picture_results
from phase4_deployment.package.picture_results import check_output, draw, pictures_among


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("img_10.png", "img_2.JPG", "notes.txt", ".hidden.png"):
        (folder / name).touch()
    return folder


def names(files) -> list[str]:
    return [file.name for file in files]


def test_a_folder_is_its_pictures_in_natural_order(pictures):
    assert names(pictures_among([str(pictures)])) == ["img_2.JPG", "img_10.png"]


def test_a_picture_is_itself_and_videos_are_none(pictures):
    assert names(pictures_among([str(pictures / "img_10.png")])) == ["img_10.png"]
    for text in ("street.mp4", "0", "rtsp://camera/1", "http://camera/live.jpg", ""):
        assert pictures_among([text]) == []


def test_pictures_beside_videos_are_refused(pictures):
    with pytest.raises(UserError, match=r"^street\.mp4: is a video among pictures"):
        pictures_among([str(pictures / "img_10.png"), "street.mp4"])


def test_a_picture_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"missing\.png: no such file"):
        pictures_among([str(tmp_path / "missing.png")])


def test_an_output_in_which_something_would_be_lost_is_refused(pictures, tmp_path):
    files = pictures_among([str(pictures)])
    check_output(tmp_path / "found", files, replace=False)
    with pytest.raises(UserError, match="is the folder of the input"):
        check_output(pictures / ".." / "pictures", files, replace=True)
    with pytest.raises(UserError, match=r"x\.mp4: is a file"):
        check_output(tmp_path / "x.mp4", files, replace=True)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "detections.json").touch()
    with pytest.raises(UserError, match=r"detections\.json: exists already.*--overwrite"):
        check_output(tmp_path / "found", files, replace=False)
    check_output(tmp_path / "found", files, replace=True)


def test_two_pictures_of_one_name_would_replace_each_other(pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "img_10.png").touch()
    with pytest.raises(UserError, match=r"img_10\.png: is called like "):
        check_output(
            tmp_path / "found", [pictures / "img_10.png", other / "img_10.png"], replace=True
        )


@pytest.mark.parametrize("box", [(20, 30, 80, 70), (-5, -5, 200, 200), (0, 0, 1, 1)])
def test_a_box_is_drawn_where_it_is(box):
    image = np.zeros((100, 120, 3), np.uint8)
    draw(image, np.array([[*box, 0.876, 7]]), {7: "Fußgänger\nzwei"})
    assert image.any()
    before = np.zeros_like(image)
    cv2.rectangle(before, box[:2], box[2:], (1, 1, 1), 1)
    assert image[before.any(2)].any(1).all()


def test_nothing_found_leaves_the_picture_as_it_is():
    image = np.full((50, 60, 3), 7, np.uint8)
    draw(image, np.empty((0, 6)), {})
    assert (image == 7).all()


def test_suffixes_of_pictures_are_those_of_phase_3():
    from phase3_tracking.inputs import image_folder

    assert picture_results.IMAGE_SUFFIXES is image_folder.IMAGE_SUFFIXES
