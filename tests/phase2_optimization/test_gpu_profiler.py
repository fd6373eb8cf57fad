"""GPUProfiler, and the command with what it writes and how it ends."""

import gzip
import json
import mmap
import os
import signal
import time

import pytest
import torch

from common.cli import UserError
from common.fastpath import native_amp
from phase2_optimization import flops, gpu_profiler, memory_timeline, profiling, roofline
from phase2_optimization.advice import Setting
from phase2_optimization.gpu_profiler import GPUProfiler
from phase2_optimization.profile_steps import DTYPES, name_of
from phase2_optimization.stages import NETWORKS

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


# --- GPUProfiler ------------------------------------------------------------------------------


def test_start_and_stop_record_time_and_memory_under_their_tag():
    profiler = GPUProfiler("cpu")
    profiler.start("sleep")
    time.sleep(0.02)
    elapsed_s = profiler.stop()
    (record,) = profiler.metrics["sleep"]
    assert record["time_s"] == elapsed_s
    assert elapsed_s >= 0.02
    assert record["peak_memory_mib"] >= record["memory_allocated_mib"] > 10
    assert record["memory_reserved_mib"] == pytest.approx(record["memory_allocated_mib"], rel=0.2)


def test_the_tag_is_operation_unless_another_is_given():
    profiler = GPUProfiler()
    profiler.start()
    profiler.stop()
    with profiler.profile():
        pass
    assert list(profiler.metrics) == ["operation"]
    assert len(profiler.metrics["operation"]) == 2
    assert profiler.metrics["never measured"] == []


def test_nested_measurements_end_innermost_first_and_pass_their_peak_on():
    profiler = GPUProfiler("cpu")
    with profiler.profile("outer"):
        # From the system itself: an allocator may hand out, and keep, what others have left.
        with profiler.profile("inner"), mmap.mmap(-1, 64 * 2**20) as block:
            block.write(b"1" * len(block))
        with profiler.profile("small"):
            pass
    outer, inner, small = (profiler.metrics[tag][0] for tag in ("outer", "inner", "small"))
    assert outer["time_s"] >= inner["time_s"] + small["time_s"]
    assert outer["peak_memory_mib"] >= inner["peak_memory_mib"]
    assert inner["peak_memory_mib"] >= small["peak_memory_mib"] + 60


def test_stop_without_start_is_an_error():
    with pytest.raises(RuntimeError, match="without start"):
        GPUProfiler("cpu").stop()


def test_a_block_that_raises_leaves_no_record_and_the_profiler_usable():
    profiler = GPUProfiler("cpu")
    with pytest.raises(ValueError, match="broken"), profiler.profile("a"):
        raise ValueError("broken")
    with profiler.profile("b"):
        pass
    assert list(profiler.metrics) == ["b"]
    with pytest.raises(RuntimeError):
        profiler.stop()


def test_summary_and_table_follow_from_the_records():
    profiler = GPUProfiler("cpu")
    for seconds in (0.001, 0.003):
        profiler.metrics["step"].append({"time_s": seconds, "peak_memory_mib": seconds * 1e5})
    row = profiler.summary()["step"]
    assert row["calls"] == 2
    assert row["p50_ms"] == pytest.approx(2.0)
    assert row["total_s"] == pytest.approx(0.004)
    assert row["peak_memory_mib"] == pytest.approx(300)
    title, line = profiler.table().splitlines()
    assert title.split()[0] == "tag"
    assert line.split() == ["step", "2", "0.004", "2.00", "2.98", "300"]


@no_cuda
def test_a_missing_gpu_asked_for_by_name_is_the_users_error():
    with pytest.raises(UserError, match="no CUDA device found"):
        GPUProfiler("cuda")


# --- the command ------------------------------------------------------------------------------

