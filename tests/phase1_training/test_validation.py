"""Validation against torchvision's own forward passes, alone and shared by two ranks."""

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common import evaluation
from common.cli import UserError
from common.coco import COCODataset, load_split, read_image
from common.models import build_model, stock_predictor
from common.training_losses import LOSS_NAMES
from phase1_training import validation
from phase1_training.validation import validate
from tests.coco_data import CATEGORIES, annotation, image, write_annotations
from tests.random_detectors import random_detector, random_scene

CPU = torch.device("cpu")
SIZES = [(64, 48), (48, 64), (64, 48), (96, 40), (128, 96), (64, 48), (96, 40)]  # width, height


def write_split(folder, sizes):
    """Random scenes with two boxes each; the first has a crowd region too, the last no boxes."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, boxes = [], []
    for number, (width, height) in enumerate(sizes, start=1):
        images.append(image(number, f"{number}.png", width, height))
        Image.fromarray(random_scene(rng, height, width)).save(folder / "images" / f"{number}.png")
        for _ in range(2 if number < len(sizes) else 0):
            box = [*rng.uniform(1, 8, 2), *rng.uniform(14, 30, 2)]
            entry = annotation([float(side) for side in box], len(boxes) + 1, number)
            boxes.append({**entry, "category_id": int(rng.choice([3, 7]))})
    boxes.append(annotation([2, 2, 36, 36], len(boxes) + 1, 1, iscrowd=1))
    write_annotations(folder, *boxes, images=images, categories=CATEGORIES, split="val")
    return load_split(folder, "val")


@pytest.fixture(scope="module")
def model():
    """Normalisation layers that would change in training mode, and detections that are varied."""
    model = random_detector("demo", num_classes=3, min_size=64, max_size=128)
    model.rpn.head.conv.append(torch.nn.BatchNorm2d(64).eval())  # torchvision's v2 has such heads
    return model


@pytest.fixture(scope="module")
def split(tmp_path_factory, model):
    """Its boxes are near what the model finds: scores of almost zero would tell nothing."""
    split = write_split(tmp_path_factory.mktemp("mixed"), SIZES)
    predict = stock_predictor(model, CPU)
    records = []
    for record in split.records:
        count = int((~record.is_crowd).sum())
        found = predict([read_image(record.path)])[0]
        boxes, labels = record.boxes_xyxy.copy(), record.labels.copy()
        boxes[:count] = found.boxes_xyxy[:count] + np.array([0.5, 0.5, 1, 1])
        labels[:count] = found.labels[:count]
        records.append(replace(record, boxes_xyxy=boxes, labels=labels))
    return replace(split, records=tuple(records))


@pytest.fixture(scope="module")
def whole(model, split):
    return validate(model, split, CPU, batch_size=2)


def assert_same_detections(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.labels, theirs.labels)
        assert np.allclose(ours.boxes_xyxy, theirs.boxes_xyxy, atol=1e-3)
        assert np.allclose(ours.scores, theirs.scores, atol=1e-5)


def assert_same_scores(scores, expected):
    assert scores.keys() == expected.keys()
    assert scores["per_class"] == pytest.approx(expected["per_class"])
    for key in ("map", "map_50", "map_75", "images"):
        assert scores[key] == pytest.approx(expected[key])


def test_detections_are_those_of_torchvision_one_image_at_a_time(model, split, whole):
    predict = stock_predictor(model, CPU)
    expected = [predict([read_image(record.path)])[0] for record in split.records]
    assert min(len(found.scores) for found in expected) > 5
    assert_same_detections(whole.detections, expected)
    assert_same_scores(whole.scores, evaluation.coco_map(split, expected))
    assert whole.scores["map"] > 0.1


def frozen_copy_in_training_mode(model):
    """What users do by hand: training mode, but batch normalisation keeps its statistics."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def test_loss_is_that_of_torchvision_with_frozen_normalisation(model, tmp_path):
    split = write_split(tmp_path, [(64, 48)] * 5)  # of one size: torchvision's batch is not padded
    model = copy.deepcopy(model)
    for sampler in (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image = 10**5  # every candidate is sampled, on both sides
    pairs = [COCODataset(split)[index] for index in range(5)]
    assert [len(target["labels"]) for _, target in pairs] == [2, 2, 2, 2, 0]  # without the crowd
    images = [picture.to(torch.float32) / 255 for picture, _ in pairs]
    targets = [{key: target[key] for key in ("boxes", "labels")} for _, target in pairs]
    with torch.no_grad():
        expected = frozen_copy_in_training_mode(model)(images, targets)
    losses = validate(model, split, CPU, batch_size=2).losses
    assert {name: losses[name] for name in LOSS_NAMES} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )
    assert losses["loss"] == pytest.approx(float(sum(expected.values())), rel=1e-4)


