"""The exported file: equal to PyTorch for any batch and size, or not written at all."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch

from common import artifacts
from common.inference_graph import InferenceGraph, graph_predictor
from common.models import limit_proposals, load_model
from common.onnx_detector import OnnxDetector
from phase4_deployment import export_onnx
from phase4_deployment.checks import parity
from tests.phase4_deployment.conftest import CATEGORY_IDS, CLASS_NAMES
from tests.random_detectors import random_scene

CPU = torch.device("cpu")


def test_the_gate_compared_something_and_it_agreed(exported):
    assert exported.parity["images"] == sum(batch for batch, *_ in parity.GATE_SHAPES)
    assert exported.parity["detections"] > 100
    assert exported.parity["holds"]
    assert exported.parity["sensitivity"] is None
    assert exported.parity["max_box_error_px"] < 0.01
    assert exported.parity["max_score_error"] < 1e-4


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (240, 30), (31, 33)])
@pytest.mark.fault("P4-11")
def test_equals_torchvision_on_pictures_the_gate_has_not_seen(exported, batch, size):
    rng = np.random.default_rng(batch)
    images = [random_scene(rng, *size) for _ in range(batch)]
    detector = OnnxDetector(exported.onnx_path, "cpu")
    measured = parity.compare_with_torch(exported.loaded.model, detector, [images])
    assert measured["matched"] == 1
    assert measured["detections"] > 0


@pytest.mark.fault("P4-13")
def test_images_without_detections_beside_others(exported, tmp_path):
    """A file whose threshold lies between the best scores of the images of a batch."""
    graph = InferenceGraph(exported.loaded.model)
    rng = np.random.default_rng(0)
    images = [random_scene(rng, 80, 120) for _ in range(3)]
    best = sorted(found.scores.max() for found in graph_predictor(graph, CPU)(images))
    threshold = float(best[0] + best[1]) / 2
    model = onnx.load(exported.onnx_path)
    (node,) = [
        node
        for node in model.graph.node
        if node.op_type == "NonMaxSuppression" and constant(model, node.input[4]) > 0
    ]
    initializer = next(i for i in model.graph.initializer if i.name == node.input[4])
    initializer.CopyFrom(onnx.numpy_helper.from_array(np.float32([threshold]), initializer.name))
    onnx.save(model, tmp_path / "strict.onnx")
    counts = [len(found.scores) for found in OnnxDetector(tmp_path / "strict.onnx", "cpu")(images)]
    graph.score_threshold = threshold
    assert counts == [len(found.scores) for found in graph_predictor(graph, CPU)(images)]
    assert min(counts) == 0 < max(counts)


def constant(model: onnx.ModelProto, name: str) -> float:
    initializer = next(i for i in model.graph.initializer if i.name == name)
    return float(onnx.numpy_helper.to_array(initializer)[0])


@pytest.mark.fault("P4-21")
def test_the_file_tells_what_it_is(exported):
    detector = OnnxDetector(exported.onnx_path, "cpu")
    assert detector.class_names == list(CLASS_NAMES)
    assert detector.metadata["category_ids"] == list(CATEGORY_IDS)
    assert detector.metadata["architecture"] == "demo"
    assert (detector.metadata["min_size"], detector.metadata["max_size"]) == ("96", "192")
    assert float(detector.metadata["score_threshold"]) == 0.05
    assert detector.metadata["max_proposals"] == "150"
    assert detector.metadata["source_sha256"] == artifacts.sha256(exported.model_path)
    assert detector.metadata["torch_version"] == torch.__version__


def test_one_standard_file_with_three_dynamic_dimensions(exported):
    model = onnx.load(exported.onnx_path, load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert not {node.op_type for node in model.graph.node} & {"If", "Loop"}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    (images,) = model.graph.input
    shape = [axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim]
    assert shape == ["batch", "height", "width", 3]
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "labels", "num"]
    assert sorted(path.name for path in exported.onnx_path.parent.iterdir()) == [
        "model.json",
        "model.onnx",
        "model.pth",
    ]


def copy_instead_of_export(exported, monkeypatch):
    """Exporting takes a while; these tests are about what happens around it."""

    def write(graph, path, metadata, opset):
        path.write_bytes(exported.onnx_path.read_bytes())

    monkeypatch.setattr(export_onnx, "write_onnx", write)


@pytest.mark.fault("P4-22")
def test_a_file_that_differs_is_refused_and_an_older_one_stays(
    exported, monkeypatch, tmp_path, capsys
):
    copy_instead_of_export(exported, monkeypatch)
    impossible = parity.Tolerance(1.1, 0, 0)
    monkeypatch.setattr(parity, "STRICT", impossible)
    monkeypatch.setattr(parity, "LOOSEST", impossible)
    output = tmp_path / "model.onnx"
    output.write_text("the older file")
    arguments = ["--model-path", str(exported.model_path), "--output", str(output)]
    assert export_onnx.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert "differs from PyTorch" in error
    assert " px" in error
    assert "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert output.read_text() == "the older file"


@pytest.mark.fault("P4-22")
def test_a_wrong_weight_is_noticed(exported):
    """The gate compares with the model given, so a file of other weights cannot pass."""
    model = copy.deepcopy(exported.loaded.model)
    with torch.no_grad():
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(1.05)
    detector = OnnxDetector(exported.onnx_path, "cpu")
    measured = parity.compare_with_torch(model, detector, parity.gate_batches([]))
    assert not measured["holds"]
    assert measured["sensitivity"]["max_box_error_px"] < measured["max_box_error_px"]


@pytest.mark.fault("P4-22")
def test_a_wrong_resize_is_noticed(exported):
    """One pixel more on the resized image's short side, as rounding differently would give."""
    model = copy.deepcopy(exported.loaded.model)
    model.transform.min_size = (model.transform.min_size[-1] + 1,)
    detector = OnnxDetector(exported.onnx_path, "cpu")
    measured = parity.compare_with_torch(model, detector, parity.gate_batches([]))
    assert not measured["holds"]


