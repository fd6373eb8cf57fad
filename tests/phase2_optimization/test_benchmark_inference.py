"""The inference benchmark on a tiny model: its report, its guards and how it fails."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from common import evaluation, onnx_graph, timing
from common.cli import UserError
from common.coco import load_split, read_image
from common.models import Detections, load_model
from phase2_optimization import batch_search, benchmark_inference, measuring, runtimes, variants
from phase2_optimization.builders import Workshop
from phase2_optimization.inputs import load_inputs
from phase2_optimization.variants import BASELINE, VARIANTS, VariantUnavailableError

CPU = torch.device("cpu")
EXACT_ON_CPU = [
    "eager_fp32",
    "channels_last",
    "folded_norms",
    "cached_anchors",
    "roi_pool",
    "selected_first",
    "batched_transform",
    "inference_graph",
    "winograd",
]
LEFT_OUT_ON_CPU = {"compiled": "add --compile", "bf16_compiled": "add --compile"}


@pytest.fixture
def run(model_path, data_path, tmp_path):
    """Runs the command; returns its exit status and the report, None where none was written."""

    def run_command(*extra: str) -> tuple[int, dict | None]:
        common = f"--model-path {model_path} --data-path {data_path} --output {tmp_path}"
        small = "--device cpu --num-iterations 2 --batch-sizes 1,2 --max-images 2"
        status = benchmark_inference.main([*common.split(), *small.split(), *extra])
        report = tmp_path / "inference_benchmark.json"
        if not report.exists():
            return status, None
        return status, json.loads(report.read_text(encoding="utf-8"))

    return run_command


def rows(report: dict, variant: str) -> dict[int, dict]:
    return {r["batch_size"]: r for r in report["results"] if r["variant"] == variant}


@pytest.fixture
def replace_variant(monkeypatch):
    """Gives a variant another way of building its predictor, for one test."""

    def replace(name: str, build) -> None:
        monkeypatch.setitem(VARIANTS, name, dataclasses.replace(VARIANTS[name], build=build))

    return replace


def altered(change):
    """A builder of the stock predictor whose detections go through `change(images, found)`."""

    def build(model, workshop):
        predict = variants.stock_predictor(model, workshop.device)
        return lambda images: change(images, predict(images))

    return build


# --- the report -------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path):
    return Workshop(CPU, tmp_path, [], 1)


@pytest.fixture
def no_runtimes(replace_variant):
    """Exporting takes long and has tests of its own."""

    def absent(model, workshop):
        raise VariantUnavailableError("left out of this test")

    for name, variant in VARIANTS.items():
        if CPU.type in variant.devices and name not in EXACT_ON_CPU:
            replace_variant(name, absent)


def test_every_variant_gets_a_row_with_the_keys_of_the_contract(run, no_runtimes, tmp_path):
    status, report = run("--num-iterations", "7")
    assert status == 0
    assert report["schema"] == "inference_benchmark/1"
    assert report["complete"] is True
    assert report["image_size"] == [64, 48]  # the most common size of the val split
    on_cpu = [name for name, variant in VARIANTS.items() if "cpu" in variant.devices]
    assert [(r["variant"], r["batch_size"]) for r in report["results"]] == [
        (name, size) for size in (1, 2) for name in on_cpu
    ]
    for name, reason in LEFT_OUT_ON_CPU.items():
        assert reason in rows(report, name)[1]["status"]
    for row in (row for row in report["results"] if row["variant"] in EXACT_ON_CPU):
        assert row["iterations"] == 7
        assert set(row["latency_ms"]) == {"p50", "p90", "p99", "mean"}
        expected = row["batch_size"] / row["latency_ms"]["p50"] * 1000
        assert row["throughput_img_s"] == pytest.approx(expected)
        low, high = row["speedup"]["ci95"]
        assert low <= row["speedup"]["ratio"] <= high
        assert row["parity"]["matched"] >= 0.99
        assert row["parity"]["max_box_error_px"] < 1e-2
        assert 0 <= row["map"] <= row["map_50"] <= 1
        assert row["peak_memory_mib"] > 10
        assert row["status"] == "ok"
    assert rows(report, BASELINE)[1]["speedup"] == {"ratio": 1.0, "ci95": [1.0, 1.0]}
    below = {name: rows(report, name)[1]["step"]["over"] for name in EXACT_ON_CPU[1:]}
    assert below == dict(zip(EXACT_ON_CPU[1:], EXACT_ON_CPU, strict=False))  # a ladder
    assert set(report["noise"]) == {"1", "2"}
    assert report["optimal_batch_size"] in (1, 2)
    assert set(report["optimal_batch_size_by_variant"]) == set(EXACT_ON_CPU)
    assert report["latency_budget_ms"] is report["best_within_latency_budget"] is None
    assert all(report["variants"][name]["build_s"] > 0 for name in EXACT_ON_CPU)
    with Image.open(tmp_path / "inference_benchmark.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_a_variant_works_on_a_copy_of_the_model(model_path, shop):
    model = load_model(model_path, CPU).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    strides = [parameter.stride() for parameter in model.parameters()]
    image = np.zeros((48, 64, 3), np.uint8)
    for name in [*EXACT_ON_CPU, "bf16", "stock_autocast_bf16"]:
        VARIANTS[name].predictor(model, shop)([image])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [parameter.stride() for parameter in model.parameters()] == strides
    for module in (model.backbone, model.rpn, model.roi_heads, model.roi_heads.box_roi_pool):
        assert not {"forward", "postprocess_detections"} & vars(module).keys()


def test_what_compiling_cannot_do_is_told(model_path, shop, monkeypatch):
    def fail(module, options):
        def call(*inputs):
            raise torch._inductor.exc.InductorError(RuntimeError("no C++ compiler"), None)

        return torch.nn.Module.__new__(type("Broken", (torch.nn.Module,), {"__call__": call}))

    model = load_model(model_path, CPU).model
    monkeypatch.setattr(torch, "compile", fail)
    predict = VARIANTS["compiled"].predictor(model, shop)
    with pytest.raises(VariantUnavailableError, match="compile failed"):
        predict([np.zeros((48, 64, 3), np.uint8)])


@pytest.mark.parametrize(("native", "runs"), [("bf16", True), ("off", False)])
def test_imitated_bfloat16_runs_only_when_asked_for(monkeypatch, native, runs):
    monkeypatch.setattr(variants, "native_amp", lambda device: native)
    names, skipped = benchmark_inference.choose_variants(None, False, CPU)
    assert "bf16" in names
    assert ("bf16" not in skipped) == runs
    assert benchmark_inference.choose_variants(["bf16"], False, CPU) == ([BASELINE, "bf16"], {})


def test_every_rung_stands_on_an_earlier_one():
    for position, (name, variant) in enumerate(VARIANTS.items()):
        assert variant.adds_to is None or variant.adds_to in list(VARIANTS)[:position], name
    assert variants.rungs_below("winograd")[-1] == BASELINE
    assert {name for name, v in VARIANTS.items() if v.adds_to is None} == {
        BASELINE,
        "stock_autocast_fp16",
        "stock_autocast_bf16",
    }


def test_nothing_on_cuda_is_held_to_exactness_as_tf32_is_on():
    winograd, int8 = VARIANTS["winograd"], VARIANTS["openvino_int8"]
    assert winograd.tolerance_on(CPU) is variants.EXACT
    assert winograd.tolerance_on(torch.device("cuda")) is variants.LOW_PRECISION
    assert int8.tolerance_on(CPU) is variants.QUANTISED


def constant_detector(file: Path) -> None:
    """An ONNX file with the inputs and outputs of an exported graph that always finds one box."""
    names = dict(zip(onnx_graph.OUTPUT_NAMES, ([[[1, 2, 3, 4]]], [[0.5]], [[2]], [1]), strict=True))
    kinds = {"boxes": np.float32, "scores": np.float32, "labels": np.int64, "num": np.int64}
    nodes, outputs = [], []
    for name, value in names.items():
        array = np.array(value, kinds[name])
        tensor = onnx.numpy_helper.from_array(array, f"{name}_value")
        nodes.append(onnx.helper.make_node("Constant", [], [name], value=tensor))
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        outputs.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    images = onnx.helper.make_tensor_value_info(
        onnx_graph.INPUT_NAME, onnx.TensorProto.UINT8, ["batch", "height", "width", 3]
    )
    graph = onnx.helper.make_graph(nodes, "constant", [images], outputs)
    opset = onnx.helper.make_opsetid("", onnx_graph.DEFAULT_OPSET)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), file)


def test_onnx_runtime_runs_the_exported_file_on_the_cpu(model_path, shop):
    constant_detector(shop.folder / "model.onnx")  # what an earlier rung has exported
    model = load_model(model_path, CPU).model
    (found,) = VARIANTS["onnxruntime"].predictor(model, shop)([np.zeros((4, 6, 3), np.uint8)])
    assert found.boxes_xyxy.tolist() == [[1, 2, 3, 4]]
    assert found.scores.tolist() == [0.5]
    assert found.labels.tolist() == [2]


def test_onnx_runtime_never_takes_the_cpu_for_cuda(model_path, tmp_path, monkeypatch):
    import onnxruntime

    constant_detector(tmp_path / "model.onnx")
    shop = Workshop(torch.device("cuda"), tmp_path, [], 1)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(VariantUnavailableError, match="no CUDAExecutionProvider"):
        runtimes.onnxruntime(load_model(model_path, CPU).model, shop)


@pytest.mark.slow
def test_exported_graphs_find_the_baselines_boxes(model_path, data_path, tmp_path):
    pytest.importorskip("openvino", reason="requirements-extras.txt is not installed")
    pytest.importorskip("nncf", reason="requirements-extras.txt is not installed")
    model = load_model(model_path, CPU).model
    split = load_split(data_path, "val")
    images = [read_image(r.path, (r.width, r.height)) for r in split.records]
    shop = Workshop(CPU, tmp_path, images, 1)
    expected = VARIANTS[BASELINE].predictor(model, shop)(images[:1])
    assert len(expected[0].scores) > 5
    found = VARIANTS["onnxruntime"].predictor(model, shop)(images[:1])
    parity = evaluation.compare_detections(expected, found)
    assert parity["matched"] == 1.0
    assert parity["max_box_error_px"] < 1e-2
    found = VARIANTS["openvino"].predictor(model, shop)(images[:1])
    assert evaluation.compare_detections(expected, found)["matched"] == 1.0
    (found,) = VARIANTS["openvino_int8"].predictor(model, shop)(images[:1])
    assert len(found.scores) > 0


@pytest.mark.parametrize(
    ("variant", "package"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino")]
)
def test_a_missing_package_is_named_with_its_remedy(
    model_path, shop, monkeypatch, variant, package
):
    monkeypatch.setitem(sys.modules, package, None)
    model = load_model(model_path, CPU).model
    with pytest.raises(VariantUnavailableError, match=f"{package} is not installed: pip install"):
        VARIANTS[variant].predictor(model, shop)


# --- batch sizes ------------------------------------------------------------------------------


def test_the_best_batch_size_is_looked_for(run, monkeypatch):
    monkeypatch.setattr(batch_search, "MAX_BATCH_SIZE", 4)
    monkeypatch.setattr(batch_search.search, "__defaults__", (None, 4))
    status, report = run("--variants", BASELINE, "--batch-sizes", "auto", "--num-iterations", "7")
    assert status == 0
    tried = sorted(rows(report, BASELINE))
    assert tried[0] == 1
    assert tried[-1] <= 4
    assert len(tried) > 1
    assert report["optimal_batch_size"] in tried


def test_a_batch_size_that_does_not_fit_ends_the_search(run, replace_variant):
    def fail(images, found):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    replace_variant(BASELINE, altered(fail))
    status, report = run("--variants", BASELINE, "--batch-sizes", "auto", "--num-iterations", "7")
    assert status == 0
    found = rows(report, BASELINE)
    assert {size: row["status"] for size, row in found.items() if size > 2} in (
        {3: "oom", 4: "oom"},
        {4: "oom"},
        {},  # two images were not faster than one by themselves
    )


@pytest.mark.parametrize(("budget", "is_met"), [("1000000", True), ("0.001", False)])
def test_the_best_within_a_latency_budget(run, budget, is_met):
    _, report = run("--variants", BASELINE, "--latency-budget-ms", budget)
    best = report["best_within_latency_budget"]
    assert report["latency_budget_ms"] == float(budget)
    if is_met:
        row = rows(report, BASELINE)[best["batch_size"]]
        assert best["p90_ms"] == row["latency_ms"]["p90"]
        assert best["throughput_img_s"] == max(r["throughput_img_s"] for r in report["results"])
    else:
        assert best is None


def test_the_time_budget_stops_early_and_the_iterations_made_are_told(run):
    _, report = run("--variants", BASELINE, "--num-iterations", "500", "--time-budget-s", "0.001")
    assert {row["iterations"] for row in report["results"]} == {7}


def test_images_can_be_resized(run):
    _, report = run("--variants", BASELINE, "--image-size", "80x40")
    assert report["image_size"] == [80, 40]


def test_timed_images_have_one_size_and_are_as_many_as_needed(data_path):
    split = load_split(data_path, "val")
    assert [i.shape for i in benchmark_inference.timed_images(split, 2, None)] == [(48, 64, 3)] * 3
    resized = benchmark_inference.timed_images(split, 2, (32, 24))
    assert [image.shape for image in resized] == [(24, 32, 3)] * 4


# --- guards -----------------------------------------------------------------------------------


def test_too_few_iterations_claim_nothing(run):
    status, report = run("--variants", "channels_last")
    assert status == 0
    assert rows(report, "channels_last")[1]["verdict"] == "too few rounds to tell"
    assert report["fastest_variant"] is None
    assert report["conclusion"].startswith("No winner")


def test_boxes_beyond_the_tolerance_make_a_row_invalid(run, replace_variant):
    def shift(images, found):
        return [d._replace(boxes_xyxy=d.boxes_xyxy + np.float32(3)) for d in found]

    replace_variant("channels_last", altered(shift))
    status, report = run("--variants", "channels_last")
    assert status == 0
    for row in rows(report, "channels_last").values():
        assert row["status"].startswith("invalid: ")
        assert "of the boxes are the baseline's" in row["status"]
    assert report["fastest_variant"] is None
    assert "channels_last" not in report["optimal_batch_size_by_variant"]
    assert rows(report, BASELINE)[1]["status"] == "ok"


def test_additional_boxes_make_a_row_invalid(run, replace_variant):
    """They come last, so mAP hardly notices them."""

    def add(images, found):
        extra = Detections(
            np.array([[0, 0, 9, 9]], np.float32), np.array([0.051], np.float32), np.array([1])
        )
        return [
            Detections(*(np.concatenate(both) for both in zip(one, extra, strict=True)))
            for one in found
        ]

    replace_variant("channels_last", altered(add))
    _, report = run("--variants", "channels_last")
    assert rows(report, "channels_last")[1]["status"].startswith("invalid: ")


def test_not_a_number_is_invalid_and_the_report_stays_json(run, replace_variant):
    def spoil(images, found):
        return [d._replace(boxes_xyxy=np.full_like(d.boxes_xyxy, np.nan)) for d in found]

    replace_variant("inference_graph", altered(spoil))
    status, report = run("--variants", "inference_graph")
    assert status == 0
    assert rows(report, "inference_graph")[1]["status"].startswith("invalid: ")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_out_of_memory_at_a_batch_size_is_a_row(run, replace_variant, error):
    def fail(images, found):
        if len(images) > 1:
            raise error
        return found

    replace_variant("channels_last", altered(fail))
    status, report = run("--variants", "channels_last")
    assert status == 0
    found = rows(report, "channels_last")
    assert found[1]["status"] == "ok"
    assert found[2]["status"] == "oom"
    assert found[2]["latency_ms"] is found[2]["speedup"] is found[2]["throughput_img_s"] is None
    assert rows(report, BASELINE)[2]["latency_ms"]["p50"] > 0


def test_out_of_memory_while_timing_drops_that_arm_only(run, replace_variant):
    calls = []

    def fail_late(images, found):
        calls.append(len(images))
        if calls.count(2) > 3:  # the checks and one warm-up round fit
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    replace_variant("channels_last", altered(fail_late))
    _, report = run("--variants", "channels_last")
    assert rows(report, "channels_last")[2]["status"] == "oom"
    assert rows(report, BASELINE)[2]["iterations"] == 2


def test_a_model_that_never_fits_is_told_to_the_user(run, replace_variant, capsys):
    def fail(images, found):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replace_variant(BASELINE, altered(fail))
    status, report = run("--variants", BASELINE)
    assert (status, report) == (2, None)
    assert "does not fit into memory" in capsys.readouterr().err


def test_a_bug_in_a_variant_is_not_taken_for_a_lack_of_memory():
    def fail(images):
        raise RuntimeError("expected scalar type Float")

    with pytest.raises(RuntimeError, match="expected scalar type"):
        measuring.Arm("a", fail, [[np.zeros((4, 4, 3), np.uint8)]])()


@pytest.mark.skipif(not timing.PROC_MEMINFO.exists(), reason="only Linux can bound the memory")
def test_an_allocation_beyond_the_free_memory_raises_instead_of_killing(monkeypatch):
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(timing, "available_mib", lambda: 100.0)
    with pytest.raises(Exception) as caught, measuring._bounded_host_memory(CPU):  # noqa: PT011
        torch.empty(2**30)
    assert timing.is_out_of_memory(caught.value)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_variant_that_cannot_run_says_why(run, replace_variant):
    def refuse(model, workshop):
        raise VariantUnavailableError("no compiler found")

    replace_variant("channels_last", refuse)
    status, report = run("--variants", "channels_last")
    assert status == 0
    assert rows(report, "channels_last")[1]["status"] == "unavailable: no compiler found"


def test_float16_on_a_cpu_is_unavailable(run):
    _, report = run("--variants", "fp16")
    assert rows(report, "fp16")[1]["status"] == "unavailable: made for cuda, not cpu"


def test_an_interrupted_run_keeps_its_rows_and_says_so(run, monkeypatch):
    measured = measuring.Benchmark.time

    def interrupted(self, batch_size):
        if batch_size == 2:
            raise KeyboardInterrupt
        measured(self, batch_size)

    monkeypatch.setattr(measuring.Benchmark, "time", interrupted)
    status, report = run("--variants", BASELINE)
    assert status == 130
    assert report["complete"] is False
    assert [row["batch_size"] for row in report["results"]] == [1]


# --- what the user can get wrong --------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch-sizes", "0"],
        ["--batch-sizes", "-1"],
        ["--batch-sizes", "a"],
        ["--batch-sizes", ""],
        ["--batch-sizes", "1,,2"],
        ["--batch-sizes", "best"],
        ["--latency-budget-ms", "0"],
        ["--num-iterations", "0"],
        ["--time-budget-s", "nan"],
        ["--image-size", "0"],
        ["--image-size", "640x"],
        ["--image-size", "1000000"],
        ["--variants", ","],
        ["--batchsizes", "1"],
    ],
    ids=" ".join,
)
def test_bad_options_end_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark_inference.main(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_an_unknown_variant_is_refused_with_the_known_ones(run, capsys):
    assert run("--variants", "warp_drive") == (2, None)
    assert "inference_graph" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_refused(run, capsys):
    assert run("--device", "cuda") == (2, None)
    assert "no CUDA device found" in capsys.readouterr().err


def test_a_missing_model_is_refused(run, tmp_path, capsys):
    assert run("--model-path", str(tmp_path / "none.pth")) == (2, None)
    assert "no such file" in capsys.readouterr().err


def test_data_of_other_classes_is_refused(data_path, model_path, tmp_path):
    copy = Path(shutil.copytree(data_path, tmp_path / "coco"))
    (file,) = (copy / "annotations").glob("*val*")
    file.write_text(file.read_text(encoding="utf-8").replace('"disc"', '"ball"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"\(ball, box\) differ from the model's \(disc, box\)"):
        load_inputs(model_path, copy, ["val"], CPU)