def test_neither_batch_size_nor_repetition_changes_anything(model, split, whole):
    for batch_size in (1, 2, 3):
        torch.rand(1)  # the global random state moves on
        again = validate(model, split, CPU, batch_size=batch_size, workers=2)
        assert_same_detections(again.detections, whole.detections)
        assert again.losses == pytest.approx(whole.losses, rel=1e-4)
    same = validate(model, split, CPU, batch_size=2)
    assert same.losses == whole.losses
    assert all(
        np.array_equal(a, b)
        for ours, theirs in zip(same.detections, whole.detections, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_loss_depends_on_the_weights(model, split, whole):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.roi_heads.box_predictor.bbox_pred.bias += 0.5
    losses = validate(other, split, CPU).losses
    assert losses["loss_box_reg"] != pytest.approx(whole.losses["loss_box_reg"], rel=1e-3)
    assert losses["loss_objectness"] == pytest.approx(whole.losses["loss_objectness"], rel=1e-4)


def test_model_and_random_state_stay_as_they_are(model, split):
    model = copy.deepcopy(model).train()
    model.backbone.body.layer1.eval()  # a frozen stage inside a model in training
    flags = [module.training for module in model.modules()]
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    validate(model, split, CPU)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flags_are_restored_after_an_error(split, monkeypatch):
    model = build_model("demo", 3, min_size=64, max_size=128)

    def fails(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(model.roi_heads.box_head, "forward", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        validate(model, split, CPU)
    assert all(module.training for module in model.modules())


def test_unreadable_image_is_named(model, tmp_path):
    split = write_split(tmp_path, [(64, 48)] * 3)
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2\.png: cannot be decoded"):
        validate(model, split, CPU)


def test_split_without_boxes_scores_zero(model, tmp_path):
    split = write_split(tmp_path, [(64, 48)])  # a crowd region only
    found = validate(model, split, CPU)
    assert (found.scores["map"], found.scores["map_50"], found.scores["map_75"]) == (0, 0, 0)
    assert found.losses["loss_box_reg"] == found.losses["loss_rpn_box_reg"] == 0
    assert found.losses["loss_classifier"] > 0  # every region is background


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_torchvision_there_and_with_the_cpu(model, split, whole):
    device = torch.device("cuda")
    on_gpu = copy.deepcopy(model).to(device)
    predict = stock_predictor(on_gpu, device)
    expected = [predict([read_image(record.path)])[0] for record in split.records]
    found = validate(on_gpu, split, device, batch_size=2, workers=2)
    assert evaluation.compare_detections(expected, found.detections)["matched"] > 0.98
    assert found.losses == pytest.approx(whole.losses, rel=0.05)  # its samples are others


# --- several ranks ----------------------------------------------------------------------------


class FakeRanks:
    """Ranks that are threads of one process."""

    def __init__(self, rank, size, lists, barrier):
        self.rank, self.size, self._lists, self._barrier = rank, size, lists, barrier

    def gather(self, items):
        self._lists[self.rank] = items
        self._barrier.wait()
        return list(self._lists)


def validate_on_ranks(model, split, size):
    """What each rank returns or raises."""
    lists, barrier, results = [None] * size, threading.Barrier(size, timeout=60), [None] * size

    def work(rank):
        try:
            ranks = FakeRanks(rank, size, lists, barrier)
            results[rank] = validate(copy.deepcopy(model), split, CPU, ranks=ranks, batch_size=2)
        except UserError as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_together_equal_one(model, split, whole, size, monkeypatch):
    read = []
    monkeypatch.setattr(validation, "read_image", lambda *a: read.append(a[0]) or read_image(*a))
    results = validate_on_ranks(model, split, size)
    assert sorted(read) == sorted(record.path for record in split.records)  # none of them twice
    for result in results:
        assert_same_detections(result.detections, whole.detections)
        assert result.losses == pytest.approx(whole.losses, rel=1e-4)
        assert_same_scores(result.scores, whole.scores)


def test_rank_without_images(model, tmp_path):
    split = write_split(tmp_path, [(64, 48)] * 2)
    alone = validate(model, split, CPU)
    for result in validate_on_ranks(model, split, 3):
        assert_same_detections(result.detections, alone.detections)
        assert result.losses == pytest.approx(alone.losses, rel=1e-4)


def test_every_rank_hears_of_an_unreadable_image(model, tmp_path):
    split = write_split(tmp_path, [(64, 48)] * 3)
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")  # rank 1's
    errors = validate_on_ranks(model, split, 2)
    assert all(isinstance(error, UserError) and "2.png" in str(error) for error in errors)
    assert str(errors[0]) == str(errors[1])
