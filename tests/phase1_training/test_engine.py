"""One training step: exact in any number of parts, safe in half precision, whole after a fault."""

import copy
from dataclasses import replace

import pytest
import torch

from common.cli import UserError
from common.training_losses import training_losses
from phase1_training import engine
from tests.training_batches import (
    SGD,
    exact_detector,
    gradients,
    make_batch,
    make_trainer,
    small_detector,
)


def assert_same(first: dict, second: dict, tolerance: float) -> None:
    assert first.keys() == second.keys()
    scale = max(float(value.abs().max()) for value in first.values())
    for name in first:
        difference = float((first[name] - second[name]).abs().max())
        assert difference <= tolerance * scale, (name, difference, scale)


# --- the step ---------------------------------------------------------------------------------


def test_a_step_is_that_of_plain_sgd_on_plain_torchvision():
    """Oracle: torchvision's own forward with the sampler that takes everything."""
    ours, theirs = small_detector(), small_detector()
    for model in (ours, theirs):  # so many samples that every candidate is taken
        for sampler in (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler):
            sampler.batch_size_per_image, sampler.positive_fraction = 100_000, 0.5
    trainer = make_trainer(ours, replace(SGD, momentum=0.0))
    batch = make_batch(3)
    with trainer.training():
        losses = trainer.train_step(batch)
    theirs.train()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=SGD.learning_rate)
    images = [image.float() / 255 for image in batch.images]
    expected = theirs(images, copy.deepcopy(batch.targets))
    sum(expected.values()).backward()
    optimizer.step()
    for name, loss in expected.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-4), name
    states = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    for (name, mine), other in states:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, msg=name)


def test_an_epochs_losses_are_means_over_its_images():
    trainer = make_trainer(small_detector(), replace(SGD, learning_rate=1e-12))
    batches = [make_batch(2), make_batch(1, first=2)]
    trainer.train_epoch(batches)
    result = trainer.finish_epoch()
    means = {}
    for batch in batches:
        inputs = trainer._inputs(batch)
        for name, loss in training_losses(trainer.model, *inputs).losses().items():
            means[name] = means.get(name, 0) + len(batch) * loss.item() / 3
    assert result.losses == pytest.approx(means, rel=1e-4)
    assert result.train_loss == pytest.approx(sum(means.values()), rel=1e-4)
    assert (result.images, result.skipped_steps, result.parts) == (3, 0, 1)
    assert result.seconds > 0


def test_the_gradient_is_clipped_to_its_norm():
    norms = []
    for clip in (0.0, 0.1):
        model = small_detector()
        before = copy.deepcopy(model)
        trainer = make_trainer(model, replace(SGD, momentum=0.0, learning_rate=1.0, clip_norm=clip))
        with trainer.training():
            trainer.train_step(make_batch(2))
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        moved = torch.cat([(new - old).detach().flatten() for new, old in pairs])
        norms.append(float(moved.norm()))
    assert norms[0] > 0.2
    assert norms[1] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_detector_learns_a_batch_by_heart(amp):
    recipe = replace(SGD, optimizer="adamw", learning_rate=0.002, amp=amp)
    model = small_detector(frozen_norms=False)
    trainer = make_trainer(model, recipe)
    losses = []
    for epoch in (1, 2):
        trainer.start_epoch(epoch)
        trainer.train_epoch([make_batch(4)] * 8)
        losses.append(trainer.finish_epoch().train_loss)
    assert losses[1] < 0.7 * losses[0]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert "forward" not in vars(model.backbone)


@pytest.mark.fault("P1-15")
def test_images_without_boxes_train_the_background():
    trainer = make_trainer(small_detector())
    trainer.train_epoch([make_batch(2, boxes=0)])
    result = trainer.finish_epoch()
    assert result.losses["loss_objectness"] > 0
    assert result.losses["loss_box_reg"] == 0