def test_a_model_that_amplifies_rounding_is_judged_by_its_own_sensitivity(exported, monkeypatch):
    model, detector = exported.loaded.model, OnnxDetector(exported.onnx_path, "cpu")
    monkeypatch.setattr(parity, "STRICT", parity.Tolerance(1.0, 0, 0))
    monkeypatch.setattr(parity, "PIXEL_SHIFT", 1e-3)
    assert parity.compare_with_torch(model, detector, parity.gate_batches([])[:2])["holds"]


def test_the_command_writes_the_file_and_its_report(exported, monkeypatch, tmp_path, capsys):
    copy_instead_of_export(exported, monkeypatch)
    output = tmp_path / "new" / "model.onnx"
    arguments = ["--model-path", str(exported.model_path), "--output", str(output)]
    assert export_onnx.main(arguments) == 0
    report = json.loads((output.parent / "model.onnx.json").read_text())
    assert report["sha256"] == artifacts.sha256(output)
    assert report["parity"]["holds"]
    assert report["inputs"] == {str(exported.model_path): artifacts.sha256(exported.model_path)}
    assert "Next:" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_of_fewer_proposals_says_so_and_equals_pytorch_with_as_many(exported, tmp_path):
    output = tmp_path / "model.onnx"
    arguments = ["--model-path", exported.model_path, "--output", output, "--max-proposals", 3]
    assert export_onnx.main([str(word) for word in arguments]) == 0
    report = json.loads((tmp_path / "model.onnx.json").read_text())
    assert report["max_proposals"] == 3
    assert report["parity"]["holds"]
    detector = OnnxDetector(output, "cpu")
    assert detector.metadata["max_proposals"] == "3"
    images = [[random_scene(np.random.default_rng(1), 96, 128)]]
    model = load_model(exported.model_path, CPU).model
    assert not parity.compare_with_torch(model, detector, images)["holds"]
    limit_proposals(model, 3)
    assert parity.compare_with_torch(model, detector, images)["holds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-path", "missing.pth"], "missing.pth: no such file"),
        (["--output", "model.bin"], "must end in .onnx"),
        (["--device", "cuda"], "run on the CPU"),
        (["--opset", "11"], "'11' is unknown – choose from 18, 19, 20, 21, 22, 23"),
        (["--opset", "99"], "'99' is unknown – choose from 18, 19, 20, 21, 22, 23"),
        (["--max-proposals", "0"], "not 1 or more"),
    ],
)
@pytest.mark.fault("P4-01", "P4-10")
def test_mistakes_are_told_in_one_line(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = export_onnx.main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    error = capsys.readouterr().err.strip()
    assert status == 2
    assert message in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []
