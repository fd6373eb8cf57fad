"""Each format by itself: it is made, it reads back, and it finds what torchvision finds."""

import numpy as np
import pytest
import torch

from common import artifacts, openvino_runtime
from common.evaluation import compare_detections
from common.models import proposals_of, stock_predictor
from phase4_deployment import measuring
from phase4_deployment.formats import (
    aot_inductor,
    catalogue,
    int8_search,
    onnx_fp16,
    onnx_fp32,
    onnx_int8,
    openvino_fp32,
    openvino_int8,
    pytorch_export,
    pytorch_fp32,
    pytorch_int8_dynamic,
    torchscript,
)
from phase4_deployment.formats.base import Format, missing
from tests.random_detectors import random_scene

CPU = torch.device("cpu")


def agreement(item: Format, exported, images) -> dict:
    """Of the format's own predictor and of one that has read its file back, with torchvision."""
    assert item.status == "ok", item.status
    assert item.predict is not None
    assert item.file is not None
    stock = stock_predictor(exported.loaded.model, CPU)
    expected = [stock([image])[0] for image in images]
    assert sum(len(found.scores) for found in expected) > 0
    read_back = catalogue.FORMATS[item.name].load(item.file, 1)
    own = [item.predict([image])[0] for image in images]
    again = [read_back([image])[0] for image in images]
    assert compare_detections(own, again)["matched"] == 1.0
    return compare_detections(expected, own)


@pytest.fixture
def images() -> list[np.ndarray]:
    """Of two sizes that torchvision's own scripted models resize differently from eager ones."""
    rng = np.random.default_rng(11)
    return [random_scene(rng, 375, 500), random_scene(rng, 120, 161)]


def test_torchscript_is_scripted_and_exact_and_says_what_a_trace_does(
    ingredients, exported, images
):
    item = torchscript.build(ingredients)
    found = agreement(item, exported, images)
    assert found["matched"] == 1.0
    assert found["max_box_error_px"] < 1e-3
    assert item.extra["trace"].startswith("unsupported: Only tensors, lists, tuples")


@pytest.mark.slow
def test_fp16_holds_half_the_bytes_and_keeps_boxes_in_fp32(ingredients, exported, images):
    import onnx

    item = onnx_fp16.build(ingredients)
    assert item.file is not None
    found = agreement(item, exported, images)
    assert found["matched"] > 0.9
    assert item.file.stat().st_size < 0.6 * ingredients.onnx().stat().st_size
    graph = onnx.load(item.file).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = {types[node.input[1]] for node in convolutions}
    assert weights == {onnx.TensorProto.FLOAT16}
    outputs = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    assert outputs["boxes"] == outputs["scores"] == onnx.TensorProto.FLOAT


def test_openvino_holds_fp32_also_where_it_would_take_16_bits(ingredients, exported, images):
    pytest.importorskip("openvino", reason="pip install -r requirements-extras.txt")
    item = openvino_fp32.build(ingredients)
    found = agreement(item, exported, images)
    assert found["matched"] > 0.99
    assert found["max_box_error_px"] < 0.02
    assert [file.suffix for file in item.files] == [".xml", ".bin"]
    assert measuring._size_mib(item) == pytest.approx(
        sum(file.stat().st_size for file in item.files) / 2**20
    )


def test_openvino_int8_is_smaller_and_near(ingredients, exported, images):
    pytest.importorskip("nncf", reason="pip install -r requirements-extras.txt")
    item, full = openvino_int8.build(ingredients), openvino_fp32.build(ingredients)
    agreement(item, exported, images)
    small, large = (sum(f.stat().st_size for f in one.files) for one in (item, full))
    assert small < 0.6 * large
    assert 0 < item.extra["quantized"]["int8"] < item.extra["quantized"]["all"]
    assert item.extra["search"][0]["float_groups"] == []
    quantiser = openvino_int8.OpenVinoQuantiser(ingredients.onnx(), ingredients.calibration, False)
    groups = quantiser.groups()
    assert not [name for name in groups if name.startswith("box_predictor")], "it stays in FP32"
    assert "backbone.body.stem" not in groups, "it reads the pixels"
    assert sum(map(len, groups.values())) == item.extra["quantized"]["int8"]
    stored = [op for op in openvino_runtime.read_model(item.files[0]).get_ops() if is_int8(op)]
    assert len(stored) > 20
    for weights in stored:  # two products of 255 * 64 fit the 16 bits of processors without VNNI
        assert np.abs(weights.get_data().astype(int)).max() <= 64


@pytest.mark.parametrize(("lost_in_bf16", "used"), [(0.5, ["bf16", "f32"]), (0.01, ["bf16"])])
def test_beside_int8_is_fp32_where_bfloat16_costs_too_much(
    ingredients, monkeypatch, lost_in_bf16, used
):
    """The processor of this test need not have bfloat16, and nothing is quantised."""
    pytest.importorskip("openvino", reason="pip install -r requirements-extras.txt")
    precisions = []

    def search(quantiser, target, measure_map, fp32_map, max_map_drop):
        quantiser.write(target, [], *quantiser.estimators)
        quantiser.predictor(target)
        drop = lost_in_bf16 if precisions[-1] == "bf16" else 0.0
        return int8_search.StaticResult(drop, (), "NNCF's", drop <= max_map_drop, 1, 1, ())

    monkeypatch.setattr(openvino_int8, "missing", lambda *packages: None)
    monkeypatch.setattr(openvino_runtime, "has_bfloat16", lambda: True)
    monkeypatch.setattr(openvino_runtime, "_quantised", lambda model, *_: model)
    monkeypatch.setattr(
        openvino_runtime, "openvino_predictor", lambda model, kind, _: precisions.append(kind)
    )
    monkeypatch.setattr(int8_search, "quantize_within_budget", search)
    item = openvino_int8.build(ingredients)
    assert item.status == "ok"
    assert list(dict.fromkeys(precisions)) == used
    del precisions[:]
    catalogue.FORMATS[item.name].load(item.file, 1)
    assert precisions == used[-1:], "as it was judged, also in another process"


