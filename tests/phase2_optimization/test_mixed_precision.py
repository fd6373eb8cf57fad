"""The precision comparison as a command: its report on a tiny model, its guards, how it fails."""

import json
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common import timing
from phase2_optimization import amp_comparison, amp_plot, mixed_precision
from phase2_optimization.amp_arm import Precision, TrainingArm

ARMS = ["fp32", "tf32", "amp_fp16", "amp_bf16", "amp_stock"]
STAND_INS = {  # FP32 under AMP's name: the faults of an arm do not need bfloat16 to be slow
    "fp32": Precision("the baseline"),
    "amp_bf16": Precision("stands in for bfloat16", tf32=True),
}


def read(output) -> dict | None:
    report = output / "amp_comparison.json"
    return json.loads(report.read_text(encoding="utf-8")) if report.exists() else None


def by_name(report: dict) -> dict[str, dict]:
    return {arm["name"]: arm for arm in report["arms"]}


@pytest.fixture(scope="module")
def compared(model_path, data_path, tmp_path_factory):
    """All arms, from a negative seed on, without seaborn and without a display."""
    output = tmp_path_factory.mktemp("amp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "seaborn", None)
        patch.delenv("DISPLAY", raising=False)
        patch.setattr(amp_comparison, "INFERENCE_ROUNDS", 2)
        patch.setattr(timing, "release_free_memory", lambda device: None)  # takes long in a test
        status = mixed_precision.main(
            f"--model-path {model_path} --data-path {data_path} --output {output} --device cpu "
            "--steps 1 --batch-size 2 --max-images 2 --seeds 2 --seed -1".split()
        )
    assert status == 0
    return output


@pytest.fixture
def run(model_path, data_path, tmp_path, monkeypatch):
    """Runs the command on two quick arms; returns its exit status and the report, if any."""
    monkeypatch.setattr(amp_comparison, "precisions", lambda device: dict(STAND_INS))
    monkeypatch.setattr(amp_comparison.AmpComparison, "time_inference", lambda self: None)
    monkeypatch.setattr(amp_plot, "draw", lambda report, path: None)
    monkeypatch.setattr(timing, "release_free_memory", lambda device: None)  # a garbage collection

    def run_command(*extra: str) -> tuple[int, dict | None]:
        common = f"--model-path {model_path} --data-path {data_path} --output {tmp_path}"
        small = "--device cpu --steps 2 --batch-size 2 --max-images 1 --seeds 1"
        status = mixed_precision.main([*common.split(), *small.split(), *extra])
        return status, read(tmp_path)

    return run_command


@pytest.fixture
def spoil(monkeypatch):
    """Calls `change(number)` in each step of one arm (AMP's, if not said), counted from 1."""
    step = TrainingArm.step

    def spoil_arm(change, *, amp: bool = True) -> None:
        made = []

        def spoilt(self) -> None:
            if self._precision.tf32 is amp:
                made.append(1)
                change(len(made))
            step(self)

        monkeypatch.setattr(TrainingArm, "step", spoilt)

    return spoil_arm


# --- the report -------------------------------------------------------------------------------


def test_every_arm_has_a_row_with_the_keys_of_the_contract(compared):
    report = read(compared)
    assert report["schema"] == "amp_comparison/1"
    assert report["complete"] is True
    assert report["tf32"] is False
    assert report["seeds"] == [-1, 0]
    assert (report["steps"], report["warmup_steps"], report["timed_steps"]) == (2, 1, 1)
    assert report["final_loss_is_the_mean_of_steps"] == 2  # of five, had there been as many
    arms = by_name(report)
    assert list(arms) == ARMS
    for name in ("fp32", "amp_bf16", "amp_stock"):
        arm = arms[name]
        assert arm["status"] == "ok"
        assert set(arm["step_ms"]) == {"p50", "p90", "p99", "mean"}
        assert len(arm["step_times_ms"]) == 1
        assert arm["peak_memory_mib"] > 10
        assert 0 <= arm["map"] <= arm["map_50"] <= 1
        assert [run["seed"] for run in arm["runs"]] == [-1, 0]
        for of_seed in arm["runs"]:
            assert len(of_seed["loss"]) == 2
            assert of_seed["final_loss"] == pytest.approx(np.mean(of_seed["loss"]))
        assert arm["final_loss"] == pytest.approx(np.mean([r["final_loss"] for r in arm["runs"]]))
        assert arm["speedup"]["ratio"] > 0
        assert arm["speedup"]["ci95"] is None  # of one timed step
    assert report["speedup"] == arms["amp_bf16"]["speedup"]


def test_an_arm_that_cannot_run_says_why_and_has_no_numbers(compared):
    arms = by_name(read(compared))
    assert "needs a CUDA GPU of compute capability 8.0" in arms["tf32"]["status"]
    assert arms["amp_fp16"]["status"].startswith("unavailable: float16 with loss scaling needs")
    for name in ("tf32", "amp_fp16"):
        assert arms[name]["speedup"]["ratio"] is None
        assert arms[name]["step_ms"] is arms[name]["final_loss"] is arms[name]["map_50"] is None


def test_arms_stay_close_and_seeds_differ(compared):
    arms = by_name(read(compared))
    for fp32, amp in zip(arms["fp32"]["runs"], arms["amp_bf16"]["runs"], strict=True):
        assert fp32["loss"] != amp["loss"]  # the precision did change
        np.testing.assert_allclose(amp["loss"], fp32["loss"], rtol=0.5)  # steps on noise
    first, second = (run["loss"] for run in arms["fp32"]["runs"])
    assert first[0] != second[0]


def test_too_few_steps_and_inference_are_read_as_such(compared):
    report = read(compared)
    assert "one timed step cannot tell training speeds apart" in report["reading"]
    assert report["limits"].startswith("2 steps show whether")
    assert report["inference"]["batch_size"] == 1
    for way in report["inference"]["ways"]:
        assert way["status"] == "ok"
        assert way["precision"] == "bfloat16"
        assert set(way["latency_ms"]) == {"fp32", "half"}
        assert way["iterations"] == 2
        assert way["speedup"]["verdict"] == "too few rounds to tell"
        assert way["speedup"]["ci95"] is way["speedup"]["noise"] is None
    names = [way["name"] for way in report["inference"]["ways"]]
    assert names == ["shipped_graph", "stock_autocast"]
    assert (
        "Inference, one image at a time: the inference graph of the video pipeline in bfloat16 was "
        "timed too few" in report["reading"]
    )
    assert "own forward pass under autocast to bfloat16 was timed too few" in report["reading"]


def test_the_figure_needs_neither_seaborn_nor_a_display(compared):
    with Image.open(compared / "optimization_comparison.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_by_default_emulated_arms_are_spared(run, monkeypatch):
    """FP32 has three seeds, AMP the first of them, and autocast around everything none."""
    emulated = Precision("emulated", tf32=True, emulated=True)
    stock = Precision("around everything", stock=True, emulated=True)
    arms = {"fp32": STAND_INS["fp32"], "amp_bf16": emulated, "amp_stock": stock}
    monkeypatch.setattr(amp_comparison, "precisions", lambda device: arms)
    build = mixed_precision.build_parser
    monkeypatch.setattr(mixed_precision, "build_parser", lambda: _without_seeds(build()))
    status, report = run()
    arms = by_name(report)
    assert status == 0
    assert [len(arm["runs"]) for arm in arms.values()] == [3, 1, 0]
    assert arms["amp_stock"]["status"].startswith("skipped: bfloat16 is emulated")
    assert arms["amp_bf16"]["against_fp32"]["final_loss"]["seeds"] == 1


def _without_seeds(parser):
    parse = parser.parse_args

    def parse_args(argv):
        args = parse(argv)
        args.seeds = None
        return args

    parser.parse_args = parse_args
    return parser


def test_a_batch_of_more_images_than_there_are_is_told(run, capsys):
    """The tiny data set has six; an older way made it six without a word."""
    _, report = run("--batch-size", "7")
    assert report["batch_size"] == 6
    assert "The train split has 6 images: one batch of all of them" in capsys.readouterr().out


# --- guards -----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_makes_the_arm_invalid_and_the_report_stays_json(run, monkeypatch):
    loss = TrainingArm._loss

    def spoilt(self, batch, seeds):
        value = loss(self, batch, seeds)
        return value * torch.nan if self._precision.tf32 and len(self._losses) == 1 else value

    monkeypatch.setattr(TrainingArm, "_loss", spoilt)
    status, report = run()
    amp = by_name(report)["amp_bf16"]
    assert status == 0
    assert amp["status"] == (
        "invalid: the loss was no finite number at 1 of 3 steps of seed 0, first at step 2"
    )
    assert amp["final_loss"] is None
    assert amp["skipped_steps"] == 1
    assert by_name(report)["fp32"]["status"] == "ok"
    assert "worth nothing: it is invalid" in report["reading"]


def test_out_of_memory_in_an_arm_is_a_row_and_the_others_go_on(run, spoil):
    def fail(number):
        raise torch.OutOfMemoryError("CUDA out of memory")

    spoil(fail)
    status, report = run()
    arms = by_name(report)
    assert status == 0
    assert arms["amp_bf16"]["status"] == "oom"
    assert arms["amp_bf16"]["step_ms"] is report["speedup"]["ratio"] is None
    assert arms["fp32"]["status"] == "ok"
    assert arms["fp32"]["step_ms"]["p50"] > 0
    assert "amp_bf16 was not compared with fp32: oom" in report["reading"]


def test_out_of_memory_while_timing_starts_again_without_the_arm(run, spoil):
    def fail_late(number):
        if number == 3:  # its memory was seen, and its warm-up step fits
            raise MemoryError

    spoil(fail_late)
    status, report = run()
    arms = by_name(report)
    assert status == 0
    assert arms["amp_bf16"]["status"] == "oom"
    assert arms["amp_bf16"]["step_times_ms"] == []
    assert len(arms["fp32"]["step_times_ms"]) == 2


def test_fp32_that_does_not_fit_is_told_to_the_user(run, spoil, capsys):
    def fail(number):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    spoil(fail, amp=False)
    assert run() == (2, None)
    error = capsys.readouterr().err
    assert error.startswith("error: --batch-size 2: the FP32 training does not fit")
    assert "use a smaller --batch-size" in error
    assert error.count("\n") == 1


def test_a_bug_is_not_taken_for_a_lack_of_memory(run, spoil, capsys):
    def fail(number):
        raise RuntimeError("expected scalar type Float")

    spoil(fail)
    assert run() == (1, None)
    assert "expected scalar type Float" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_keeps_its_times_and_says_so(run, spoil, monkeypatch, number, status):
    monkeypatch.setattr(amp_comparison, "MIN_ROUNDS", 1)  # each step is a part of its own

    def stop(step):
        if step == 4:  # one for the memory, one to warm up, one timed
            signal.raise_signal(number)

    spoil(stop)
    ended, report = run()
    arms = by_name(report)
    assert ended == status
    assert report["complete"] is False
    assert {len(arm["step_times_ms"]) for arm in arms.values()} == {report["timed_steps"]} == {1}
    assert arms["amp_bf16"]["speedup"]["verdict"] == "too few rounds to tell"
    assert arms["amp_bf16"]["status"].startswith("stopped")
    assert arms["amp_bf16"]["map_50"] is None


def test_a_run_stopped_before_it_has_times_leaves_an_older_report(run, spoil, tmp_path):
    (tmp_path / "amp_comparison.json").write_text('{"older": 1}', encoding="utf-8")

    def stop(step):
        raise KeyboardInterrupt

    spoil(stop)
    assert run() == (130, {"older": 1})


# --- what the user can get wrong --------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "0"],
        ["--steps", "-1"],
        ["--steps", "1.5"],
        ["--batch-size", "0"],
        ["--seeds", "0"],
        ["--seeds", "many"],
        ["--learning-rate", "nan"],
        ["--lr", "0"],
        ["--max-images", "-3"],
        ["--step", "3"],
    ],
    ids=" ".join,
)
def test_bad_options_end_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        mixed_precision.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_output_that_cannot_be_written_is_told_before_there_is_work_to_lose(
    run, spoil, tmp_path, capsys
):
    spoil(lambda number: pytest.fail("it has begun"))
    (tmp_path / "file").touch()
    assert run("--output", str(tmp_path / "file" / "folder")) == (2, None)
    assert "choose another --output" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_command_refuses_a_missing_gpu(tmp_path, capsys):
    assert mixed_precision.main(["--device", "cuda", "--output", str(tmp_path)]) == 2
    assert "no CUDA device found" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- on a GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_arm_of_a_gpu_trains(model_path, data_path, tmp_path):
    status = mixed_precision.main(
        f"--model-path {model_path} --data-path {data_path} --output {tmp_path} --device cuda "
        "--steps 7 --batch-size 2 --max-images 2 --seeds 2".split()
    )
    arms = by_name(read(tmp_path))
    assert status == 0
    assert arms["amp_fp16"]["status"] == arms["amp_stock"]["status"] == "ok"
    ampere = torch.cuda.get_device_capability() >= (8, 0)
    for name in ("tf32", "amp_bf16"):
        assert (arms[name]["status"] == "ok") is ampere
    first = arms["fp32"]["runs"][0]["loss"][0]
    for name in ("amp_fp16", "tf32", "amp_bf16"):
        if arms[name]["runs"]:
            assert arms[name]["runs"][0]["loss"][0] == pytest.approx(first, rel=0.02)
            assert arms[name]["runs"][0]["loss"][0] != first or name == "tf32"
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is False