# Two images of 96 x 64 after the transform: three layers of 128 channels at 6 x 4 places, two
# tiles, and one of 192 at 3 x 2, one tile. A tile takes 36 x 36 and 16 x 36 for the transforms of
# each channel and 36 products of all channels, the direct sum 9 of them at each place.
WINOGRAD_SAVES_GFLOP = (
    2 * 2 * 3 * (9 * 128**2 * 24 - 2 * (36 * 128**2 + 52 * 36 * 128))
    + 2 * 2 * (9 * 192**2 * 6 - (36 * 192**2 + 52 * 36 * 192))
) / 1e9


@pytest.fixture(scope="module")
def profiled(model_path, data_path, tmp_path_factory):
    output = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "MATMUL_SIDES", (64,))
        patch.setattr(flops, "CONVOLUTIONS", ((1, 8, 16),))
        patch.setattr(profiling, "measure_copy", lambda device: roofline.measure_copy(device, 16))
        status = gpu_profiler.main(
            f"--model-path {model_path} --data-path {data_path} --output {output} "
            "--device cpu --amp off --batch-size 2 --steps 3".split()
        )
    assert status == 0
    return output


@pytest.fixture(scope="module")
def report(profiled):
    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    text = (profiled / "profile.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=no_constant)


def test_profile_json_keeps_the_contract(report):
    assert report["schema"] == "profile/1"
    assert report["environment"]["device"] == "cpu"
    assert report["host_syncs_per_step"] > 0
    assert isinstance(report["advice"], list)
    names = {stage["name"] for stage in report["stages"]}
    assert {"data wait", "backbone", "RPN", "RoI heads", "backward", "optimizer"} <= names
    assert "backward" not in {stage["name"] for stage in report["inference"]["stages"]}
    assert report["gpu_state"] == {"before": None, "after": None}
    assert all("the main thread ran" in warning for warning in report["warnings"])
    assert (report["amp"], report["batch_size"], report["steps"]) == ("off", 2, 3)
    assert report["precision"] == report["stock"]["precision"] == "float32"
    native = DTYPES[native_amp(torch.device("cpu"))]
    assert report["inference"]["precision"] == name_of(native)  # whatever --amp is
    assert report["inference"]["stock"]["precision"] == "float32"
    for part in (report, report["inference"]):
        assert part["stock"]["speedup"]["verdict"] == "too few rounds to tell"
        assert part["stock"]["speedup"]["ci95"] is None


@pytest.mark.parametrize("part", ["training", "inference"])
@pytest.mark.parametrize("side", ["own", "stock"])
def test_stages_sum_to_a_step_and_shares_to_one(report, part, side):
    whole = report if part == "training" else report["inference"]
    whole = whole if side == "own" else whole["stock"]
    total_ms = sum(stage["ms"] for stage in whole["stages"])
    assert sum(stage["share"] for stage in whole["stages"]) == pytest.approx(1)
    assert 0.5 * whole["step_ms"]["p50"] < total_ms <= 1.01 * 3 * whole["step_ms"]["mean"]
    named = sum(stage["share"] for stage in whole["stages"] if stage["name"] != "other")
    assert named > 0.8
    assert whole["images_per_s"] == pytest.approx(2000 / whole["free_step_ms"]["p50"])


def test_arithmetic_is_that_of_the_networks(report):
    """Three times the forward pass, but for the images, which need no gradient; more RoIs are
    looked at in inference, so that only the convolutions can be compared."""
    training, inference = (part["flops"]["by_operation"] for part in (report, report["inference"]))
    assert training["convolution"] == pytest.approx(inference["convolution"], rel=0.01)
    assert 1.5 < training["convolution_backward"] / training["convolution"] < 2
    assert training["mm"] == pytest.approx(2 * training["addmm"])
    for part in (report, report["inference"]):
        assert part["flops"]["dtype"] == part["precision"]
        peak = report["peak_measured_here"][part["precision"]]
        rate = part["flops"]["gflop_per_step"] / part["free_step_ms"]["p50"] * 1e3
        assert part["flops"]["share_of_peak"] == pytest.approx(rate / peak["gflop_s"])
        # Over the stages with networks, which are timed in steps of their own.
        stages = {stage["name"]: stage["ms"] for stage in part["stages"]}
        computing_ms = sum(stages[name] for name in NETWORKS if name in stages)
        assert part["flops"]["computing_ms"] == pytest.approx(computing_ms)
        assert 0 < computing_ms < sum(stages.values())
        rate = part["flops"]["gflop_per_step"] / computing_ms * 1e3
        assert part["flops"]["computing_share_of_peak"] == pytest.approx(rate / peak["gflop_s"])


def test_the_roofline_is_that_of_the_networks_of_the_profiled_step(report):
    """The same convolutions and products as torchvision's step has, but for what Winograd's saves
    where inference is in FP32, and rates and times of the same run."""
    saved = {"float32": WINOGRAD_SAVES_GFLOP, "bfloat16": 0.0}[report["inference"]["precision"]]
    copies = set()
    for part in (report, report["inference"]):
        found, arithmetic = part["roofline"], part["flops"]
        peak = report["peak_measured_here"][part["precision"]]["gflop_s"]
        assert found["peak_gflop_s"] == peak
        assert found["balance_flop_per_byte"] == pytest.approx(peak / found["copy_gb_s"])
        assert found["measured_ms"] == arithmetic["computing_ms"]
        gflop = arithmetic["gflop_per_step"] - (0.0 if part is report else saved)
        assert found["gflop"] == pytest.approx(gflop, rel=0.02)
        assert found["gb"] > 0
        assert found["bound"] in ("arithmetic", "memory", "both", "neither", "unknown")
        names = [operator["name"] for operator in found["operators"]]
        assert len(names) == len(set(names)) == roofline.LISTED
        assert "aten::convolution" in names
        copies.add(found["copy_gb_s"])
    training, inference = report["roofline"], report["inference"]["roofline"]
    assert training["gb"] > 1.5 * inference["gb"]
    assert len(copies) == 1
    assert report["roofline_counted"] == roofline.COUNTED
    assert report["setting"]["batch_can_grow"] is True  # two of six images


def test_trace_and_picture_lie_beside_the_report(profiled, report):
    names = {file.name for file in profiled.iterdir()}
    assert names == {"profile.json", "profile_memory.png", "profile_trace.json.gz"}
    with gzip.open(profiled / "profile_trace.json.gz", "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    assert len(events) == report["trace"]["events"]
    labels = {event.get("name") for event in events}
    assert {"training", "inference", "backward", "RoI heads", "post-processing"} <= labels
    # The forward pass leaves its feature maps to the backward pass; inference does not.
    memory = report["memory"]
    assert memory["training"]["peak_mib"] > 1.2 * memory["inference"]["peak_mib"] > 0


def quick_arguments(model_path, data_path, output):
    return [
        *("--model-path", str(model_path), "--data-path", str(data_path)),
        *("--output", str(output), "--device", "cpu", "--batch-size", "2", "--steps", "1"),
    ]


# --- how it ends when something is wrong --------------------------------------------------------


@no_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_the_command_refuses_a_missing_gpu(model_path, tmp_path, capsys, device):
    arguments = ["--model-path", str(model_path), "--device", device, "--output", str(tmp_path)]
    assert gpu_profiler.main(arguments) == 2
    assert "no CUDA device found" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--steps", "--batch-size", "--max-trace-mib"])
def test_the_command_refuses_zero(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_profiler.main([option, "0"])
    assert stopped.value.code == 2
    assert option in capsys.readouterr().err


def test_float16_needs_a_gpu(model_path, data_path, tmp_path, capsys):
    arguments = [*quick_arguments(model_path, data_path, tmp_path), "--amp", "fp16"]
    assert gpu_profiler.main(arguments) == 2
    assert capsys.readouterr().err == "error: --amp fp16: needs a GPU – use --amp bf16 or off\n"


class Malicious:
    """Unpickling it makes a file, if somebody lets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["missing", "zero", "text", "truncated", "malicious"])
def test_a_bad_model_is_one_line_and_nothing_is_written(
    kind, model_path, data_path, tmp_path, capsys
):
    bad, trap = tmp_path / "bad.pth", tmp_path / "trap"
    contents = {
        "zero": b"",
        "text": b"not a model",
        "truncated": model_path.read_bytes()[:-2000],
    }
    if kind == "malicious":
        torch.save({"model_state_dict": Malicious(trap)}, bad)
    elif kind in contents:
        bad.write_bytes(contents[kind])
    assert gpu_profiler.main(quick_arguments(bad, data_path, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {bad}: ")
    assert error.count("\n") == 1
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


def test_a_batch_beyond_the_memory_is_told_with_a_remedy(
    model_path, data_path, tmp_path, capsys, monkeypatch
):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(profiling, "measure", full)
    assert gpu_profiler.main(quick_arguments(model_path, data_path, tmp_path)) == 2
    expected = "error: --batch-size 2: does not fit into the memory of cpu – give a smaller one\n"
    assert capsys.readouterr().err == expected


@pytest.fixture
def measured(monkeypatch, profiled, report):
    """The measurement of an earlier run, at once."""
    with gzip.open(profiled / "profile_trace.json.gz", "rt", encoding="utf-8") as file:
        trace = json.load(file)
    training = {key: report[key] for key in report["inference"]}
    profile = profiling.Profile(
        *(training, report["inference"], report["peak_measured_here"], trace),
        gpu_state=report["gpu_state"],
        warnings=["The GPU was slowed down by: heat (hardware)."],
        setting=Setting(**report["setting"]),
    )
    monkeypatch.setattr(profiling, "measure", lambda *_, **__: profile)


@pytest.mark.usefixtures("measured")
def test_a_folder_that_cannot_be_written_to_is_named(model_path, data_path, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    output = tmp_path / "file" / "metrics"
    assert gpu_profiler.main(quick_arguments(model_path, data_path, output)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {output}")
    assert "choose another --output" in error


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
@pytest.mark.usefixtures("measured")
def test_a_signal_leaves_no_half_written_file(
    number, status, model_path, data_path, tmp_path, monkeypatch
):
    """It arrives while the picture is drawn, when the trace is whole: older files stay as they
    are, and without any there is none."""

    def stopped(*_):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(memory_timeline, "draw", stopped)
    assert gpu_profiler.main(quick_arguments(model_path, data_path, tmp_path)) == status
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("measured")
def test_a_report_that_cannot_be_written_keeps_the_trace_it_would_have_told_of(
    model_path, data_path, tmp_path, monkeypatch
):
    older = dict.fromkeys(("profile.json", "profile_trace.json.gz"), b"older")
    for name, content in older.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("phase2_optimization.flops.COUNTED", float("nan"))  # JSON has no such
    assert gpu_profiler.main(quick_arguments(model_path, data_path, tmp_path)) == 1
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".log"}
    assert left == older


@pytest.mark.usefixtures("measured")
def test_warnings_of_the_gpu_and_the_lack_of_advice_are_told(
    model_path, data_path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("phase2_optimization.advice.advise", lambda *_: [])
    assert gpu_profiler.main(quick_arguments(model_path, data_path, tmp_path)) == 0
    output = capsys.readouterr().out
    assert "The GPU was slowed down by: heat (hardware)." in output
    assert "Advice – none that the measurements support" in output
    written = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    assert written["advice"] == []
    assert written["warnings"] == ["The GPU was slowed down by: heat (hardware)."]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_profiled(model_path, data_path, tmp_path):
    arguments = [*quick_arguments(model_path, data_path, tmp_path), "--device", "cuda"]
    assert gpu_profiler.main(arguments) == 0
    report = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    assert (tmp_path / "profile_memory.png").exists()
    for part in (report, report["inference"]):
        activity = part["device_activity"]
        assert activity["kernel_launches"] > 100
        assert activity["kernels"] <= part["operations_per_step"] * 20
        assert 0 < part["host_syncs_per_step"] == activity["host_syncs"]
        assert 0 < part["gpu_busy_share"] <= 1
        assert 0 < part["flops"]["computing_share_of_peak"] <= 1.2
    assert report["memory"]["training"]["peak_mib"] > 0