def is_int8(operation) -> bool:
    is_constant = operation.get_type_name() == "Constant"
    return is_constant and operation.get_element_type().get_type_name() == "i8"


@pytest.mark.parametrize("module", [openvino_fp32, openvino_int8])
@pytest.mark.fault("C-08")
def test_without_the_extras_a_row_says_what_is_missing(ingredients, monkeypatch, module):
    from common import environment

    monkeypatch.setattr(environment, "is_installed", lambda name: False)
    item = module.build(ingredients)
    assert item.status.startswith("unavailable: openvino is not installed, see requirements-extras")
    assert item.predict is item.file is None


def test_p4_42_dynamic_int8_without_an_engine_is_a_row_that_says_so(ingredients, monkeypatch):
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    item = pytorch_int8_dynamic.build(ingredients)
    assert item.status.startswith("unavailable: this PyTorch was built without an engine")
    assert item.predict is item.file is None
    assert not item.is_shipped


def test_aot_inductor_is_not_compiled_for_images_of_several_sizes(ingredients):
    ingredients.val.images = [np.zeros((8, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)]
    item = aot_inductor.build(ingredients)
    why = "compiled for one image size, and the val images have 2 – give val images of one size"
    assert item.status == f"unavailable: {why}"


def test_aot_inductor_needs_a_compiler(ingredients, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    ingredients.val.images = ingredients.val.images[:1]
    item = aot_inductor.build(ingredients)
    why = "no C++ compiler (no-such-compiler) – install one, or name it in CXX"
    assert item.status == f"unavailable: {why}"


@pytest.mark.slow
def test_aot_inductor_agrees(ingredients, exported):
    image = random_scene(np.random.default_rng(2), 96, 128)
    ingredients.val.images = [image]
    found = agreement(aot_inductor.build(ingredients), exported, [image])
    assert found["matched"] == 1.0
    assert found["max_box_error_px"] < 1e-2


def test_the_checkpoint_is_a_plain_state_dict_for_a_model_that_torchvision_built(
    ingredients, exported, images
):
    """What the package's README tells people to do."""
    item = pytorch_fp32.build(ingredients)
    assert agreement(item, exported, images)["matched"] == 1.0
    assert item.file is not None
    state = artifacts.load_checkpoint(item.file)["model_state_dict"]
    assert state.keys() == exported.loaded.model.state_dict().keys()


@pytest.mark.parametrize(("asked", "looked_at"), [(None, 150), (151, 150), (50, 50)])
def test_fewer_proposals_are_for_what_is_exported_alone_and_judged_by_map(
    ingredients, asked, looked_at
):
    ingredients.max_proposals = asked
    assert proposals_of(ingredients.exported.model) == looked_at
    assert proposals_of(ingredients.loaded.model) == 150, "the baseline is the whole model"
    assert ingredients.exported.path == ingredients.loaded.path
    assert ingredients.proposals == {"model": 150, "exported": looked_at}
    budget = 0.02 if looked_at < 150 else None
    assert onnx_fp32.build(ingredients).max_map_drop == budget
    assert pytorch_fp32.build(ingredients).max_map_drop is None


@pytest.mark.slow
def test_every_exported_graph_looks_at_the_proposals_that_were_asked_for(ingredients):
    ingredients.max_proposals, ingredients.onnx_parity = 3, None
    ingredients.val.images = ingredients.val.images[:1]
    one = ingredients.val.images
    limited = stock_predictor(ingredients.exported.model, CPU)(one)
    modules = [pytorch_export, aot_inductor, onnx_fp32]
    modules += [] if missing("openvino") else [openvino_fp32]
    for module in modules:
        item = module.build(ingredients)
        assert item.status == "ok"
        assert item.max_map_drop == 0.02
        assert compare_detections(limited, item.predict(one))["matched"] == 1.0, item.name
    whole = stock_predictor(ingredients.loaded.model, CPU)(one)
    assert compare_detections(whole, limited)["matched"] < 0.9, "three proposals are too few"


def test_the_budget_of_int8_counts_from_the_whole_model(ingredients, monkeypatch):
    """Else fewer proposals and INT8 could lose it twice."""
    seen = []

    def search(quantiser, target, measure_map, fp32_map, max_map_drop):
        seen.append((fp32_map, max_map_drop))
        return int8_search.StaticResult(0.0, (), "widest", True, 1, 1, ())

    monkeypatch.setattr(int8_search, "quantize_within_budget", search)
    monkeypatch.setattr(onnx_int8.OnnxQuantiser, "predictor", lambda *_: None)
    ingredients.max_proposals = 2
    onnx_int8.build(ingredients)
    whole = ingredients.val.map_of(stock_predictor(ingredients.loaded.model, CPU))
    assert seen == [(whole, 0.02)]


def test_every_format_is_a_file_of_the_catalogue():
    from common import paths

    folder = paths.ROOT / "phase4_deployment" / "formats"
    modules = {file.stem for file in folder.glob("*.py")} - {
        "base",
        "catalogue",
        "int8_search",
        "__init__",
    }
    assert modules == set(catalogue.FORMATS)
    assert set(catalogue.NEEDED) <= set(catalogue.DEFAULT) <= set(catalogue.FORMATS)
