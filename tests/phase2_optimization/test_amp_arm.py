"""The precisions of a device, and the step of an arm against the training's own."""

import copy
import dataclasses

import pytest
import torch

from common.coco import load_split
from common.models import load_model
from phase1_training.batch import Batch as TrainingBatch
from phase2_optimization import amp_arm
from phase2_optimization.amp_arm import Precision, TrainingArm, precisions, usual_amp
from phase2_optimization.amp_batches import image_seeds, training_batches
from tests.training_batches import SGD, exact_detector, make_trainer

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
FP32 = Precision("")
RATE = 1e-3


@pytest.fixture
def model(model_path):
    return load_model(model_path, CPU).model


@pytest.fixture
def batches(data_path):
    split = load_split(data_path, "train")
    return training_batches(split, 2, 3, min_size=64, max_size=96, seed=0)


@pytest.fixture
def make_arm(model, batches):
    return lambda precision=FP32: TrainingArm(model, precision, batches, RATE, CPU, seed=3)


def weights(arm: TrainingArm) -> dict[str, torch.Tensor]:
    return arm._model.state_dict()


# --- precisions -------------------------------------------------------------------------------


def measured(device: torch.device, native: str, monkeypatch) -> dict[str, Precision]:
    monkeypatch.setattr(amp_arm, "native_amp", lambda device: native)
    return {name: p for name, p in precisions(device).items() if not p.unavailable}


@pytest.mark.parametrize(
    ("device", "native", "names", "usual"),
    [
        pytest.param(CPU, "bf16", ["fp32", "amp_bf16", "amp_stock"], "amp_bf16", id="new CPU"),
        pytest.param(CPU, "off", ["fp32", "amp_bf16", "amp_stock"], "amp_bf16", id="old CPU"),
        pytest.param(
            CUDA, "bf16", ["fp32", "tf32", "amp_fp16", "amp_bf16", "amp_stock"], "amp_bf16",
            id="Ampere",
        ),
        pytest.param(CUDA, "fp16", ["fp32", "amp_fp16", "amp_stock"], "amp_fp16", id="Turing"),
        pytest.param(MPS, "off", ["fp32"], "amp_bf16", id="mps"),
    ],
)  # fmt: skip
def test_what_a_device_can_run(device, native, names, usual, monkeypatch):
    assert list(measured(device, native, monkeypatch)) == names
    assert usual_amp(device) == usual
    assert list(precisions(device)) == ["fp32", "tf32", "amp_fp16", "amp_bf16", "amp_stock"]


def test_bfloat16_is_emulated_on_a_cpu_without_its_instructions_only(monkeypatch):
    old = measured(CPU, "off", monkeypatch)
    assert [name for name, p in old.items() if p.emulated] == ["amp_bf16", "amp_stock"]
    for device, native in ((CPU, "bf16"), (CUDA, "fp16")):
        assert not any(p.emulated for p in measured(device, native, monkeypatch).values())


def test_autocast_around_everything_takes_what_autocast_takes_by_itself(monkeypatch):
    for device in (CPU, CUDA):
        stock = measured(device, "bf16", monkeypatch)["amp_stock"]
        assert stock.dtype is torch.get_autocast_dtype(device.type)


# --- the step ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_a_step_is_the_one_phase_1_trains_with(model, batches, make_arm, amp, dtype):
    """Oracle: the trainer, with the same batches, seeds and SGD. The weights are equal bit by
    bit after two steps, so the second has seen momentum."""
    recipe = dataclasses.replace(SGD, learning_rate=RATE, batch_size=2, amp=amp)
    trainer = make_trainer(copy.deepcopy(model), recipe)
    with trainer.training():
        for number, batch in enumerate(batches[:2]):
            trainer.train_step(
                TrainingBatch(
                    batch.images, batch.sizes, batch.targets, [0, 1], ["a", "b"],
                    image_seeds(3, number, 2),
                )
            )  # fmt: skip
    with make_arm(Precision("", dtype)) as arm:
        arm.step()
        arm.step()
    expected = trainer.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in weights(arm).items())


