"""Splits of a training, decoded images, and the samples a detector trains on."""

import io
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from common.cli import UserError
from common.coco import (
    COCODataset,
    hold_out,
    load_split,
    load_train_and_val,
    read_image,
    training_split,
)
from tests.coco_data import CATEGORIES, annotation, image, write_annotations, write_shapes


def gradient(width=40, height=30):
    """Smooth, so that JPEG changes it little, and of no symmetry."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 120, height))
    return np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


# --- splits -----------------------------------------------------------------------------------


def test_without_a_val_file_images_are_held_out(tmp_path):
    folder = write_shapes(tmp_path / "data", splits={"train": 10})
    train, val = load_train_and_val(folder)
    everything = {record.image_id for record in load_split(folder, "train").records}
    ids = [{record.image_id for record in split.records} for split in (train, val)]
    assert (len(ids[0]), len(ids[1])) == (9, 1)
    assert ids[0] | ids[1] == everything
    for name, expected in zip(("train", "val"), ids, strict=True):
        again = training_split(folder, name)
        assert {record.image_id for record in again.records} == expected


def test_with_a_val_file_nothing_is_held_out(tmp_path):
    folder = write_shapes(tmp_path / "data", splits={"train": 4, "val": 2})
    train, val = load_train_and_val(folder)
    assert (len(train.records), len(val.records)) == (4, 2)


@pytest.mark.parametrize(("fraction", "held"), [(0.0, 1), (0.1, 1), (0.5, 2), (1.0, 4), (0.9, 4)])
def test_a_hold_out_leaves_an_image_on_each_side(tmp_path, fraction, held):
    split = load_split(
        write_annotations(tmp_path, images=[image(n, f"{n}.png") for n in range(5)]), "train"
    )
    train, val = hold_out(split, fraction)
    assert (len(train.records), len(val.records)) == (5 - held, held)


def test_one_image_cannot_be_held_out(tmp_path):
    with pytest.raises(UserError, match="one image only"):
        load_train_and_val(write_annotations(tmp_path))


def test_a_broken_val_file_is_an_error_and_not_a_missing_one(tmp_path):
    folder = write_annotations(write_annotations(tmp_path), annotation([1]), split="val")
    with pytest.raises(UserError, match=r"instances_val.json: annotation 1: bbox"):
        load_train_and_val(folder)


@pytest.mark.parametrize(
    "categories", [CATEGORIES[:1], [{**CATEGORIES[0], "name": "x"}, CATEGORIES[1]]]
)
def test_val_categories_that_differ_are_refused(tmp_path, categories):
    folder = write_annotations(write_annotations(tmp_path), split="val", categories=categories)
    with pytest.raises(UserError, match=r"instances_val.json: its categories differ"):
        load_train_and_val(folder)


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path, value):
    path = save(tmp_path / "a.png", gradient(), exif=orientation(value))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(read_image(path), expected)
    assert read_image(path).shape[:2] == ((40, 30) if value > 4 else (30, 40))


def test_orientation_6_is_a_quarter_turn_clockwise(tmp_path):
    path = save(tmp_path / "a.png", gradient(), exif=orientation(6))
    assert np.array_equal(read_image(path), np.rot90(gradient(), -1))


@pytest.mark.fault("P1-44")
def test_annotations_of_the_stored_pixels_get_the_stored_pixels(tmp_path):
    """Either way the box of the annotation shows what the annotator saw in it."""
    path = save(tmp_path / "a.png", gradient(40, 30), exif=orientation(6))
    assert np.array_equal(read_image(path, (40, 30)), gradient(40, 30))
    assert np.array_equal(read_image(path, (30, 40)), np.rot90(gradient(40, 30), -1))


def test_another_size_than_annotated_is_refused(tmp_path):
    path = save(tmp_path / "a.png", gradient())
    with pytest.raises(UserError, match=r"is 40x30, the annotations say 41x30 – correct width"):
        read_image(path, (41, 30))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "tif"), ("YCbCr", "tif")],
)
@pytest.mark.fault("P1-43")
def test_every_colour_mode_becomes_8_bit_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(gradient()).convert(mode).save(path)
    pixels = read_image(path, (40, 30))
    assert (pixels.shape, pixels.dtype) == ((30, 40, 3), np.uint8)
    expected = Image.fromarray(gradient()).convert("L" if mode.startswith("L") else "RGB")
    difference = pixels.astype(int) - np.asarray(expected.convert("RGB"))
    assert np.abs(difference).mean() < (25 if mode == "P" else 2)  # 216 colours, dithered


@pytest.mark.fault("P1-43")
def test_16_bit_grey_keeps_its_upper_byte(tmp_path):
    values = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 54
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, values)
        expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
        assert np.array_equal(read_image(path), expected)
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "b.tif")  # mode I, as older Pillows
    assert np.array_equal(read_image(tmp_path / "b.tif"), expected)


@pytest.mark.fault("P1-42")
def test_a_png_called_jpg_is_read(tmp_path):
    path = save(tmp_path / "a.jpg", gradient(), format="PNG")
    assert np.array_equal(read_image(path), gradient())


def jpeg_bytes():
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", jpeg_bytes()[: len(jpeg_bytes()) // 2], jpeg_bytes()[:-60]],
    ids=["empty", "text", "half", "cut"],
)
def test_a_damaged_image_is_one_line_naming_it(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_image(path)
    assert str(raised.value).startswith(f"{path}: cannot be decoded (")
    assert str(raised.value).endswith(" – replace the image")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60)
@given(
    position=st.integers(0, 10_000),
    value=st.integers(0, 255),
    cut=st.integers(0, 10_000) | st.none(),
    name=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]),
)
def test_any_damage_gives_an_image_or_a_user_error(tmp_path_factory, position, value, cut, name):
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, name, exif=orientation(6))
    damaged = bytearray(buffer.getvalue())
    damaged[position % len(damaged)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged[: cut % len(damaged)] if cut is not None else damaged)
    try:
        pixels = read_image(path)
    except UserError:
        return
    assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)


@pytest.mark.fault("P1-45")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match=r"bomb.png: cannot be decoded .*decompression bomb"):
        read_image(path)


def test_missing_folder_and_pipe_are_no_images(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer for ever
    for name in ("missing.jpg", "folder.jpg", "pipe.jpg", "x" * 5000):
        with pytest.raises(UserError, match="no such image"):
            read_image(tmp_path / name)


# --- samples ----------------------------------------------------------------------------------


@pytest.mark.fault("P1-32")
def test_samples_hold_pixels_boxes_and_labels_without_the_crowd(tmp_path):
    boxes = [annotation([1, 2, 3, 4]), annotation([0, 0, 9, 9], 2, iscrowd=1)]
    folder = write_annotations(tmp_path, *boxes, images=[image(5), image(6, "b.png")])
    boxes[0]["image_id"] = boxes[1]["image_id"] = 5
    write_annotations(tmp_path, *boxes, images=[image(5), image(6, "b.png")])
    (folder / "images").mkdir()
    save(folder / "images" / "a.png", gradient())
    save(folder / "images" / "b.png", 255 - gradient())
    dataset = COCODataset(load_split(folder, "train"))
    (first, target), (second, empty) = dataset[0], dataset[1]
    assert len(dataset) == 2
    assert (first.dtype, tuple(first.shape)) == (torch.uint8, (3, 30, 40))
    assert np.array_equal(first.numpy().transpose(1, 2, 0), gradient())
    assert target["boxes"].tolist() == [[1, 2, 4, 6]]
    assert target["boxes"].canvas_size == (30, 40)
    assert target["labels"].tolist() == [1]
    assert target["image_id"] == 5
    assert (tuple(empty["boxes"].shape), empty["labels"].dtype) == ((0, 4), torch.int64)
    assert tuple(second.shape) == tuple(first.shape)
    assert empty["image_id"] == 6


def test_changing_a_sample_leaves_the_annotations_alone(tmp_path):
    split = load_split(write_shapes(tmp_path / "data", splits={"train": 2}), "train")
    before = split.records[0].boxes_xyxy.copy()
    _, target = COCODataset(split)[0]
    target["boxes"] += 5
    assert np.array_equal(split.records[0].boxes_xyxy, before)


def test_the_transform_gets_the_image_and_its_boxes(tmp_path):
    split = load_split(write_shapes(tmp_path / "data", splits={"train": 2}), "train")
    dataset = COCODataset(split, lambda image, target: (image.shape, sorted(target)))
    assert dataset[1] == ((3, 48, 64), ["boxes", "image_id", "labels"])
