"""Batches of a precision comparison: padded like torchvision's, seeded, and all images used."""

import pytest
import torch

from common.coco import load_split
from common.fastpath import normalise_batch
from common.models import build_model
from phase2_optimization.amp_batches import image_seeds, training_batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def val(data_path):
    """Three images of 64x48 and one of 48x64."""
    return load_split(data_path, "val")


def test_a_batch_is_what_torchvisions_transform_makes(val):
    """Oracle: the model's own transform, on images that need no resize and so no rounding."""
    (batch,) = training_batches(val, 4, 1, min_size=48, max_size=96, seed=0)
    model = build_model("demo", 3, min_size=48, max_size=96)
    images = [
        image[:, :height, :width] / 255
        for image, (height, width) in zip(batch.images, batch.sizes, strict=True)
    ]
    expected, _ = model.transform(images)
    assert sorted(batch.sizes) == [(48, 64)] * 3 + [(64, 48)]
    assert batch.images.shape == expected.tensors.shape == (4, 3, 64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    found = normalise_batch(model, batch.images, batch.sizes)
    torch.testing.assert_close(found, expected.tensors, atol=1e-5, rtol=1e-5)


def test_boxes_move_with_the_resize(val):
    """The first box of every image is 4, 6, 20, 26 pixels; here the images are twice as large."""
    (batch,) = training_batches(val, 4, 1, min_size=96, max_size=192, seed=0)
    assert batch.box_counts == (2, 2, 2, 2)
    for target in batch.targets:
        assert type(target["boxes"]) is torch.Tensor
        assert target["boxes"].tolist() == [[8, 12, 40, 52], [48, 12, 80, 52]]
        assert target["labels"].tolist() == [1, 2]


def test_batches_repeat_with_their_seed_and_use_every_image_before_one_comes_again(data_path):
    split = load_split(data_path, "train")

    def make(seed):
        return training_batches(split, 2, 6, min_size=48, max_size=96, seed=seed)

    sums = [int(image.sum()) for batch in make(4) for image in batch.images]
    assert sums == [int(image.sum()) for batch in make(4) for image in batch.images]
    assert sums != [int(image.sum()) for batch in make(5) for image in batch.images]
    assert len(set(sums[:6])) == len(set(sums[6:])) == len(split.records) == 6


def test_a_batch_moves_as_a_whole(val):
    (batch,) = training_batches(val, 2, 1, min_size=48, max_size=96, seed=0)
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (moved.images, moved.boxes, moved.labels)} == {"meta"}
    assert moved.sizes == batch.sizes


def test_sampling_seeds_differ_between_seeds_steps_and_images():
    seeds = [s for seed in (-1, 0, 7) for step in range(3) for s in image_seeds(seed, step, 4)]
    assert len(set(seeds)) == 36
    assert all(0 <= s < 2**63 for s in seeds)
    assert image_seeds(7, 2, 4) == seeds[-4:]
