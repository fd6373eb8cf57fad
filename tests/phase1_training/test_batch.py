"""A batch: packed ground truth, micro-batches as views, and no images at all."""

import torch

from phase1_training.batch import Batch


def batch_of_three():
    boxes = torch.arange(16.0).reshape(4, 4)
    targets = [
        {"boxes": boxes[:1], "labels": torch.tensor([1])},
        {"boxes": boxes[:0], "labels": torch.tensor([], dtype=torch.int64)},
        {"boxes": boxes[1:], "labels": torch.tensor([2, 3, 4])},
    ]
    images = torch.arange(3 * 3 * 4 * 5, dtype=torch.uint8).reshape(3, 3, 4, 5)
    images = images.contiguous(memory_format=torch.channels_last)
    sizes = ((4, 5), (2, 5), (4, 3))
    return Batch(images, sizes, targets, (7, 8, 9), ("a", "b", "c"), (70, 80, 90))


def test_targets_are_views_of_one_tensor():
    batch = batch_of_three()
    assert [target["labels"].tolist() for target in batch.targets] == [[1], [], [2, 3, 4]]
    assert [len(target["boxes"]) for target in batch.targets] == [1, 0, 3]
    batch.boxes.zero_()
    assert batch.targets[2]["boxes"].sum() == 0


def test_a_part_has_the_canvas_of_the_whole():
    batch = batch_of_three()
    part = batch.part(1, 3)
    assert len(part) == 2
    assert part.images.shape == (2, 3, 4, 5)
    assert part.images.data_ptr() == batch.images[1].data_ptr()
    assert [target["labels"].tolist() for target in part.targets] == [[], [2, 3, 4]]
    assert part.targets[1]["boxes"].tolist() == batch.targets[2]["boxes"].tolist()
    assert (part.sizes, part.image_ids) == (((2, 5), (4, 3)), (8, 9))
    assert (part.paths, part.seeds) == (("b", "c"), (80, 90))
    assert len(batch) == 3
    assert len(batch.part(1, 1)) == len(batch.part(1, 1).targets) == 0
    assert torch.equal(batch.part(0, 3).boxes, batch.boxes)


def test_an_empty_batch_is_a_batch():
    batch = Batch(torch.zeros(0, 3, 32, 64, dtype=torch.uint8), [], [], [], [], [])
    assert len(batch.to(torch.device("cpu"))) == 0
    assert (batch.boxes.shape, batch.boxes.dtype) == ((0, 4), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((0,), torch.int64)
    assert batch.targets == []


def test_a_batch_moves_as_three_tensors():
    batch = batch_of_three()
    moved = batch.to(torch.device("meta"))
    assert {moved.images.device.type, moved.boxes.device.type, moved.labels.device.type} == {"meta"}
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert moved.image_ids == batch.image_ids
    assert batch.images.device.type == "cpu"
