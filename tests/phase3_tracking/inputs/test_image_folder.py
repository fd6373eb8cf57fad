"""ImageFolder behind open_source: order, sizes, and pictures that are none."""

import os
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from common.cli import UserError
from phase3_tracking.inputs.image_folder import letterbox, natural_order
from phase3_tracking.inputs.source_options import SourceOptions
from phase3_tracking.inputs.sources import open_source


def save(folder: Path, name: str, value: int, size: tuple[int, int] = (40, 30)) -> None:
    """A grey picture of `size` (width, height)."""
    cv2.imwrite(str(folder / name), np.full((size[1], size[0], 3), value, np.uint8))


def read(folder: Path, **options):
    with open_source(folder, SourceOptions(**options)) as source:
        return list(source), source


def test_every_kind_in_the_natural_order_of_names(tmp_path):
    names = ["1.png", "2.jpg", "9.bmp", "10.webp", "10a.tif", "11.JPEG", "100.ppm"]
    for value, name in enumerate(names):
        save(tmp_path, name, 10 * value)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "below").mkdir()
    frames, source = read(tmp_path)
    assert [round(frame.image_bgr.mean() / 10) for frame in frames] == list(range(7))
    assert [frame.time_s for frame in frames] == [Fraction(i, 10) for i in range(7)]
    assert (source.fps, source.frames_promised, source.notes) == (10, 7, [])
    assert (source.width, source.height, source.truncated) == (40, 30, False)


def test_the_rate_can_be_given_and_frames_chosen(tmp_path):
    for index in range(10):
        save(tmp_path, f"{index}.png", index)
    frames, source = read(
        tmp_path, fps=Fraction(2), start_s=Fraction(1), frame_skip=3, end_s=Fraction(5)
    )
    assert [frame.index for frame in frames] == [2, 5, 8]
    assert (source.source_fps, source.frames_expected) == (2, 3)


def test_p3_25_mixed_sizes_are_fitted_into_the_first_and_noted(tmp_path):
    save(tmp_path, "1.png", 200, (40, 30))
    save(tmp_path, "2.png", 200, (80, 30))  # half as large, with black above and below
    save(tmp_path, "3.png", 200, (10, 30))  # black on the left and right
    frames, source = read(tmp_path)
    assert {frame.image_bgr.shape for frame in frames} == {(30, 40, 3)}
    rows = frames[1].image_bgr[:, 20, 0].tolist()
    assert rows == [0] * 7 + [200] * 15 + [0] * 8
    columns = frames[2].image_bgr[15, :, 0].tolist()
    assert columns == [0] * 15 + [200] * 10 + [0] * 15
    (note,) = source.notes
    assert note.startswith("2 pictures of another size were fitted into 40x30")


def test_p3_25_unreadable_pictures_are_skipped_and_noted(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    save(tmp_path, "1.png", 50)
    (tmp_path / "2.jpg").write_text("text")
    save(tmp_path, "3.png", 60)
    whole = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (90, 90, 3)))[1]
    (tmp_path / "4.png").write_bytes(whole.tobytes()[:2000])
    os.mkfifo(tmp_path / "5.png")
    (tmp_path / "6.png").mkdir()
    save(tmp_path, "7.png", 70)
    frames, source = read(tmp_path)
    assert [frame.index for frame in frames] == [1, 3, 7]
    assert source.notes == ["5 unreadable pictures were skipped (0.png, 2.jpg, 4.png, ...)"]
    assert not source.truncated


def test_no_readable_picture_is_one_line(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="not one frame"):
        open_source(tmp_path)


def test_p3_02_a_folder_without_pictures_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no picture"):
        open_source(tmp_path)


def test_pixels_of_every_mode_and_exif_turn(tmp_path):
    colours = np.zeros((30, 40, 3), np.uint8)
    colours[:, :20] = (255, 0, 0)  # red in RGB, on the left
    Image.fromarray(colours).save(tmp_path / "1.png")
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "2.png")
    Image.fromarray(colours).convert("P").save(tmp_path / "3.png")
    turned = Image.fromarray(colours).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned.save(tmp_path / "4.png", exif=exif)
    cv2.imwrite(str(tmp_path / "5.png"), np.full((30, 40), 0x8000, np.uint16))
    frames, _ = read(tmp_path)
    for frame in frames[:4]:
        assert frame.image_bgr[15, 5].tolist() == [0, 0, 255]
        assert frame.image_bgr[15, 35].tolist() == [0, 0, 0]
    assert frames[4].image_bgr[15, 5].tolist() == [128, 128, 128]


def test_natural_order():
    names = ["b2", "b10", "b1", "a", "10", "9", "b", "b01"]
    assert sorted(names, key=natural_order) == ["9", "10", "a", "b", "b01", "b1", "b2", "b10"]


def test_letterbox_never_loses_all_pixels():
    assert letterbox(np.full((1, 4000, 3), 9, np.uint8), 40, 30).max() == 9
