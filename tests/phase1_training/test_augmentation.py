"""Crop, resize, flip and colour: where pixels and boxes end up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from common.models import build_model
from phase1_training.augmentation import (
    MIN_VISIBLE,
    SMALLEST_CROP,
    RandomPart,
    TrainTransform,
)


def boxed(pixels, *boxes):
    """A sample as `COCODataset` hands it over."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    size = tuple(pixels.shape[1:])
    target = {
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size),
        "labels": torch.arange(1, len(boxes) + 1),
        "image_id": 5,
    }
    return tv_tensors.Image(pixels), target


def sample():
    """A white rectangle on black, and its box."""
    pixels = torch.zeros(3, 40, 60, dtype=torch.uint8)
    pixels[:, 4:14, 6:26] = 255
    return boxed(pixels, [6.0, 4, 26, 14])


def box_of_the_bright_pixels(image):
    rows, columns = torch.nonzero(image.float().mean(0) > 60, as_tuple=True)
    corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [int(corner) for corner in corners]


def only_resized(image, target, size):
    transform = TrainTransform(crop_probability=0, color_jitter=0)
    transform.flip_and_colour = v2.Identity()
    return transform(image, target, size)


def test_boxes_move_with_the_image():
    transform = TrainTransform(crop_probability=0, color_jitter=0.2)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = transform(*sample(), (80, 120))
        assert (image.shape, image.dtype, type(image)) == ((3, 80, 120), torch.uint8, torch.Tensor)
        assert {key: type(value) for key, value in target.items()} == {
            "boxes": torch.Tensor,
            "labels": torch.Tensor,
        }
        box = target["boxes"][0].tolist()
        assert box_of_the_bright_pixels(image) == pytest.approx(box, abs=1)
        seen.add(tuple(box))
    assert seen == {(12.0, 8.0, 52.0, 28.0), (68.0, 8.0, 108.0, 28.0)}  # as it was, and flipped


def test_a_crop_is_resized_to_what_the_whole_image_would_be():
    transform = TrainTransform(crop_probability=1, color_jitter=0.2)
    widths = set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(*sample(), (80, 120))
        assert image.shape == (3, 80, 120)
        if len(target["boxes"]):
            box = target["boxes"][0].tolist()
            assert box_of_the_bright_pixels(image) == pytest.approx(box, abs=2)
            widths.add(round(box[2] - box[0]))
    assert max(widths) > 50  # 40 px without the crop
    assert max(widths) <= 40 / SMALLEST_CROP + 2


def test_a_part_of_the_image_keeps_the_boxes_that_are_visible_in_it():
    image, target = sample()
    whole, untouched = RandomPart(0.0)(image, target)
    assert whole is image
    assert untouched is target
    kept = 0
    for seed in range(40):
        torch.manual_seed(seed)
        part, moved = RandomPart(1.0)(image, target)
        height, width = part.shape[1:]
        assert SMALLEST_CROP * 40 - 1 <= height <= 40
        assert width / height == pytest.approx(60 / 40, rel=0.05)
        assert len(moved["boxes"]) == len(moved["labels"])
        assert moved["boxes"].canvas_size == (height, width)
        bright = (part.float().mean(0) > 60).sum()  # the object's area in pixels
        assert len(moved["boxes"]) == (bright >= MIN_VISIBLE * 20 * 10)
        if len(moved["boxes"]):
            kept += 1
            assert moved["boxes"][0].tolist() == pytest.approx(box_of_the_bright_pixels(part))
    assert 0 < kept < 40
    assert len(target["boxes"]) == 1  # the sample itself is left alone


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (31, 97), (20, 200)])
def test_the_resize_is_the_models(size):
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    boxes = torch.tensor([[2.0, 3, 17, 19]])
    transform = build_model("demo", 2, min_size=64, max_size=96).transform
    expected, wanted = transform.resize(pixels / 255, {"boxes": boxes})
    found, moved = only_resized(*boxed(pixels, *boxes.tolist()), tuple(expected.shape[1:]))
    assert (found / 255 - expected).abs().max() <= 1.01 / 255  # rounded to 8 bits
    assert torch.allclose(moved["boxes"], wanted["boxes"])
    twice, boxes_again = transform.resize(found / 255, {"boxes": moved["boxes"]})
    assert torch.equal(twice, found / 255)  # the model finds nothing left to do
    assert boxes_again["boxes"] is moved["boxes"]


@settings(max_examples=150)
@given(st.data())
def test_boxes_stay_inside_the_image_and_keep_an_area(data):
    height, width = data.draw(st.tuples(st.integers(1, 80), st.integers(1, 80)))
    sides = [st.floats(0, length, width=32) for length in (width, height)]
    corners = data.draw(st.lists(st.tuples(*sides, *sides), max_size=5))
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    boxes = [box for box in boxes if box[2] > box[0] and box[3] > box[1]]
    size = data.draw(st.tuples(st.integers(1, 120), st.integers(1, 120)))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    pixels = torch.zeros(height, width, 3, dtype=torch.uint8).permute(2, 0, 1)  # as when read
    transform = TrainTransform(data.draw(st.sampled_from([0.0, 1.0])), color_jitter=0.2)
    image, target = transform(*boxed(pixels, *boxes), size)
    assert image.shape == (3, *size)
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    assert len(target["labels"]) == len(x1) <= len(boxes)
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 <= size[1]).all()
    assert (y2 <= size[0]).all()
    assert (x2 > x1).all()
    assert (y2 > y1).all()


def test_rounding_takes_no_box_out_of_the_image():
    """In FP32, 38 * (366 / 38) is above 366."""
    pixels = torch.zeros(3, 38, 38, dtype=torch.uint8)
    _, target = only_resized(*boxed(pixels, [3, 0, 38, 38]), (366, 366))
    assert target["boxes"][0, 2:].tolist() == [366, 366]


def test_a_sliver_that_rounding_closes_goes_with_its_label():
    """Its logarithm of the width would be infinite in the loss."""
    right = torch.nextafter(torch.tensor(31.0), torch.tensor(32.0)).item()
    pixels = torch.zeros(3, 60, 60, dtype=torch.uint8)
    boxes = [[0, 0, 30, 30], [31, 0, right, 10], [15, 30, 60, 60]]
    _, target = only_resized(*boxed(pixels, *boxes), (8, 8))
    assert target["labels"].tolist() == [1, 3]
    assert target["boxes"].tolist() == [[0, 0, 4, 4], [2, 4, 8, 8]]


def levels_of_a_grey_image(color_jitter):
    transform = TrainTransform(crop_probability=0, color_jitter=color_jitter)
    levels = set()
    for seed in range(30):
        torch.manual_seed(seed)
        image, _ = transform(*boxed(torch.full((3, 8, 8), 100, dtype=torch.uint8)), (8, 8))
        assert image.unique().numel() == 1  # contrast and saturation leave an even grey alone
        levels.add(int(image[0, 0, 0]))
    return levels


def test_colours_change_by_no_more_than_they_may():
    levels = levels_of_a_grey_image(0.2)
    assert 78 <= min(levels) < 95
    assert 105 < max(levels) <= 120
    assert levels_of_a_grey_image(0) == {100}


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (3000, 2), (40, 320)])
def test_images_of_extreme_shape(size):
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    image, target = TrainTransform(crop_probability=1, color_jitter=0.2)(
        *boxed(pixels, [0, 0, 1, 1]), (8, 64)
    )
    assert image.shape == (3, 8, 64)
    assert target["boxes"].shape[1] == 4
