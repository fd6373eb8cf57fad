"""The recipe's arithmetic, the augmentation, and one epoch on a model that is easy to follow."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from common.cli import UserError
from common.coco import load_split
from common.models import build_model, resized_size
from phase1_training.augmentation import MIN_VISIBLE, RandomPart, ResizeForModel, train_transform
from phase1_training.engine import (
    Recipe,
    Trainer,
    build_optimizer,
    epoch_loader,
    learning_rate_factor,
)
from tests.coco_data import write_shapes

CPU = torch.device("cpu")
SGD = Recipe(
    epochs=10, batch_size=2, optimizer="sgd", learning_rate=0.5, momentum=0.0, weight_decay=0.0,
    schedule="step", step_size=3, gamma=0.1, warmup_steps=0, amp="off",
    crop_probability=0.0,
)  # fmt: skip


# --- recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1), (59, 1), (60, 0.1), (119, 0.1), (120, 0.01), (180, 0.001)]
)
def test_the_step_schedule_by_hand(step, factor):
    assert learning_rate_factor(SGD, step, steps_per_epoch=20) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1), (50, 0.8535534), (100, 0.5), (150, 0.1464466), (200, 0), (999, 0)]
)
def test_the_cosine_schedule_by_hand(step, factor):
    recipe = replace(SGD, schedule="cosine")
    assert learning_rate_factor(recipe, step, steps_per_epoch=20) == pytest.approx(factor, abs=1e-7)


def test_warm_up_is_linear_and_multiplies_the_schedule():
    recipe = replace(SGD, warmup_steps=4)
    factors = [learning_rate_factor(recipe, step, 20) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    cosine = replace(recipe, schedule="cosine", epochs=1)
    assert learning_rate_factor(cosine, 1, 4) == pytest.approx(0.4 * 0.8535534)


def test_the_optimizers_take_their_settings_and_the_trained_parameters_only():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    sgd = build_optimizer(model, replace(SGD, momentum=0.8, weight_decay=0.3))
    assert isinstance(sgd, torch.optim.SGD)
    (group,) = sgd.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.8, 0.3)
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    adamw = build_optimizer(model, replace(SGD, optimizer="adamw", weight_decay=0.2))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["weight_decay"] == 0.2


# --- augmentation -----------------------------------------------------------------------------


def sample():
    """A white rectangle on black, and its box."""
    pixels = torch.zeros(3, 40, 60, dtype=torch.uint8)
    pixels[:, 4:14, 6:26] = 255
    boxes = tv_tensors.BoundingBoxes([[6.0, 4, 26, 14]], format="XYXY", canvas_size=(40, 60))
    return tv_tensors.Image(pixels), {"boxes": boxes, "labels": torch.tensor([1])}


def box_of_the_bright_pixels(image):
    rows, columns = torch.nonzero(image.float().mean(0) > 60, as_tuple=True)
    corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [int(corner) for corner in corners]


def test_boxes_move_with_the_image():
    transform = train_transform(80, 120, crop_probability=0)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = transform(*sample())
        assert image.shape == (3, 80, 120)
        assert (image.dtype, type(image)) == (torch.uint8, torch.Tensor)
        box = target["boxes"][0].tolist()
        assert box_of_the_bright_pixels(image) == pytest.approx(box, abs=1)
        seen.add(tuple(box))
    assert seen == {(12.0, 8.0, 52.0, 28.0), (68.0, 8.0, 108.0, 28.0)}  # as it was, and flipped


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
        assert 0.6 * 40 - 1 <= height <= 40
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
def test_the_resize_in_the_loader_is_the_models(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    boxes = torch.tensor([[2.0, 3, 17, 19]])
    target = {"boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)}
    found, moved = ResizeForModel(64, 96)(tv_tensors.Image(image), target)
    assert tuple(found.shape[1:]) == resized_size(*size, 64, 96)
    transform = build_model("demo", 2, min_size=64, max_size=96).transform
    expected, wanted = transform.resize(image / 255, {"boxes": boxes})
    assert (found / 255 - expected).abs().max() <= 1.01 / 255  # rounded to 8 bits
    assert torch.allclose(moved["boxes"].as_subclass(torch.Tensor), wanted["boxes"])
    twice, boxes_again = transform.resize(found / 255, {"boxes": moved["boxes"]})
    assert torch.equal(twice, found / 255)
    assert boxes_again["boxes"] is moved["boxes"]


# --- the loader -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = write_shapes(tmp_path_factory.mktemp("engine") / "data", splits={"train": 5})
    return load_split(folder, "train")


@pytest.fixture
def demo():
    torch.manual_seed(0)
    return build_model("demo", 3, min_size=64, max_size=96)


def batches(split, model, *, seed=0, epoch=1, workers=0):
    loader = epoch_loader(
        split, model, SGD, workers=workers, seed=seed, epoch=epoch, pin_memory=False
    )
    return list(loader)


def order(found):
    return [target["image_id"] for _, targets in found for target in targets]


def test_an_epoch_sees_each_image_once_in_an_order_of_its_own(split, demo):
    first = batches(split, demo)
    assert [len(images) for images, _ in first] == [2, 2, 1]
    assert sorted(order(first)) == [1, 2, 3, 4, 5]
    orders = {tuple(order(batches(split, demo, epoch=epoch))) for epoch in range(1, 7)}
    assert len(orders) > 2
    assert order(batches(split, demo, seed=1)) != order(first)
    assert len(batches(split, demo, seed=2**62)) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_seed_and_epoch_settle_order_and_augmentation(split, demo, workers):
    torch.manual_seed(1)
    first = batches(split, demo, workers=workers)
    torch.manual_seed(2)
    torch.rand(100)
    again = batches(split, demo, workers=workers)
    assert order(first) == order(again)
    for (images, targets), (others, other_targets) in zip(first, again, strict=True):
        assert all(map(torch.equal, images, others))
        for target, other in zip(targets, other_targets, strict=True):
            assert torch.equal(target["boxes"], other["boxes"])


# --- one epoch --------------------------------------------------------------------------------


class Follow(nn.Module):
    """Stands for a detector: one weight w, loss w * mean brightness of the batch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))
        self.seen = []

    def forward(self, images, targets):
        brightness = torch.stack([image.mean() for image in images]).mean()
        self.seen.append((len(images), [sorted(target) for target in targets]))
        return {"loss_a": self.w * brightness, "loss_b": 2 * brightness.detach()}


