"""Finding the reference of a file, and whether the file can be judged by boxes at all."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from common import artifacts, paths
from common.models import proposals_of
from phase4_deployment.checks import onnx_check, onnx_runtimes, parity
from phase4_deployment.checks.onnx_check import OnnxCheck, find_checkpoint, holds_fewer_bits
from phase4_deployment.checks.onnx_runtimes import Tools
from tests.random_detectors import random_scene


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        (np.float32, (4, 3, 1, 1), False),
        (np.float16, (4, 3, 1, 1), True),
        (np.int8, (4, 3), True),
        (np.int8, (4,), False),  # a zero point or a list of sizes is no layer's weights
        (np.int64, (4, 3), False),
    ],
)
def test_which_files_hold_fewer_bits(tmp_path, kind, shape, expected):
    weight = onnx.numpy_helper.from_array(np.ones(shape, kind), "weight")
    node = helper.make_node("Identity", ["weight"], ["y"])
    output = helper.make_tensor_value_info("y", weight.data_type, shape)
    graph = helper.make_graph([node], "graph", [], [output], [weight])
    onnx.save_model(helper.make_model(graph), tmp_path / "model.onnx")
    assert holds_fewer_bits(tmp_path / "model.onnx") == expected


def test_weights_in_a_file_beside_are_not_read_for_that(tmp_path):
    weight = TensorProto(name="weight", dims=[4, 3], data_type=TensorProto.INT8)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="gone.bin")
    graph = helper.make_graph([], "graph", [], [], [weight])
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert holds_fewer_bits(tmp_path / "model.onnx")


@pytest.mark.parametrize(("said", "limit"), [("7", 7), ("150", 150), (None, None), ("many", None)])
def test_a_file_is_compared_with_pytorch_at_as_many_proposals(
    exported, batches, tmp_path, monkeypatch, said, limit
):
    model = onnx.load(exported.onnx_path)
    for place, entry in enumerate(model.metadata_props):
        if entry.key == "max_proposals":
            del model.metadata_props[place]
            break
    if said is not None:
        model.metadata_props.add(key="max_proposals", value=said)
    onnx.save_model(model, tmp_path / "model.onnx")
    assert onnx_check.max_proposals(tmp_path / "model.onnx") == limit
    seen = []

    def reference(model, batches):
        seen.append(proposals_of(model))
        return parity.Reference([])

    monkeypatch.setattr(parity, "torch_reference", reference)
    OnnxCheck(tmp_path / "model.onnx", exported.model_path, batches, Tools())
    assert seen == [limit or 150]


def test_a_checkpoint_is_taken_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    (tmp_path / "best.pth").write_bytes(b"weights")
    digest = artifacts.sha256(tmp_path / "best.pth")
    named = {"source_checkpoint": "best.pth", "source_sha256": digest}
    assert find_checkpoint(named) == tmp_path / "best.pth"
    assert find_checkpoint({**named, "source_sha256": "0" * 64}) is None
    assert find_checkpoint({**named, "source_checkpoint": "gone.pth"}) is None
    assert find_checkpoint({}) is None
    outside = {**named, "source_checkpoint": f"../{tmp_path.name}/best.pth"}
    assert find_checkpoint(outside) == tmp_path / "best.pth"  # the name alone counts
    (tmp_path.parent / "secret.pth").write_bytes(b"weights")
    assert find_checkpoint({**named, "source_checkpoint": "../secret.pth"}) is None


@pytest.fixture
def batches():
    return [[random_scene(np.random.default_rng(5), 90, 120)]]


def test_fewer_bits_are_measured_but_not_judged(exported, batches, monkeypatch):
    monkeypatch.setattr(onnx_check, "holds_fewer_bits", lambda path: True)
    check = OnnxCheck(exported.onnx_path, exported.model_path, batches, Tools())
    row = check.row("onnxruntime", is_asked=True)
    assert row["status"] == "not judged"
    assert "mAP" in row["reason"]
    assert row["parity"]["holds"] is None
    assert row["parity"]["matched"] == 1


def test_that_nothing_is_found_is_told(exported, batches, monkeypatch, caplog):
    empty = onnx_runtimes.Run("provider", "version", [], [1.0])
    found = onnx_runtimes.run("onnxruntime", exported.onnx_path, batches, Tools()).detections[0]
    nothing = found._replace(
        boxes_xyxy=found.boxes_xyxy[:0], scores=found.scores[:0], labels=found.labels[:0]
    )
    for detections, expected in ([nothing], True), ([found], False):
        caplog.clear()
        run = empty._replace(detections=detections)
        monkeypatch.setattr(onnx_runtimes, "run", lambda *arguments, run=run: run)
        OnnxCheck(exported.onnx_path, None, batches, Tools())
        assert ("Nothing is found in these images" in caplog.text) == expected
