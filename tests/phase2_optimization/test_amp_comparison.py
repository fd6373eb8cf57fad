"""How a precision comparison measures: arms in step, one seed at a time, memory by itself."""

import dataclasses

import numpy as np
import pytest
import torch

from common import timing
from common.coco import load_split
from common.inference_graph import InferenceGraph
from common.models import load_model
from phase2_optimization import amp_comparison
from phase2_optimization.amp_arm import Precision, TrainingArm
from phase2_optimization.amp_comparison import AGAIN, AmpComparison, ArmRecord, Settings

CPU = torch.device("cpu")
BF16 = Precision("", torch.bfloat16)


def settings(steps: int = 2, **changes) -> Settings:
    values = {"batch_size": 2, "learning_rate": 1e-3, "max_images": 1, "seeds": (0, 1)}
    return Settings(steps=steps, spare_emulated=False, **{**values, **changes})


@pytest.mark.parametrize(
    ("steps", "parts"),
    [(1, [1]), (7, [7]), (13, [13]), (14, [7, 7]), (20, [10, 10]), (100, [7] * 12 + [8] * 2)],
)
def test_steps_are_timed_in_parts_of_at_least_seven(steps, parts):
    assert amp_comparison._parts(steps) == parts


@pytest.fixture
def comparison(model_path, data_path, monkeypatch):
    arms = {"fp32": Precision(""), "amp_bf16": Precision("", tf32=True)}
    monkeypatch.setattr(amp_comparison, "precisions", lambda device: arms)
    monkeypatch.setattr(timing, "release_free_memory", lambda device: None)  # a garbage collection
    model = load_model(model_path, CPU).model
    train, val = load_split(data_path, "train"), load_split(data_path, "val")
    return AmpComparison(model, train, val, CPU, settings())


def test_arms_of_a_seed_see_the_same_batches_and_only_one_seed_is_alive(comparison, monkeypatch):
    seen: dict[int, list] = {}
    alive: set[int] = set()
    enter, leave, loss = TrainingArm.__enter__, TrainingArm.__exit__, TrainingArm._loss

    def noted_enter(self):
        alive.add(self._seed)
        assert len(alive) == 1
        return enter(self)

    def noted_leave(self, *error):
        alive.discard(self._seed)
        return leave(self, *error)

    def noted_loss(self, batch, seeds):
        seen.setdefault(id(self), []).append((self._seed, int(batch.images.sum()), seeds))
        return loss(self, batch, seeds)

    monkeypatch.setattr(TrainingArm, "__enter__", noted_enter)
    monkeypatch.setattr(TrainingArm, "__exit__", noted_leave)
    monkeypatch.setattr(TrainingArm, "_loss", noted_loss)
    arms = []
    make = comparison._arm
    monkeypatch.setattr(comparison, "_arm", lambda *words: arms.append(make(*words)) or arms[-1])
    comparison.train()
    histories = [seen[id(arm)] for arm in arms]
    assert len(histories) == 5  # FP32, AMP and FP32 again in turns, then two by themselves
    assert histories[0] == histories[1] == histories[2]
    assert histories[3] == histories[4] != histories[0]
    assert {seed for history in histories[:3] for seed, *_ in history} == {0}


def test_fp32_again_is_noise_and_no_arm_of_its_own(comparison):
    comparison.train()
    assert len(comparison.again_ms) == 2
    assert list(comparison.records) == ["fp32", "amp_bf16"]
    assert comparison.records["fp32"].step_ms != comparison.again_ms


def test_a_noise_arm_that_does_not_fit_is_done_without(comparison, monkeypatch):
    make = comparison._arm

    def refuse(name, seed, batches):
        if name == AGAIN:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(name, seed, batches)

    monkeypatch.setattr(comparison, "_arm", refuse)
    comparison.train()
    assert comparison.again_ms == []
    assert len(comparison.records["amp_bf16"].step_ms) == 2


def test_memory_running_out_with_a_later_seed_keeps_what_was_measured(comparison, monkeypatch):
    make = comparison._arm

    def refuse(name, seed, batches):
        if (name, seed) == ("amp_bf16", 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(name, seed, batches)

    monkeypatch.setattr(comparison, "_arm", refuse)
    comparison.train()
    amp, fp32 = comparison.records["amp_bf16"], comparison.records["fp32"]
    assert amp.failure == "oom"
    assert [len(amp.runs), len(fp32.runs)] == [1, 2]
    assert len(amp.step_ms) == 2


def test_memory_is_that_of_the_largest_batch(comparison, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        comparison, "_peak_of_one_step", lambda name, batch: sizes.append(batch.images.shape)
    )
    small = comparison._batches(0)[0]
    large = small._replace(images=torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    monkeypatch.setattr(comparison, "_batches", lambda seed: [small, large, small])
    comparison.check()
    assert sizes == [large.images.shape] * 2


def test_an_operation_the_device_lacks_makes_an_arm_unavailable(comparison, monkeypatch):
    def refuse(name, batch):
        if name == "amp_bf16":
            raise NotImplementedError("\"nms\" not implemented for 'BFloat16'\nmore")

    monkeypatch.setattr(comparison, "_peak_of_one_step", refuse)
    comparison.check()
    failure = comparison.records["amp_bf16"].failure
    assert failure == "unavailable: \"nms\" not implemented for 'BFloat16'"


def test_inference_is_timed_under_the_autocast_of_training(comparison, monkeypatch):
    """With stand-ins: which arm computes in what, and that all of them see the same images."""
    seen: dict[str, list] = {}
    monkeypatch.setattr(amp_comparison, "INFERENCE_ROUNDS", 2)

    def stub(name):
        def predict_next(images):
            seen.setdefault(name, []).append(int(next(images).sum()))

        return predict_next

    monkeypatch.setattr(comparison, "_predictor", stub)
    comparison.time_inference()
    assert seen["fp32"] == seen["amp_bf16"] == seen[AGAIN]
    assert len(seen["fp32"]) == 4  # two to warm up, two timed
    assert {len(ms) for ms in comparison.inference["ms"].values()} == {2}


def test_autocast_of_inference_is_undone_after_each_image(comparison, monkeypatch):
    dtypes = []
    run = InferenceGraph.forward

    def noted(self, images):
        dtypes.append(torch.float32 if "forward" not in vars(self.backbone) else torch.bfloat16)
        return run(self, images)

    monkeypatch.setattr(InferenceGraph, "forward", noted)
    low = dataclasses.replace(comparison.records["amp_bf16"], precision=BF16)
    comparison.records["amp_bf16"] = low
    image = np.zeros((48, 64, 3), np.uint8)
    predict = comparison._predictor("amp_bf16")
    predict(iter([image]))
    assert dtypes == [torch.bfloat16]
    comparison._predictor("fp32")(iter([image]))
    comparison._predictor(AGAIN)(iter([image]))
    assert dtypes[1:] == [torch.float32] * 2


def test_inference_in_a_precision_the_device_lacks_says_so(comparison):
    lacking = Precision("", torch.bfloat16, unavailable="why")
    comparison.records["amp_bf16"] = ArmRecord(lacking, "unavailable: why")
    comparison.time_inference()
    assert comparison.inference["status"] == "unavailable: why"
    assert "ms" not in comparison.inference
