"""Dynamic and static INT8: what becomes int8, what stays in float, and what the budget does."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from common import anchors, artifacts
from common.cli import UserError
from common.coco import CocoSplit, load_split
from common.hidden_channels import find_hidden_channels, keep_channels
from common.models import freeze_norms, load_model, save_model, stock_predictor
from phase4_deployment import activation_ranges, quantization
from phase4_deployment.formats import int8_search, onnx_fp32, onnx_int8
from tests.phase4_deployment.conftest import CATEGORY_IDS, CLASS_NAMES
from tests.random_detectors import random_scene

HEIGHT, WIDTH = 96, 128


def write_data(folder: Path, images: dict[str, int]) -> Path:
    """A COCO data set of random scenes with one box each, in the classes of `exported`."""
    rng = np.random.default_rng(7)
    for split, count in images.items():
        (folder / "images" / split).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        entries, boxes = [], []
        for i in range(count):
            name = f"{split}_{i}.png"
            entries.append({"id": i + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
            cv2.imwrite(str(folder / "images" / split / name), random_scene(rng, HEIGHT, WIDTH))
            category = CATEGORY_IDS[i % 3]
            boxes.append(
                {"id": i + 1, "image_id": i + 1, "category_id": category, "iscrowd": 0}
                | {"bbox": [10, 10, 50, 40], "area": 2000}
            )
        categories = [
            {"id": number, "name": name}
            for number, name in zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
        ]
        content = {"images": entries, "annotations": boxes, "categories": categories}
        file = folder / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def load_in_model_order(folder: Path, name: str) -> CocoSplit:
    """`load_split`, whose classes go by ascending id, in the order of `exported`."""
    split = load_split(folder, name)
    order = [split.category_ids.index(category) for category in CATEGORY_IDS]
    new_label = np.argsort(order) + 1
    records = tuple(replace(r, labels=new_label[r.labels - 1]) for r in split.records)
    return CocoSplit(split.annotation_file, records, CLASS_NAMES, CATEGORY_IDS)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), {"train": 6, "val": 3})


@pytest.fixture(scope="module")
def int8_path(exported, data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    ranges = ranges_on(exported.onnx_path, load_split(data, "train").records)
    quantization.quantize_static(exported.onnx_path, path, ranges)
    return path


def ranges_on(onnx_path, records):
    seen = activation_ranges.look_at(onnx_path, records, quantization.QUANTIZED_OPERATORS)
    return seen.ranges("widest")


# --- dynamic ----------------------------------------------------------------------------------


@pytest.mark.fault("P4-45")
def test_dynamic_quantisation_takes_every_linear_and_no_convolution(exported):
    model = exported.loaded.model
    linear = sum(type(layer) is torch.nn.Linear for layer in model.modules())
    conv = sum(type(layer) is torch.nn.Conv2d for layer in model.modules())
    counts = quantization.count_quantized(quantization.quantize_dynamic(model))
    assert linear == 4
    assert counts == {"Linear": {"int8": 4, "float": 0}, "Conv2d": {"int8": 0, "float": conv}}
    assert quantization.count_quantized(model)["Linear"] == {"int8": 0, "float": 4}  # left alone


def test_dynamic_model_loads_again_and_detects_the_same(exported, tmp_path):
    path = tmp_path / "dynamic.pth"
    model = quantization.quantize_dynamic(exported.loaded.model)
    quantization.save_dynamic(path, model, artifacts.load_checkpoint(exported.model_path))
    loaded = quantization.load_dynamic(path)
    image = random_scene(np.random.default_rng(3), HEIGHT, WIDTH)
    cpu = torch.device("cpu")
    (before,), (after,) = (stock_predictor(m, cpu)([image]) for m in (model, loaded))
    assert len(before.scores) > 0
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)
    assert path.stat().st_size < exported.model_path.stat().st_size


def test_a_dynamic_model_keeps_frozen_norms_anchors_and_removed_channels(exported, tmp_path):
    model = copy.deepcopy(exported.loaded.model)
    freeze_norms(model, 1e-3)
    anchors.set_anchor_sizes(model, [[18, 26], [40, 64], [96, 144], [200, 280]])
    for channels in find_hidden_channels(model):
        if channels.part == "box_head":
            keep_channels(model, channels, torch.arange(channels.count(model) // 2))
    description = {"architecture": "demo", "class_names": CLASS_NAMES, "category_ids": CATEGORY_IDS}
    save_model(tmp_path / "float.pth", model, summary={}, **description)
    dynamic = quantization.quantize_dynamic(model)
    checkpoint = artifacts.load_checkpoint(tmp_path / "float.pth")
    quantization.save_dynamic(tmp_path / "int8.pth", dynamic, checkpoint)
    image = random_scene(np.random.default_rng(3), HEIGHT, WIDTH)
    (before,), (after,) = (
        stock_predictor(m, torch.device("cpu"))([image])
        for m in (dynamic, quantization.load_dynamic(tmp_path / "int8.pth"))
    )
    assert len(before.scores) > 0
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.fault("P4-44")
def test_a_quantised_checkpoint_is_not_quantised_again(exported, tmp_path):
    """Fault case P4-44."""
    model = quantization.quantize_dynamic(exported.loaded.model)
    checkpoint = artifacts.load_checkpoint(exported.model_path)
    quantization.save_dynamic(tmp_path / "int8.pth", model, checkpoint)
    with pytest.raises(UserError, match=r"int8\.pth: is quantised already"):
        load_model(tmp_path / "int8.pth", torch.device("cpu"))


@pytest.mark.fault("P4-46")
def test_int8_is_the_same_file_each_time(exported, data, tmp_path):
    """Fault case P4-46."""
    records = quantization.calibration_records(load_split(data, "train"), 2)
    for name in ("a.onnx", "b.onnx"):
        ranges = ranges_on(exported.onnx_path, records)
        quantization.quantize_static(exported.onnx_path, tmp_path / name, ranges)
    assert artifacts.sha256(tmp_path / "a.onnx") == artifacts.sha256(tmp_path / "b.onnx")


def test_p4_42_a_build_that_chose_no_engine_takes_the_one_it_has(exported, monkeypatch):
    backend = torch.backends.quantized
    chosen = backend.engine
    (first, *_) = (name for name in backend.supported_engines if name != "none")
    monkeypatch.setattr(torch._C, "_get_qengine", lambda: 0)  # "none", which not all can be set to
    try:
        assert backend.engine == "none"
        counts = quantization.count_quantized(quantization.quantize_dynamic(exported.loaded.model))
        monkeypatch.undo()
        assert backend.engine == first
    finally:
        backend.engine = chosen
    assert counts["Linear"] == {"int8": 4, "float": 0}


def test_a_float_checkpoint_is_no_dynamic_model(exported):
    with pytest.raises(UserError, match="not quantised"):
        quantization.load_dynamic(exported.model_path)


# --- static -----------------------------------------------------------------------------------


def test_static_int8_is_smaller_and_quantises_all_layers(exported, int8_path):
    done, layers = quantization.count_int8_layers(int8_path)
    assert done == layers == sum(map(len, quantization.layer_groups(exported.onnx_path).values()))
    assert quantization.count_int8_layers(exported.onnx_path) == (0, layers)
    assert int8_path.stat().st_size < exported.onnx_path.stat().st_size / 3


def test_static_int8_has_unsigned_activations_and_a_scale_per_channel(int8_path):
    graph = onnx.load(int8_path).graph
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    zero_points = [
        constants[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"
    ]
    assert set(zero_points) == {np.dtype(np.uint8)}
    restored = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.empty(0)).ndim > 1
    ]
    assert len(restored) > 20
    for node in restored:
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        assert weight.dtype == np.int8
        assert scale.shape == (weight.shape[0],), node.name
        assert np.abs(weight.astype(int)).max() <= 64


def test_sums_of_the_largest_products_are_right_on_every_processor(tmp_path):
    """Those without VNNI add two products in 16 bits: with weights of 127 they gave 72.8 of 144."""
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((8, 16, 3, 3), np.float32), "weights")
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 16, 8, 8])
    sums = helper.make_tensor_value_info("sums", TensorProto.FLOAT, [1, 8, 6, 6])
    conv = helper.make_node("Conv", ["images", "weights"], ["sums"], name="conv")
    graph = helper.make_graph([conv], "sums", [images], [sums], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(model, source)
    quantization.quantize_static(source, target, {"images": (0, 1), "sums": (0, 144)})
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": np.ones((1, 16, 8, 8), np.float32)})
    np.testing.assert_allclose(found, 9 * 16, rtol=0.01)


def test_box_arithmetic_stays_in_float(int8_path):
    graph = onnx.load(int8_path).graph
    restored = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    for node in graph.node:
        if node.op_type in ("NonMaxSuppression", "Exp", "TopK", "ScatterND"):
            assert not restored & set(node.input), node.name


@pytest.mark.parametrize("batch", [1, 2])
def test_static_int8_runs_at_any_batch_and_on_an_image_of_nothing(int8_path, batch):
    scene = random_scene(np.random.default_rng(5), HEIGHT, WIDTH)
    empty = np.zeros_like(scene)
    found = onnx_fp32.predictor(int8_path)([scene, empty][:batch])
    assert len(found) == batch
    assert len(found[0].scores) > 0


@pytest.mark.fault("P4-13")
def test_static_int8_runs_where_nothing_is_detected(exported, int8_path, tmp_path):
    """Scores cannot exceed a threshold of 2, so every output has zero detections."""
    model = onnx.load(int8_path)
    nms = [node for node in model.graph.node if node.op_type == "NonMaxSuppression"][-1]
    threshold = onnx.numpy_helper.from_array(np.array([2.0], np.float32), "never")
    model.graph.initializer.append(threshold)
    nms.input[4] = "never"
    onnx.save_model(model, tmp_path / "nothing.onnx")
    scene = random_scene(np.random.default_rng(5), HEIGHT, WIDTH)
    for found in onnx_fp32.predictor(tmp_path / "nothing.onnx")([scene, scene]):
        assert found.boxes_xyxy.shape == (0, 4)


def test_calibration_reads_training_images_only(exported, data, tmp_path, monkeypatch):
    read: list[Path] = []

    def spy(path, size):
        read.append(path)
        return original(path, size)

    original = activation_ranges.read_image
    monkeypatch.setattr(activation_ranges, "read_image", spy)
    monkeypatch.setattr(int8_search, "read_image", spy)
    train = load_split(data, "train")
    result = int8_search.quantize_within_budget(
        onnx_int8.OnnxQuantiser(exported.onnx_path, quantization.calibration_records(train, 2)),
        tmp_path / "int8.onnx",
        lambda predict: 0.5,
        0.5,
        0.0,
    )
    assert result.accepted
    assert result.float_groups == ()
    assert read
    assert set(read) == {train.records[0].path, train.records[5].path}


def test_calibration_records_spread_over_the_split(data):
    train = load_split(data, "train")
    assert quantization.calibration_records(train, 3) == tuple(train.records[i] for i in (0, 2, 5))
    assert quantization.calibration_records(train, 99) == tuple(train.records)


# --- the budget -------------------------------------------------------------------------------


class FakeQuantiser:
    """Has nodes named like their parts, and keeps which of them were last left in float."""

    source, calibration, suffix, estimators = Path("a.onnx"), (), ".onnx", ("widest",)
    left_in_float: tuple[str, ...] = ()

    def groups(self):
        return {name: [name] for name in "abcde"}

    def write(self, target, float_nodes, estimator):
        self.left_in_float = tuple(float_nodes)

    def predictor(self, file):
        return None

    def count_int8_layers(self, file):
        return 1, 5


@pytest.fixture
def search(monkeypatch):
    """Runs the search with mAP 0.9 - 0.1 per part in INT8 that should be in float; no models."""
    monkeypatch.setattr(int8_search, "rank_by_damage", lambda *_: list("cadbe"))

    def run(bad: str, budget: float):
        quantiser = FakeQuantiser()

        def measure_map(_):
            return 0.9 - 0.1 * len(set(bad) - set(quantiser.left_in_float))

        result = int8_search.quantize_within_budget(
            quantiser, Path("b.onnx"), measure_map, 0.9, budget
        )
        return result, quantiser.left_in_float

    return run


@pytest.mark.parametrize(
    ("bad", "expected"),
    [("", ()), ("c", ("c",)), ("ca", ("c", "a")), ("cad", ("c", "a", "d")), ("b", tuple("cadb"))],
)
def test_search_leaves_the_fewest_of_the_worst_parts_in_float(search, bad, expected):
    result, written = search(bad, 0.02)
    assert result.accepted
    assert result.float_groups == expected
    assert written == expected  # the file left behind is that of the result
    assert result.map_drop == pytest.approx(0)


def test_search_gives_up_when_nothing_holds_the_budget(search):
    result, _ = search("e", 0.02)  # the last part never stays in float: that would be no INT8
    assert not result.accepted
    assert result.map_drop == pytest.approx(0.1)


def test_what_holds_no_budget_is_the_attempt_that_cost_least(search):
    """Every choice costs "e"; leaving "c" and "a" in float, too, costs nothing more than that."""
    result, written = search("cae", 0.02)
    assert not result.accepted
    assert result.map_drop == pytest.approx(0.1)
    assert {"c", "a"} <= set(result.float_groups) == set(written)


def test_parts_of_the_network_are_named_by_their_weights(exported):
    groups = quantization.layer_groups(exported.onnx_path)
    assert next(iter(groups)) == "backbone.body.stem"
    assert {"rpn_head", "box_head", "box_predictor.cls_score"} <= set(groups)
    assert len(groups["rpn_head"]) == 12  # three convolutions on four pyramid levels


def test_ranking_puts_the_destroyed_part_first(exported, data, monkeypatch):
    """A part whose INT8 weights are replaced by zeros damages most."""
    groups = {"rpn_head": [], "box_head": [], "box_predictor.bbox_pred": []}
    real = quantization.layer_groups(exported.onnx_path)
    groups = {name: real[name] for name in groups}
    original = quantization.quantize_static

    def damaging(source, target, ranges, float_nodes=()):
        original(source, target, ranges, float_nodes)
        if not set(groups["box_head"]) & set(float_nodes):
            model = onnx.load(target)
            for part in model.graph.initializer:
                if part.name == "box_head.fc7.weight_quantized":
                    zeros = np.zeros(tuple(part.dims), np.int8)
                    part.CopyFrom(onnx.numpy_helper.from_array(zeros, part.name))
            onnx.save_model(model, target)

    monkeypatch.setattr(quantization, "quantize_static", damaging)
    records = load_split(data, "train").records[:2]
    quantiser = onnx_int8.OnnxQuantiser(exported.onnx_path, records)
    agreement = int8_search.Agreement(quantiser)
    assert int8_search.rank_by_damage(quantiser, groups, "widest", agreement)[0] == "box_head"


def test_the_ranges_are_those_with_which_int8_finds_most():
    class Fake:
        estimators = ("widest", "average", "99.9%")

    class Agreement:
        def of(self, float_nodes, estimator):
            assert float_nodes == (), "all in INT8"
            return {"widest": 0.1, "average": 0.7, "99.9%": 0.7}[estimator]

    assert int8_search.best_estimator(Fake(), Agreement()) == "average", "the first of the best"


def test_a_quantiser_with_one_way_to_choose_ranges_is_not_tried():
    assert int8_search.best_estimator(FakeQuantiser(), None) == "widest"
