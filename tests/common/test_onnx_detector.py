"""Which files the ONNX detector takes, on graphs made by hand: no network is behind them."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from common.cli import UserError
from common.onnx_detector import FORMAT, OnnxDetector

FOUND = {  # for one image: two slots, one of them used
    "boxes": np.array([[[1, 2, 30, 40], [0, 0, 0, 0]]], np.float32),
    "scores": np.array([[0.75, 0]], np.float32),
    "labels": np.array([[2, 0]], np.int64),
    "num": np.array([1], np.int64),
}
METADATA = {
    "format": FORMAT,
    "class_names": json.dumps(["car", "Fußgänger"]),
    "category_ids": json.dumps([3, 1]),
}
IMAGE = np.zeros((20, 30, 3), np.uint8)


def detector_graph(
    found: dict[str, np.ndarray] = FOUND,
    *,
    input_name: str = "images",
    input_type: int = TensorProto.UINT8,
    input_shape: tuple = (1, "height", "width", 3),
    metadata: dict[str, str] = METADATA,
) -> onnx.ModelProto:
    """A file of the detector's form that finds the same in every image."""
    weights = [onnx.numpy_helper.from_array(value, f"{name}_") for name, value in found.items()]
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}_"], [name]) for name in found],
        "constant detector",
        [helper.make_tensor_value_info(input_name, input_type, input_shape)],
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in found.items()
        ],
        weights,
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "below" / "model.onnx"


def written(path: Path, model: onnx.ModelProto) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(UserError) as error:
        OnnxDetector(path, "cpu", threads=1)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert " – " in text
    assert "\n" not in text
    return text


@pytest.mark.fault("P4-35")
def test_a_file_of_the_form_is_taken(path):
    detector = OnnxDetector(written(path, detector_graph()), "cpu", threads=1)
    (found,) = detector([IMAGE])
    np.testing.assert_array_equal(found.boxes_xyxy, [[1, 2, 30, 40]])
    np.testing.assert_array_equal(found.scores, np.float32([0.75]))
    assert found.names == ["Fußgänger"]
    assert detector.metadata["category_ids"] == [3, 1]
    assert detector.provider == "CPUExecutionProvider"
    assert detector([]) == []


@pytest.mark.fault("P4-23")
def test_a_missing_file_and_a_folder(path):
    path.mkdir(parents=True)
    assert "no such file" in refusal(path)
    assert "no such file" in refusal(path / "gone.onnx")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "No graph was found"),
        (b"no model at all", "Protobuf parsing failed"),
        (None, "Protobuf parsing failed"),  # the first half of a whole one
    ],
    ids=["empty", "text", "truncated"],
)
@pytest.mark.fault("P4-24", "P4-25", "P4-26")
def test_a_damaged_file(path, content, reason):
    written(path, detector_graph())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    text = refusal(path)
    assert reason in text
    assert "ONNXRuntimeError" not in text


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("opset", 99, "Opset 99 is under development"), ("ir", 99, "IR version: 99")],
)
@pytest.mark.fault("P4-28", "P4-29")
def test_a_file_from_the_future_names_the_version(path, name, value, reason):
    model = detector_graph()
    if name == "opset":
        model.opset_import[0].version = value
    else:
        model.ir_version = value
    text = refusal(written(path, model))
    assert reason in text
    assert "onnxruntime_src" not in text  # nothing of the runtime's own sources