def batch(*values, boxes=1):
    images = tuple(torch.full((3, 2, 2), value, dtype=torch.uint8) for value in values)
    target = {"boxes": torch.zeros(boxes, 4), "labels": torch.ones(boxes), "image_id": 1}
    return images, tuple(target for _ in values)


def test_an_epochs_losses_are_means_over_its_images_and_its_steps_are_sgds():
    model = Follow()
    trainer = Trainer(model, replace(SGD, warmup_steps=1, epochs=1), CPU, steps_per_epoch=2)
    result = trainer.train_epoch([batch(51, 51), batch(255)], "epoch 1/1")  # 0.2, 0.2, 1.0
    # Warm-up halves the first rate: w = 1 - 0.25 * 0.2 = 0.95, then 0.95 - 0.5 * 1 = 0.45.
    assert model.w.item() == pytest.approx(0.45)
    assert result.losses["loss_a"] == pytest.approx((2 * 1 * 0.2 + 1 * 0.95 * 1.0) / 3)
    assert result.losses["loss_b"] == pytest.approx((2 * 0.4 + 2.0) / 3)
    assert result.train_loss == pytest.approx(sum(result.losses.values()))
    assert (result.images, result.learning_rate) == (3, 0.25)
    assert result.seconds > 0
    assert model.training
    assert model.seen == [(2, [["boxes", "labels"]] * 2), (1, [["boxes", "labels"]])]


@pytest.mark.parametrize("bad_step", [0, 5, 12])
def test_a_loss_that_is_no_number_stops_the_epoch(bad_step):
    class Diverge(Follow):
        def forward(self, images, targets):
            losses = super().forward(images, targets)
            if len(self.seen) - 1 == bad_step:
                losses["loss_b"] = losses["loss_b"] * torch.nan
            return losses

    model = Diverge()
    trainer = Trainer(model, SGD, CPU, steps_per_epoch=13)
    with pytest.raises(UserError, match=r"^epoch 1/9: loss_b is no longer a finite number by step"):
        trainer.train_epoch([batch(9)] * 13, "epoch 1/9")
    assert len(model.seen) == {0: 1, 5: 11, 12: 13}[bad_step]  # looked at every tenth step


def test_weights_spoilt_by_the_last_step_are_not_kept():
    """The loss before it was fine; the checkpoint would be of no use."""
    model = Follow()
    trainer = Trainer(model, replace(SGD, learning_rate=1e38), CPU, steps_per_epoch=2)
    with torch.no_grad():
        model.w.fill_(-3e38)
    with pytest.raises(UserError, match="a weight is no longer a finite number by step 1"):
        trainer.train_epoch([batch(255)], "epoch 1/1")


def test_an_unreadable_image_stops_the_epoch_with_its_own_line():
    trainer = Trainer(Follow(), SGD, CPU, steps_per_epoch=1)
    with pytest.raises(UserError, match=r"^a\.png: is damaged – replace it$"):
        trainer.train_epoch(["a.png: is damaged – replace it"], "epoch 1/1")


def test_a_trainer_continues_from_its_state():
    recipe = replace(SGD, momentum=0.9, warmup_steps=3)
    models = [Follow(), Follow()]
    trainers = [Trainer(model, recipe, CPU, steps_per_epoch=2) for model in models]
    trainers[0].train_epoch([batch(100), batch(200)], "")
    models[1].load_state_dict(models[0].state_dict())
    trainers[1].load_state_dict(copy.deepcopy(trainers[0].state_dict()))
    results = [trainer.train_epoch([batch(50), batch(90)], "") for trainer in trainers]
    assert models[0].w.item() == models[1].w.item()
    assert results[0].losses == results[1].losses
    assert results[0].learning_rate == results[1].learning_rate == pytest.approx(0.5 * 3 / 4)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_detector_learns_a_batch_by_heart(split, demo, amp):
    recipe = replace(SGD, optimizer="adamw", learning_rate=0.002, amp=amp)
    trainer = Trainer(demo, recipe, CPU, steps_per_epoch=8)
    (images, targets), *_ = batches(split, demo)
    result = [trainer.train_epoch([(images, targets)] * 8, "") for _ in range(2)]
    assert result[1].train_loss < 0.7 * result[0].train_loss
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in demo.parameters())


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (3000, 2)])
def test_images_of_extreme_shape_train(demo, size):
    image = tv_tensors.Image(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes([[0.0, 0, 1, 1]], format="XYXY", canvas_size=size)
    sample = train_transform(64, 96, crop_probability=1)(
        image, {"boxes": boxes, "labels": torch.tensor([1])}
    )
    trainer = Trainer(demo, SGD, CPU, steps_per_epoch=1)
    images, targets = zip(sample, sample, strict=True)
    assert trainer.train_epoch([(images, targets)], "").train_loss > 0


def test_images_without_boxes_train_the_background(demo):
    trainer = Trainer(demo, SGD, CPU, steps_per_epoch=1)
    images, targets = batch(100, 200, boxes=0)
    targets = [{**target, "labels": torch.zeros(0, dtype=torch.int64)} for target in targets]
    images = [v2.functional.resize(image, [64, 64]) for image in images]
    result = trainer.train_epoch([(images, targets)], "")
    assert result.losses["loss_objectness"] > 0
    assert result.losses["loss_box_reg"] == 0
