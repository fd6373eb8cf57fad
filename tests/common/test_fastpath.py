"""Mixed precision that leaves the boxes alone, and folded normalisation."""

import contextlib
from unittest import mock

import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from common.fastpath import fold_batchnorm, native_amp, precision_safe_autocast
from common.models import build_model


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_model("demo", 3, min_size=320, max_size=640)


def heavy_modules(model):
    heads = model.roi_heads
    return (model.backbone, model.rpn.head, heads.box_head, heads.box_predictor)


def spied_losses(model, context):
    """One training step's losses, anchors, ground truth seen and regression targets made."""
    seen = {"anchors": [], "truth": [], "targets": []}
    encode = type(model.rpn.box_coder).encode
    forward = type(model.rpn.anchor_generator).forward

    def spy_encode(self, reference, proposals):
        result = encode(self, reference, proposals)
        seen["truth"] += [boxes.clone() for boxes in reference]
        seen["targets"] += [boxes.clone() for boxes in result]
        return result

    def spy_anchors(self, *arguments):
        result = forward(self, *arguments)
        seen["anchors"] += [boxes.clone() for boxes in result]
        return result

    torch.manual_seed(1)
    images = [torch.rand(3, 330, 500), torch.rand(3, 320, 450)]
    boxes = [[[301.3, 17.7, 471.9, 203.1], [3.2, 5.5, 60.1, 90.9]], [[257.7, 99.3, 401.2, 250.4]]]
    targets = [
        {"boxes": torch.tensor(entry), "labels": torch.ones(len(entry), dtype=torch.int64)}
        for entry in boxes
    ]
    with (
        mock.patch.object(type(model.rpn.box_coder), "encode", spy_encode),
        mock.patch.object(type(model.rpn.anchor_generator), "forward", spy_anchors),
        context,
    ):
        torch.manual_seed(2)
        losses = model.train()(images, targets)
    return losses, seen


def test_anchors_ground_truth_and_rpn_targets_are_those_of_fp32(detector):
    _, expected = spied_losses(detector, contextlib.nullcontext())
    losses, found = spied_losses(detector, precision_safe_autocast(detector, torch.bfloat16, "cpu"))
    assert len(expected["anchors"]) == 2
    for key in ("anchors", "truth", "targets"):
        assert found[key]
        assert all(boxes.dtype == torch.float32 for boxes in found[key])
    assert all(map(torch.equal, found["anchors"], expected["anchors"]))
    for key in ("truth", "targets"):  # the first two are those of the RPN, whose input is fixed
        assert all(map(torch.equal, found[key][:2], expected[key][:2]))
    given = torch.tensor([[301.3, 17.7, 471.9, 203.1], [3.2, 5.5, 60.1, 90.9]])
    resized = given * torch.tensor([484 / 500, 320 / 330] * 2)
    for boxes in found["truth"][2], expected["truth"][2]:  # of the box head: samples of the truth
        assert torch.cdist(boxes, resized).min(dim=1).values.max() < 1e-3
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_autocast_around_the_whole_model_would_round_the_anchors(detector):
    """The reason for all this; when it no longer holds, the wrapper can go."""
    _, expected = spied_losses(detector, contextlib.nullcontext())
    _, found = spied_losses(detector, torch.autocast("cpu", dtype=torch.bfloat16))
    assert not torch.equal(found["anchors"][0].float(), expected["anchors"][0])


def test_the_heavy_modules_compute_in_low_precision_and_hand_on_fp32(detector):
    kinds = []
    layer = detector.roi_heads.box_head.fc6
    hook = layer.register_forward_hook(lambda _m, _i, output: kinds.append(output.dtype))
    with precision_safe_autocast(detector, torch.bfloat16, "cpu"):
        features = detector.backbone(torch.rand(1, 3, 64, 64))
        detector.roi_heads.box_head(torch.rand(2, 64, 5, 5))
    hook.remove()
    assert kinds == [torch.bfloat16]
    assert [value.dtype for value in features.values()] == [torch.float32] * len(features)
    exact = detector.backbone(torch.rand(1, 3, 64, 64))
    assert list(features) == list(exact)