@pytest.mark.parametrize("place", ["missing", "above", "absolute", "link"])
@pytest.mark.fault("P4-30", "P4-31", "P4-32", "P4-33")
def test_weights_outside_the_folder_are_not_read(path, tmp_path, place):
    """Each file but the missing one is there: it is refused for where it lies."""
    model = detector_graph()
    weight = model.graph.initializer[0]
    (tmp_path / "weights.bin").write_bytes(weight.raw_data)
    locations = {
        "missing": "gone.bin",
        "above": "../weights.bin",
        "absolute": str(tmp_path / "weights.bin"),
        "link": "link.bin",
    }
    path.parent.mkdir()
    (path.parent / "link.bin").symlink_to(tmp_path / "weights.bin")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=locations[place])
    assert "cannot be loaded" in refusal(written(path, model))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"input_name": "x"}, "x tensor(uint8) instead of images tensor(uint8)"),
        ({"input_type": TensorProto.FLOAT}, "images tensor(float) instead of"),
        ({"input_shape": (1, 3, "height", "width")}, "instead of [batch, height, width, 3]"),
        ({"input_shape": ("height", "width", 3)}, "instead of [batch, height, width, 3]"),
        ({"found": {k: v for k, v in FOUND.items() if k != "num"}}, "num tensor(int64)"),
        ({"found": {**FOUND, "scores": FOUND["scores"].astype(np.float64)}}, "tensor(double)"),
        ({"found": dict(reversed(FOUND.items()))}, "instead of boxes tensor(float), scores"),
    ],
    ids=["name", "type", "channels first", "no batch", "an output less", "double", "order"],
)
@pytest.mark.fault("P4-34")
def test_another_graph_with_a_detectors_metadata(path, form, reason):
    assert reason in refusal(written(path, detector_graph(**form)))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"format": "detector/99"}, "not a detector of this kind"),
        ({"format": None}, "not a detector of this kind"),
        ({"class_names": None}, "class_names cannot be read"),
        ({"class_names": '["car"'}, "class_names cannot be read"),
        ({"class_names": '"ab"'}, "class_names cannot be read"),
        ({"class_names": "[1, 2]"}, "class_names cannot be read"),
        ({"category_ids": '["3", "1"]'}, "category_ids cannot be read"),
        ({"category_ids": "7"}, "category_ids cannot be read"),
        ({"category_ids": "[3]"}, "other numbers of class_names and category_ids"),
    ],
)
@pytest.mark.fault("P4-36")
def test_damaged_metadata(path, changed, reason):
    metadata = {key: value for key, value in {**METADATA, **changed}.items() if value is not None}
    assert reason in refusal(written(path, detector_graph(metadata=metadata)))


@pytest.mark.parametrize("label", [0, -1, 3])
@pytest.mark.fault("P4-36")
def test_a_class_without_a_name_is_no_other_class(path, label):
    """0 would be the last name of a Python list."""
    found = {**FOUND, "labels": np.array([[label, 0]], np.int64)}
    detector = OnnxDetector(written(path, detector_graph(found)), "cpu", threads=1)
    with pytest.raises(UserError, match=f"finds class {label}, but names 2 classes"):
        detector([IMAGE])


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 4), (0, 30, 3), (20, 0, 3), (1, 20, 30, 3)])
@pytest.mark.fault("P4-11", "P4-34")
def test_what_is_no_picture(path, shape):
    detector = OnnxDetector(written(path, detector_graph()), "cpu", threads=1)
    with pytest.raises(ValueError, match=r"must be uint8 \(height, width, 3\)"):
        detector([np.zeros(shape, np.uint8)])


@pytest.mark.fault("P4-37")
def test_cuda_asked_for_is_never_the_cpu(path, monkeypatch):
    """Also where ONNX Runtime has the provider, cannot start it and takes the CPU by itself."""
    import onnxruntime

    real = onnxruntime.InferenceSession

    def falls_back(file, options, providers, provider_options):
        return real(file, options, ["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    written(path, detector_graph())
    with pytest.raises(UserError, match="--device cuda: runs on CPUExecutionProvider instead"):
        OnnxDetector(path, "cuda", threads=1)
    assert OnnxDetector(path, "auto", threads=1).provider == "CPUExecutionProvider"


@pytest.mark.fault("P4-37")
def test_without_the_provider_cuda_is_an_error_too(path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    written(path, detector_graph())
    with pytest.raises(UserError, match="--device cuda"):
        OnnxDetector(path, "cuda", threads=1)