def test_a_trainer_continues_from_its_state():
    recipe = replace(SGD, ema_decay=0.9, warmup_steps=3)
    trainers = [make_trainer(small_detector(), recipe) for _ in range(2)]
    trainers[0].train_epoch([make_batch(2), make_batch(3)])
    trainers[1].model.load_state_dict(trainers[0].model.state_dict())
    trainers[1].load_state_dict(copy.deepcopy(trainers[0].state_dict()))
    for trainer in trainers:
        trainer.train_epoch([make_batch(2, seed=5)])
    assert_same(*(t.model.state_dict() for t in trainers), tolerance=0)
    results = [trainer.finish_epoch() for trainer in trainers]
    assert results[0].losses == results[1].losses
    assert all(map(torch.equal, trainers[0].ema.parameters, trainers[1].ema.parameters))


# --- parts of a batch -------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    batch = make_batch(5, dtype=torch.float64)
    whole = gradients(make_trainer(exact_detector()), batch)
    split = gradients(make_trainer(exact_detector(), replace(SGD, accumulate=parts)), batch)
    assert_same(whole, split, tolerance=1e-12)


@pytest.mark.fault("P1-54")
def test_running_out_of_memory_splits_the_batch_and_changes_no_gradient(monkeypatch, caplog):
    """More than two images at a time do not fit; it shows in the backward pass first."""
    forward = engine.Trainer._forward
    sizes = []

    def limited(self, part):
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, part)

    batch = make_batch(6, dtype=torch.float64)
    whole = gradients(make_trainer(exact_detector()), batch)
    monkeypatch.setattr(engine.Trainer, "_forward", limited)
    trainer = make_trainer(exact_detector())
    assert_same(whole, gradients(trainer, batch), tolerance=1e-12)
    assert sizes == [6, 3, 2, 2, 2]  # one, two, four parts of which three have images
    assert "such batches are computed in 4 parts from here on; the gradients stay" in caplog.text
    sizes.clear()
    gradients(trainer, batch)
    assert sizes == [2, 2, 2]  # remembered
    assert trainer.parts == {(64, 96): 4}


def test_an_attempt_that_ran_out_of_memory_does_not_count_for_the_statistics(monkeypatch):
    backward = torch.Tensor.backward

    def limited(self, *args, **kwargs):
        if not limited.done:
            limited.done = True
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        backward(self, *args, **kwargs)

    limited.done = False
    monkeypatch.setattr(torch.Tensor, "backward", limited)
    model = small_detector(frozen_norms=False)
    trainer = make_trainer(model)
    trainer.train_epoch([make_batch(4)])
    assert trainer.finish_epoch().parts == 2
    steps = {int(b) for name, b in model.named_buffers() if name.endswith("batches_tracked")}
    assert steps == {2}  # one for each part; the first attempt is forgotten


def test_another_error_is_no_lack_of_memory(monkeypatch):
    def broken(self, part):
        raise RuntimeError("the size of tensor a must match")

    monkeypatch.setattr(engine.Trainer, "_forward", broken)
    with pytest.raises(RuntimeError, match="must match"):
        make_trainer(small_detector()).train_epoch([make_batch(3)])


@pytest.mark.fault("P1-54")
def test_one_image_that_does_not_fit_is_told_with_its_size(monkeypatch):
    def never(self, part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.Trainer, "_forward", never)
    with pytest.raises(UserError, match=r"^one image of 96x64 px: does not fit .*--min-size"):
        make_trainer(small_detector()).train_epoch([make_batch(3)])


# --- half precision ---------------------------------------------------------------------------