def test_losses_stay_close_to_fp32_and_gradients_are_fp32(detector):
    expected, _ = spied_losses(detector, contextlib.nullcontext())
    found, _ = spied_losses(detector, precision_safe_autocast(detector, torch.bfloat16, "cpu"))
    for name in ("loss_classifier", "loss_objectness", "loss_rpn_box_reg"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=0.05)
    sum(found.values()).backward()
    assert all(p.grad.dtype == torch.float32 for p in detector.parameters() if p.grad is not None)
    detector.zero_grad()


def test_the_forward_methods_return_after_the_block_also_after_an_error(detector):
    with precision_safe_autocast(detector, torch.bfloat16, "cpu"):
        assert all("forward" in module.__dict__ for module in heavy_modules(detector))
    assert not any("forward" in module.__dict__ for module in heavy_modules(detector))
    with (
        pytest.raises(ZeroDivisionError),
        precision_safe_autocast(detector, torch.bfloat16, "cpu"),
    ):
        raise ZeroDivisionError
    assert not any("forward" in module.__dict__ for module in heavy_modules(detector))


# --- folding ----------------------------------------------------------------------------------


@torch.no_grad()
def randomise(model):
    for module in model.modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_a_folded_resnet50_fpn_computes_the_same(eps):
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    ).eval()
    randomise(backbone)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = backbone(image)
    assert fold_batchnorm(backbone) == 53
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules())
    assert fold_batchnorm(backbone) == 0
    with torch.inference_mode():
        found = backbone(image)
    for level, values in expected.items():
        assert (found[level] - values).abs().max() <= 1e-4 * values.abs().max()


def test_the_bias_of_a_convolution_is_folded_by_hand():
    block = nn.Sequential(nn.Conv2d(1, 1, 1), FrozenBatchNorm2d(1, eps=0.5))
    with torch.no_grad():
        block[0].weight.fill_(3)
        block[0].bias.fill_(2)
    for name, value in {"weight": 4, "bias": 7, "running_mean": 1, "running_var": 3.5}.items():
        getattr(block[1], name).fill_(value)
    assert fold_batchnorm(block) == 1  # scale 4 / sqrt(3.5 + 0.5) = 2
    assert block[0].weight.item() == 6
    assert block[0].bias.item() == 7 + (2 - 1) * 2
    assert block(torch.tensor([[[[5.0]]]])).item() == 6 * 5 + 9


def test_lone_layers_are_left_alone():
    model = nn.Sequential(nn.ReLU(), FrozenBatchNorm2d(2), nn.Conv2d(2, 1, 1), nn.ReLU())
    assert fold_batchnorm(model) == 0


def test_ordinary_normalisation_is_folded_in_evaluation_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, eps=0.1))
    randomise(model)
    with pytest.raises(ValueError, match="evaluation"):
        fold_batchnorm(model)
    image = torch.rand(1, 1, 6, 6)
    model.eval()
    with torch.inference_mode():
        expected = model(image)
        assert fold_batchnorm(model) == 1
        assert (model(image) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        pytest.param({"avx512_bf16": True, "amx_bf16": False}, "bf16", id="x86 with bfloat16"),
        pytest.param({"bf16": True}, "bf16", id="Arm with bfloat16"),
        pytest.param({"avx512_f": True, "avx512_bf16": False}, "off", id="emulated only"),
    ],
)
def test_native_amp_of_a_cpu(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert native_amp(torch.device("cpu")) == expected


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "bf16"), ((7, 5), "fp16")])
def test_native_amp_of_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert native_amp(torch.device("cuda", 0)) == expected


def test_native_amp_where_torch_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert native_amp(torch.device("cpu")) == "off"