def test_bfloat16_starts_where_fp32_does(batches):
    """All proposals are kept and sampled: else rounding decides which ones the loss is of."""
    model = exact_detector(torch.float32)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        with TrainingArm(model, Precision("", dtype), batches, RATE, CPU, seed=3) as arm:
            arm.step()
        losses += arm.losses()
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_equal_arms_make_equal_steps_even_when_taking_turns(make_arm):
    with make_arm() as first, make_arm() as second:
        for _ in range(4):  # one more than there are batches
            first.step()
            torch.rand(7)  # whatever else draws random numbers in between
            second.step()
    assert first.losses() == second.losses()
    assert len(set(first.losses())) == 4  # a batch that comes again is sampled anew
    assert first.skipped_steps() == 0


def test_autocast_around_everything_repeats_with_its_seed(make_arm):
    stock = Precision("", torch.bfloat16, stock=True)
    with make_arm(stock) as first:
        first.step()
    torch.rand(7)
    with make_arm(stock) as second:
        second.step()
    assert first.losses() == second.losses()


def test_an_arm_trains_a_copy_and_leaves_it_whole(make_arm, model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with make_arm(Precision("", torch.bfloat16)) as arm:
        arm.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert any(not torch.equal(before[key], value) for key, value in weights(arm).items())
    assert "forward" not in vars(arm._model.backbone)  # nor in low precision when it is judged
    assert all(p.grad is None for p in arm._model.parameters())


def test_amp_keeps_weights_gradients_and_momentum_in_fp32(make_arm):
    with make_arm(Precision("", torch.bfloat16)) as arm:
        arm._loss(arm._batches[0], [1, 2]).backward()
        gradients = [p.grad for p in arm._parameters if p.grad is not None]
        assert gradients
        assert all(g.dtype is torch.float32 and torch.isfinite(g).all() for g in gradients)
        arm.step()
    momentum = [state["momentum_buffer"] for state in arm._optimizer.state.values()]
    assert {value.dtype for value in [*momentum, *weights(arm).values()]} <= {
        torch.float32,
        torch.int64,  # batch normalisation counts its batches
    }


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_changes_no_weight(make_arm, monkeypatch, value):
    with make_arm() as arm:
        arm.step()
        before = {name: p.clone() for name, p in arm._model.named_parameters()}
        loss = arm._loss
        monkeypatch.setattr(arm, "_loss", lambda batch, seeds: loss(batch, seeds) * value)
        arm.step()
    assert all(torch.equal(before[name], p) for name, p in arm._model.named_parameters())
    assert arm.losses()[0] is not None
    assert arm.losses()[1] is None
    assert arm.skipped_steps() == 1


def test_float16_gradients_that_overflow_are_skipped_and_the_scale_falls(make_arm, monkeypatch):
    """GradScaler works on a CPU as well; here it is given gradients of a finite loss."""
    with make_arm(Precision("", torch.float16)) as arm:
        weight = arm._parameters[0]

        def overflowing(batch, seeds):
            return weight.sum() * 1e34 * (1 if not arm._losses else 0)  # times 65536: infinite

        monkeypatch.setattr(arm, "_loss", overflowing)
        before = weight.clone()
        arm.step()
        assert torch.equal(weight, before)
        assert arm._scaler.get_scale() == 65536 / 2
        arm.step()
    assert arm.skipped_steps() == 1
    assert None not in arm.losses()


def test_tf32_is_allowed_in_its_own_steps_only(make_arm, monkeypatch):
    seen = []

    def loss(batch, seeds):
        flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        seen.append(flags)
        return next(iter(arm._parameters)).sum()

    for precision, allowed in ((Precision("", tf32=True), True), (FP32, False)):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not allowed)
        with make_arm(precision) as arm:
            monkeypatch.setattr(arm, "_loss", loss)
            arm.step()
        assert seen.pop() == (allowed, allowed)
        assert torch.backends.cudnn.allow_tf32 is not allowed


def test_frozen_normalisation_keeps_its_statistics(make_arm):
    arm = make_arm()
    norm = next(m for m in arm._model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.requires_grad_(False)
    before = norm.running_mean.clone()
    with arm:
        arm.step()
    assert torch.equal(norm.running_mean, before)