def test_anchors_and_targets_are_those_of_fp32_bit_for_bit(monkeypatch):
    """What the losses are computed from, recorded on their way into the sums."""
    from common import training_losses as losses

    recorded = {}
    batch = make_batch(3, canvas=(64, 639))  # bfloat16 knows even numbers only from 256 on

    def recording(name, original):
        def record(rpn, output, samples):
            recorded[name] = (
                output.anchors[0].clone(), samples.index, samples.positive, samples.truth.clone()
            )  # fmt: skip
            return original(rpn, output, samples)

        return record

    original = losses._rpn_sums
    for amp in ("off", "bf16"):
        monkeypatch.setattr(losses, "_rpn_sums", recording(amp, original))
        trainer = make_trainer(small_detector(), replace(SGD, amp=amp))
        with trainer.training():
            trainer.train_step(batch)
    for exact, half in zip(recorded["off"], recorded["bf16"], strict=True):
        assert exact.dtype == half.dtype
        assert torch.equal(exact, half)
    # The same check fails with autocast around the whole model, as others have it.
    monkeypatch.setattr(losses, "_rpn_sums", recording("whole", original))
    model = small_detector()
    trainer = make_trainer(model)
    with torch.autocast("cpu", torch.bfloat16):
        training_losses(model, *trainer._inputs(batch))
    assert not torch.equal(recorded["whole"][0].float(), recorded["off"][0])


def test_fp16_scales_the_loss_and_skips_what_overflows(tmp_path):
    """The same code on a CPU, which has no fast arithmetic for it."""
    model = small_detector()
    trainer = make_trainer(model, replace(SGD, amp="fp16", learning_rate=0.001), folder=tmp_path)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = copy.deepcopy(model.state_dict())
    trainer.train_epoch([make_batch(1)])
    assert trainer.scaler.get_scale() == 2.0**59
    assert_same(model.state_dict(), before, tolerance=0)
    trainer.scaler.update(2.0**8)
    trainer.train_epoch([make_batch(1)])
    assert trainer.scaler.get_scale() == 2.0**8
    assert trainer.finish_epoch().skipped_steps == 0  # finding its scale is no fault
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fp16_steps_without_an_image_of_its_own():
    """The first batch of a rank may be empty; the others step, so it has to."""
    trainer = make_trainer(small_detector(), replace(SGD, amp="fp16"))
    trainer.train_epoch([make_batch(2).part(0, 0), make_batch(1)])
    assert trainer.totals.step == 2


def test_fp16_that_can_scale_no_less_ends_with_advice(tmp_path):
    trainer = make_trainer(small_detector(), replace(SGD, amp="fp16"), folder=tmp_path)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with torch.no_grad():
        trainer.model.roi_heads.box_head.fc6.weight.mul_(1e30)
    with pytest.raises(UserError, match="in a row – lower --lr"):
        trainer.train_epoch([make_batch(1)] * 12)


# --- losses that are no number ----------------------------------------------------------------


class Spoilt:
    """Makes the loss of chosen steps NaN, as an overflow would."""

    def __init__(self, monkeypatch, steps, value=torch.nan):
        forward, self.calls = engine.Trainer._forward, 0

        def spoil(trainer, part):
            found = forward(trainer, part)
            self.calls += 1
            if self.calls - 1 in steps:
                found.sums["loss_box_reg"] = found.sums["loss_box_reg"] * value
            return found

        monkeypatch.setattr(engine.Trainer, "_forward", spoil)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("every", [1, 10])  # how often a CPU and a GPU are looked at
