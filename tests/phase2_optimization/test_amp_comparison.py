"""How a precision comparison measures: arms in step, one seed at a time, memory by itself."""

import logging

import pytest
import torch

from common import timing
from common.cli import log
from common.coco import load_split
from common.models import load_model
from phase2_optimization import amp_comparison
from phase2_optimization.amp_arm import Precision, TrainingArm
from phase2_optimization.amp_comparison import AGAIN, AmpComparison, ArmRecord, Settings

CPU = torch.device("cpu")


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


def test_an_arm_that_runs_out_of_memory_while_timed_leaves_no_times(comparison, monkeypatch):
    """The others are timed anew, in other rounds."""
    measure, calls = timing.measure_interleaved, []

    def runs_out(steps, **options):
        calls.append(list(steps))
        if len(calls) == 2:
            with amp_comparison._naming("amp_bf16"):
                raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(steps, **options)

    monkeypatch.setattr(amp_comparison, "_parts", lambda steps: [1, 1])
    monkeypatch.setattr(timing, "measure_interleaved", runs_out)
    comparison.train()
    assert "amp_bf16" in calls[1]
    assert "amp_bf16" not in calls[-1]
    assert comparison.records["amp_bf16"].step_ms == []
    assert len(comparison.records["fp32"].step_ms) == 2


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


@pytest.mark.parametrize(
    ("seeds", "more"),
    [((0,), ""), ((0, 1), "; the same with 1 more seed, not timed"), ((0, 1, 2), "2 more seeds")],
)
def test_steps_are_announced_with_those_that_warm_up(comparison, monkeypatch, caplog, seeds, more):
    """Else 2 timed steps and what 3 steps have taught are at odds."""
    caplog.set_level(logging.INFO, logger=log.name)
    comparison.settings = settings(seeds=seeds)
    monkeypatch.setattr(comparison, "_peak_of_one_step", lambda name, batch: 1.0)
    comparison.check()
    (line,) = (line for line in caplog.messages if "timed" in line)
    assert line.startswith("Each precision makes 3 steps at batch size 2, 1 to warm up and 2 timed")
    assert more in line
    assert ("not timed" in line) is bool(more)


def test_an_operation_the_device_lacks_makes_an_arm_unavailable(comparison, monkeypatch):
    def refuse(name, batch):
        if name == "amp_bf16":
            raise NotImplementedError("\"nms\" not implemented for 'BFloat16'\nmore")

    monkeypatch.setattr(comparison, "_peak_of_one_step", refuse)
    comparison.check()
    failure = comparison.records["amp_bf16"].failure
    assert failure == "unavailable: \"nms\" not implemented for 'BFloat16'"


@pytest.fixture
def with_stock(comparison):
    comparison.records["amp_stock"] = ArmRecord(Precision("", torch.bfloat16, stock=True))
    return comparison


def test_inference_is_timed_in_both_ways_on_the_first_images(with_stock, monkeypatch):
    asked = []

    def stub(model, precision, images, device, rounds, seed):
        asked.append((model, precision, [image.shape for image in images], rounds, seed))
        return {"name": len(asked)}

    monkeypatch.setattr(amp_comparison, "time_inference", stub)
    monkeypatch.setattr(amp_comparison, "INFERENCE_IMAGES", 3)
    with_stock.time_inference()
    assert with_stock.inference == [{"name": 1}, {"name": 2}]
    precisions = [with_stock.records[name].precision for name in ("amp_bf16", "amp_stock")]
    sizes = [(48, 64, 3), (64, 48, 3), (48, 64, 3)]
    assert asked == [(with_stock._model, p, sizes, 30, 0) for p in precisions]


@pytest.mark.parametrize("why", ["unavailable: why", amp_comparison.SLOW])
def test_inference_that_is_left_out_says_so(with_stock, monkeypatch, why):
    unavailable = "why" if why.startswith("unavailable") else ""
    precision = Precision("", torch.bfloat16, stock=True, unavailable=unavailable)
    with_stock.records["amp_stock"] = ArmRecord(precision, why)
    monkeypatch.setattr(amp_comparison, "time_inference", lambda *_: {"status": "ok"})
    with_stock.time_inference()
    timed, left_out = with_stock.inference
    assert timed["status"] == "ok"
    assert (left_out["name"], left_out["status"]) == ("stock_autocast", why)
    assert "ms" not in left_out


def test_training_that_ran_out_of_memory_keeps_no_inference_from_being_timed(
    with_stock, monkeypatch
):
    with_stock.records["amp_bf16"].failure = "oom"
    monkeypatch.setattr(amp_comparison, "time_inference", lambda *_: {"status": "ok"})
    with_stock.time_inference()
    assert [row["status"] for row in with_stock.inference] == ["ok", "ok"]


def test_the_gpu_is_looked_at_when_it_is_warm_and_after_every_timed_part(comparison, monkeypatch):
    """Never before it has work, and no more once the steps are made."""
    made, looks = [], []
    step = TrainingArm.step

    def noted(self):
        made.append(1)
        step(self)

    monkeypatch.setattr(TrainingArm, "step", noted)
    monkeypatch.setattr(
        amp_comparison, "gpu_state", lambda device: looks.append(len(made)) or {"look": len(looks)}
    )
    monkeypatch.setattr(amp_comparison, "_parts", lambda steps: [1, 1])
    comparison.train()
    assert looks == [3, 6, 9]  # three arms: a warm-up step of each, and two parts of one step
    assert (comparison.gpu_before, comparison.gpu_after) == ({"look": 1}, {"look": 3})
