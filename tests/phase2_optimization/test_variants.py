"""The rungs of the ladder: what they leave alone, when they run, and what they need."""

import copy
import gc
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from common import evaluation, onnx_graph
from common.coco import load_split, read_image
from common.models import load_model, proposals_of
from phase2_optimization import benchmark_inference, builders, runtimes, variants
from phase2_optimization.builders import Workshop
from phase2_optimization.variants import BASELINE, VARIANTS, VariantUnavailableError

CPU = torch.device("cpu")
RUN_ON_ANY_CPU = [
    name
    for name, variant in VARIANTS.items()
    if "cpu" in variant.devices
    and variant.needs != "compile"
    and not name.startswith(("onnxruntime", "openvino"))
]


@pytest.fixture
def shop(tmp_path):
    return Workshop(CPU, tmp_path, [], 1)


def test_a_variant_works_on_a_copy_of_the_model(model_path, shop):
    model = load_model(model_path, CPU).model
    model.rpn._post_nms_top_n["testing"] = 400
    before = {key: value.clone() for key, value in model.state_dict().items()}
    strides = [parameter.stride() for parameter in model.parameters()]
    image = np.zeros((48, 64, 3), np.uint8)
    for name in RUN_ON_ANY_CPU:
        VARIANTS[name].predictor(model, shop)([image])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert proposals_of(model) == 400
    for module in (model.backbone, model.rpn, model.roi_heads, model.roi_heads.box_roi_pool):
        assert not {"forward", "postprocess_detections"} & vars(module).keys()


def test_the_rungs_of_the_stock_model_really_replace_its_methods(model_path, shop, monkeypatch):
    """Replacements live in context managers, which undo them when nobody holds on to them."""
    built = []
    stock_predictor = builders.stock_predictor
    monkeypatch.setattr(
        builders, "stock_predictor", lambda m, d: built.append(m) or stock_predictor(m, d)
    )
    model = load_model(model_path, CPU).model
    for name in ("folded_norms", "cached_anchors", "roi_pool", "selected_first"):
        predict = VARIANTS[name].predictor(model, shop)
        gc.collect()
        predict([np.zeros((48, 64, 3), np.uint8)])
    replaced = [
        (
            "forward" in vars(one.rpn.anchor_generator),
            "forward" in vars(one.roi_heads.box_roi_pool),
            "postprocess_detections" in vars(one.roi_heads),
        )
        for one in built
    ]
    assert replaced == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ]


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


def test_the_box_head_looks_at_fewer_proposals(model_path, shop):
    model, seen = load_model(model_path, CPU).model, []

    def build(limited, workshop):
        limited.roi_heads.box_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        return builders.stock_predictor(limited, workshop.device)

    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    for count in (20, 10):
        builders.with_proposals(count, build)(copy.deepcopy(model), shop)([noise])
    assert [len(regions) for regions in seen] == [20, 10]
    with pytest.raises(VariantUnavailableError, match="looks at 150 proposals anyway"):
        builders.with_proposals(150, build)(model, shop)


def test_nothing_on_cuda_is_held_to_exactness_as_tf32_is_on():
    winograd, int8 = VARIANTS["winograd"], VARIANTS["openvino_int8"]
    assert winograd.tolerance_on(CPU) is variants.EXACT
    assert winograd.tolerance_on(torch.device("cuda")) is variants.LOW_PRECISION
    assert int8.tolerance_on(CPU) is variants.LOSSY


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
    constant_detector(shop.folder / "model_150.onnx")  # what an earlier rung has exported
    model = load_model(model_path, CPU).model
    (found,) = VARIANTS["onnxruntime"].predictor(model, shop)([np.zeros((4, 6, 3), np.uint8)])
    assert found.boxes_xyxy.tolist() == [[1, 2, 3, 4]]
    assert found.scores.tolist() == [0.5]
    assert found.labels.tolist() == [2]


def test_onnx_runtime_never_takes_the_cpu_for_cuda(model_path, tmp_path, monkeypatch):
    import onnxruntime

    constant_detector(tmp_path / "model_150.onnx")
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