@pytest.mark.fault("P1-53")
def test_a_bad_step_is_skipped_and_named(tmp_path, monkeypatch, caplog, every, value):
    good, spoilt = small_detector(), small_detector()
    batches = [make_batch(2, first=2 * k) for k in range(4)]
    trainers = [
        make_trainer(m, replace(SGD, schedule="step"), folder=tmp_path) for m in (good, spoilt)
    ]
    for trainer in trainers:
        trainer.monitor.every = every
    trainers[0].train_epoch([batches[0], batches[2], batches[3]])
    Spoilt(monkeypatch, {1}, value)
    trainers[1].train_epoch(batches)
    assert_same(good.state_dict(), spoilt.state_dict(), tolerance=0)
    assert "epoch 1, step 2: loss_box_reg is not a finite number" in caplog.text
    assert "first parameter without a finite gradient: backbone." in caplog.text
    assert "Images: image_2.png, image_3.png" in caplog.text
    saved = torch.load(tmp_path / "bad_batch_epoch1_step2.pth", weights_only=True)
    assert torch.equal(saved["images"], batches[1].images)
    assert saved["image_ids"] == [2, 3]
    assert saved["targets"][0].keys() == {"boxes", "labels"}
    result = trainers[1].finish_epoch()
    assert (result.skipped_steps, result.images) == (1, 8)
    assert result.losses == trainers[0].finish_epoch().losses  # the means of the other steps


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"amp": "fp16"}])
def test_an_infinite_loss_with_finite_gradients_is_no_step(tmp_path, monkeypatch, changes):
    """Smooth L1 of an infinite target: the gradient is one."""
    forward = engine.Trainer._forward

    def infinite(self, part):
        found = forward(self, part)
        found.sums["loss_box_reg"] = found.sums["loss_box_reg"] + torch.inf
        return found

    monkeypatch.setattr(engine.Trainer, "_forward", infinite)
    model = small_detector()
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer(model, replace(SGD, **changes), folder=tmp_path)
    trainer.train_epoch([make_batch(2)])
    assert_same(model.state_dict(), before, tolerance=0)
    result = trainer.finish_epoch()
    assert result.skipped_steps == 1
    assert result.train_loss == 0


def test_running_statistics_survive_a_bad_step(tmp_path, monkeypatch):
    model = small_detector(frozen_norms=False)
    trainer = make_trainer(model, folder=tmp_path)
    trainer.monitor.every = 2
    trainer.train_epoch([make_batch(2)])
    forward = engine.Trainer._forward

    def poisoned(self, part):  # as an overflow in a convolution: NaN goes through every norm
        with torch.no_grad():
            for buffer in self.statistics:
                if buffer.is_floating_point():
                    buffer.fill_(torch.nan)
        found = forward(self, part)
        found.sums["loss_box_reg"] = found.sums["loss_box_reg"] * torch.nan
        return found

    monkeypatch.setattr(engine.Trainer, "_forward", poisoned)
    trainer.train_epoch([make_batch(2)] * 2)
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.fault("P1-53")
def test_many_bad_steps_in_a_row_end_the_run_with_advice(tmp_path, monkeypatch):
    model = small_detector()
    before = copy.deepcopy(model.state_dict())
    Spoilt(monkeypatch, set(range(99)))
    trainer = make_trainer(model, folder=tmp_path)
    with pytest.raises(
        UserError, match=r"epoch 1, step 5: loss_box_reg .* 5 steps in a row – lower"
    ):
        trainer.train_epoch([make_batch(2)] * 9)
    assert_same(model.state_dict(), before, tolerance=0)
    assert len(list(tmp_path.glob("bad_batch_*.pth"))) == 5


def test_bad_steps_that_are_not_in_a_row_do_not_end_it(tmp_path, monkeypatch):
    Spoilt(monkeypatch, {1, 2, 3, 4, 6, 7, 8})
    trainer = make_trainer(small_detector(), folder=tmp_path)
    trainer.train_epoch([make_batch(2)] * 10)
    assert trainer.finish_epoch().skipped_steps == 7
    assert len(list(tmp_path.glob("bad_batch_*.pth"))) == 5  # no disk is filled


@pytest.mark.parametrize("size", [(1, 1), (1, 96), (64, 2)])
@pytest.mark.fault("P1-46")
def test_images_of_extreme_shape_train(size):
    batch = make_batch(2, boxes=1)
    batch.sizes = (size, size)
    batch.boxes[:] = torch.tensor([0.0, 0, *size[::-1]])
    trainer = make_trainer(small_detector())
    trainer.train_epoch([batch])
    assert 0 < trainer.finish_epoch().train_loss < 1e4
