"""The precision comparison on a tiny model, and how its result is put into words."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.coco import load_split
from common.models import load_model
from phase2_optimization import mixed_precision
from phase2_optimization.amp_arm import TrainingArm, precisions, training_batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def compared(model_path, data_path, tmp_path_factory):
    output = tmp_path_factory.mktemp("amp")
    status = mixed_precision.main(
        f"--model-path {model_path} --data-path {data_path} --output {output} --device cpu "
        "--steps 3 --batch-size 2 --max-images 2".split()
    )
    assert status == 0
    return output


def test_report_keeps_the_contract(compared):
    report = json.loads((compared / "amp_comparison.json").read_text(encoding="utf-8"))
    assert report["schema"] == "amp_comparison/1"
    assert [arm["name"] for arm in report["arms"]] == ["fp32", "amp_bf16"]
    for arm in report["arms"]:
        assert {"p50", "p90", "p99"} <= set(arm["step_ms"])
        assert arm["peak_memory_mib"] > 10
        assert 0 <= arm["map_50"] <= 1
        assert arm["final_loss"] == pytest.approx(np.mean(arm["loss"][-5:]))
        assert len(arm["loss"]) == report["steps"] == 3 + mixed_precision.WARMUP_STEPS
    low, high = report["speedup"]["ci95"]
    assert low <= report["speedup"]["ratio"] <= high
    assert report["tf32"] is False
    assert "too few" in report["reading"]


def test_both_arms_start_alike_and_stay_close(compared):
    report = json.loads((compared / "amp_comparison.json").read_text(encoding="utf-8"))
    fp32, amp = (np.array(arm["loss"]) for arm in report["arms"])
    assert not np.array_equal(fp32, amp)  # the precision did change
    np.testing.assert_allclose(amp[0], fp32[0], rtol=0.02)
    np.testing.assert_allclose(amp, fp32, rtol=0.5)  # steps on noise drift apart


def test_picture_is_a_png_of_three_panels(compared):
    with Image.open(compared / "optimization_comparison.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 2 * picture.height


@pytest.fixture
def model(model_path):
    return load_model(model_path, CPU).model


@pytest.fixture
def arms(model, data_path):
    batches = training_batches(load_split(data_path, "train"), 2, 3, CPU, seed=0)
    return lambda dtype: TrainingArm(model, batches, dtype, 1e-3, CPU, seed=0)


def test_equal_arms_make_equal_steps_even_when_taking_turns(arms):
    first, second = arms(torch.float32), arms(torch.float32)
    for _ in range(3):
        first.step()
        torch.rand(7)  # whatever else draws random numbers in between
        second.step()
    assert first.losses() == second.losses()
    assert first.final_loss(2) == pytest.approx(sum(first.losses()[-2:]) / 2)
    assert first.skipped_steps() == 0


def test_an_arm_trains_a_copy_of_its_model(arms, model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    arm = arms(torch.bfloat16)
    arm.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    trained = arm._model.state_dict()
    assert any(not torch.equal(before[key], value) for key, value in trained.items())


def test_amp_keeps_weights_and_gradients_in_fp32(arms):
    arm = arms(torch.bfloat16)
    arm.step()
    gradients = [p.grad for p in arm._model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.dtype is torch.float32 and torch.isfinite(g).all() for g in gradients)


def test_batches_repeat_with_their_seed_and_use_every_image_first(data_path):
    split = load_split(data_path, "train")
    batches = training_batches(split, 2, 3, CPU, seed=4)
    again = training_batches(split, 2, 3, CPU, seed=4)
    seen = set()
    for (images, targets), (same_images, _) in zip(batches, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, same_images, strict=True))
        seen |= {image.sum().item() for image in images}
        assert all(image.min() >= 0 and image.max() <= 1 for image in images)
        assert all(type(target["boxes"]) is torch.Tensor for target in targets)
    assert len(seen) == len(split.records) == 6


def test_cpu_compares_fp32_with_bfloat16():
    assert precisions(CPU) == {"fp32": torch.float32, "amp_bf16": torch.bfloat16}


def _report(low: float, ratio: float, high: float, timed_steps: int = 20) -> dict:
    arms = [
        {"name": "fp32", "peak_memory_mib": 1000.0, "map_50": 0.80, "final_loss": 0.5},
        {"name": "amp_bf16", "peak_memory_mib": 900.0, "map_50": 0.79, "final_loss": 0.5},
    ]
    return {
        "arms": arms,
        "speedup": {"ratio": ratio, "ci95": [low, high]},
        "timed_steps": timed_steps,
        "steps": timed_steps + 2,
        "memory_kind": "peak",
        "evaluated_images": 60,
    }


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((1.3, 1.4, 1.5), "trains 1.40x as fast as FP32 [1.30, 1.50]"),
        ((0.6, 0.7, 0.8), "slower than FP32 on this machine: 0.70x"),
        ((0.9, 1.1, 1.2), "no difference in speed can be told"),
    ],
)
def test_reading_claims_no_more_than_the_interval(interval, words):
    reading = mixed_precision.read_result(_report(*interval))
    assert words in reading
    assert "-10%" in reading
    assert "-1.0 points" in reading


def test_reading_says_when_the_loss_broke_down():
    report = _report(1.3, 1.4, 1.5)
    report["arms"][1]["final_loss"] = None
    assert "did not stay finite" in mixed_precision.read_result(report)


def test_plot_takes_lists_of_unequal_length(tmp_path):
    path = tmp_path / "new" / "picture.png"
    mixed_precision.plot_optimization_results([10.0, 11.0, 12.0], [5.0, 6.0], path)
    with Image.open(path) as picture:
        picture.verify()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_command_refuses_a_missing_gpu(tmp_path, capsys):
    assert mixed_precision.main(["--device", "cuda", "--output", str(tmp_path)]) == 2
    assert "no CUDA device found" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
