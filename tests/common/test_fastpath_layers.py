"""Folded normalisation and fast RoI pooling compute what torchvision's layers compute."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d

from common import fastpath_layers, roi_align
from common.fastpath import precision_safe_autocast
from common.fastpath_layers import fast_roi_pool, folded_norms
from tests.detector_batches import assert_close, frozen_detector, gradients, mixed_batch

RESNET = "fasterrcnn_resnet50_fpn"
MOBILENET = "fasterrcnn_mobilenet_v3_large_320_fpn"

# --- frozen normalisation ---------------------------------------------------------------------


def backbone_step(backbone, pixels):
    outputs = backbone(pixels)
    return outputs, gradients(backbone, {name: (v**2).mean() for name, v in outputs.items()})


@pytest.mark.parametrize("architecture", ["demo", MOBILENET, RESNET])
def test_folding_changes_neither_features_nor_gradients(architecture):
    """In float64: in FP32 roundings move values across the corner of a ReLU now and then."""
    backbone = frozen_detector(architecture).backbone.double()
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
    pixels = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    features, slopes = backbone_step(backbone, pixels)
    with folded_norms(backbone):
        fast_features, fast_slopes = backbone_step(backbone, pixels)
    assert_close(fast_features, features, 1e-10)
    assert_close(fast_slopes, slopes, 1e-8)


def test_losses_in_fp32_stay_the_same_up_to_rounding():
    model = frozen_detector("demo")
    batch = mixed_batch(model, 3)
    torch.manual_seed(3)
    expected = model(batch.images, batch.targets)
    torch.manual_seed(3)
    with folded_norms(model):
        found = model(batch.images, batch.targets)
    assert_close(found, expected, 1e-5)


def block(*, bias, trains):
    conv, norm = nn.Conv2d(2, 3, 3, bias=bias), FrozenBatchNorm2d(3, eps=0.1)
    norm.running_var.uniform_(0.5, 2)
    norm.running_mean.normal_()
    conv.requires_grad_(trains)
    return nn.Sequential(conv, norm)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trains", [True, False])
def test_writes_to_weights_and_statistics_take_effect(bias, trains):
    """An optimizer, a loaded state or an average of weights may write in the middle."""
    torch.manual_seed(0)
    model, x = block(bias=bias, trains=trains), torch.randn(1, 2, 5, 5)
    other = block(bias=bias, trains=trains).state_dict()
    with folded_norms(model):
        first = model(x)
        assert torch.equal(model(x), first)
        model.load_state_dict(other)
        loaded = model(x)
        with torch.no_grad():
            model[1].bias.add_(1.0)
        shifted = model(x)
    assert not torch.equal(first, loaded)
    assert torch.allclose(shifted, loaded + 1, atol=1e-6)
    assert torch.allclose(shifted, model(x), atol=1e-6)


@pytest.mark.parametrize("trains", [True, False])
def test_what_does_not_train_is_folded_once(trains, monkeypatch):
    calls = []
    folded = fastpath_layers._folded
    monkeypatch.setattr(
        fastpath_layers, "_folded", lambda *sources: calls.append(1) or folded(*sources)
    )
    model, x = block(bias=False, trains=trains), torch.randn(1, 2, 5, 5)
    with folded_norms(model):
        with torch.inference_mode():
            model(x)
        for _ in range(3):
            model(x.requires_grad_()).sum().backward()  # also with what inference computed
    assert len(calls) == (4 if trains else 1)


def saved_bytes(model, pixels):
    """Of the distinct memory kept for the backward pass, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        features = model.backbone(pixels)
    assert features
    return sum(sizes.values())


def test_folding_keeps_less_for_the_backward_pass_under_autocast():
    """Unfolded, every normalised map is FP32 and kept beside its copy in low precision."""
    model = frozen_detector(RESNET)
    pixels = torch.randn(1, 3, 128, 128)
    exact = saved_bytes(model, pixels)
    with precision_safe_autocast(model, torch.bfloat16, "cpu"):
        stock = saved_bytes(model, pixels)
        with folded_norms(model):
            folded = saved_bytes(model, pixels)
    weights = 2 * sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    assert folded - weights < 0.6 * (stock - weights)  # the weights' copies are kept either way
    assert folded - weights < 0.6 * exact


# --- region pooling ---------------------------------------------------------------------------


def pyramid(channels=5, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = {"0": (24, 40), "1": (12, 20), "2": (6, 10), "pool": (3, 5)}
    return {
        name: torch.randn(2, channels, *shape, dtype=dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for name, shape in shapes.items()
    }


def random_regions(count):
    """Of every size, from inside to far outside of an image of 160x96 px."""
    generator = torch.Generator().manual_seed(count)
    start = torch.rand(count, 2, generator=generator) * torch.tensor([220.0, 150.0]) - 30
    return torch.cat((start, start + torch.rand(count, 2, generator=generator) ** 3 * 400), dim=1)


def pooled(pool, features, boxes):
    output = pool(features, boxes, [(96, 160)] * 2)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    levels = [features[name] for name in pool.featmap_names]
    slopes = torch.autograd.grad((output * weights).sum(), levels)
    return {"output": output, **dict(zip(pool.featmap_names, slopes, strict=True))}


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize(
    ("names", "size", "ratio"),
    [
        (["0", "1", "2"], 5, 2),
        (["0", "1", "2"], (3, 7), 1),
        (["0", "1", "2"], 4, 3),
        (["1"], 7, 2),
        (["0", "1"], 3, 0),  # points as many as pixels: torchvision's kernel only
    ],
)
def test_pooled_regions_and_gradients_are_torchvisions(names, size, ratio, gathers, monkeypatch):
    monkeypatch.setattr(roi_align, "GATHERING_DEVICES", ("cpu",) if gathers else ())
    pool, features = MultiScaleRoIAlign(names, size, ratio), pyramid()
    boxes = [random_regions(40), random_regions(25)]
    expected = pooled(pool, features, boxes)
    with fast_roi_pool(pool):
        found = pooled(pool, features, boxes)
    assert expected["output"].abs().max() > 0.5
    assert_close(found, expected, 5e-6)


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (0, 0)])
def test_images_without_regions(counts, gathers, monkeypatch):
    monkeypatch.setattr(roi_align, "GATHERING_DEVICES", ("cpu",) if gathers else ())
    pool = MultiScaleRoIAlign(["0", "1"], 3, 2)
    boxes = [random_regions(count) for count in counts]
    with fast_roi_pool(pool):
        found = pool(pyramid(), boxes, [(96, 160)] * 2)
    expected = MultiScaleRoIAlign(["0", "1"], 3, 2)(pyramid(), boxes, [(96, 160)] * 2)
    assert found.shape == (sum(counts), 5, 3, 3)
    assert torch.allclose(found, expected, atol=1e-6)


def test_losses_and_gradients_of_a_detector_stay():
    model = frozen_detector("demo")
    batch = mixed_batch(model, 3)
    torch.manual_seed(3)
    expected = model(batch.images, batch.targets)
    torch.manual_seed(3)
    with fast_roi_pool(model.roi_heads.box_roi_pool):
        found = model(batch.images, batch.targets)
    assert_close(found, expected, 1e-6)
    assert_close(gradients(model, found), gradients(model, expected), 1e-5)
