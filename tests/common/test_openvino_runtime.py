"""What other libraries may say in the terminal while the runtime is made ready."""

import logging
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from common import openvino_runtime
from common.openvino_runtime import without_chatter


def test_chatter_is_kept_out_and_errors_are_not(capsys, caplog):
    other = logging.getLogger("a.library")
    with without_chatter():
        other.warning("No CUDA runtime is found")
        warnings.warn("this will change", FutureWarning, stacklevel=1)
        print("Statistics collection 100%")
        other.error("a file is damaged")
    assert [record.getMessage() for record in caplog.records] == ["a file is damaged"]
    assert capsys.readouterr() == ("", "")


def test_what_is_raised_gets_out_and_all_is_as_before():
    before = logging.root.manager.disable
    with pytest.raises(RuntimeError, match="no such operator"), without_chatter():
        raise RuntimeError("no such operator")
    assert logging.root.manager.disable == before
    with pytest.warns(FutureWarning):
        warnings.warn("this will change", FutureWarning, stacklevel=1)


def test_int8_is_made_without_chatter(monkeypatch, tmp_path, capsys, caplog):
    """OpenVINO and NNCF are stood in for; what NNCF says on a CPU is a line of PyTorch's log."""

    def quantised(model, calibration, float_nodes):
        logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found")
        print("Statistics collection 100%")
        return model

    saved = []
    core = SimpleNamespace(read_model=lambda file: file)
    openvino = SimpleNamespace(
        Core=lambda: core, save_model=lambda *what, compress_to_fp16: saved.append(what)
    )
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    monkeypatch.setattr(openvino_runtime, "_quantised", quantised)
    source, target = tmp_path / "model.onnx", tmp_path / "int8.xml"
    openvino_runtime.quantise(source, target, [np.zeros((4, 6, 3), np.uint8)])
    assert saved == [(str(source), str(target))]
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


@pytest.fixture
def layers() -> dict:
    """Layers of an openvino.Model by name: of pixels, ordinary, depthwise, and a predictor's."""
    openvino = pytest.importorskip("openvino", reason="pip install -r requirements-extras.txt")
    op = openvino.opset13

    def weights(name: str, *shape: int):
        constant = op.constant(np.full(shape, 0.1, np.float32))
        constant.set_friendly_name(name)
        return constant

    same = {"strides": [1, 1], "pads_begin": [0, 0], "pads_end": [0, 0], "dilations": [1, 1]}
    pixels = op.parameter([1, 3, 8, 8], np.float32)
    made = {"pixels": op.convolution(pixels, weights("stem.weight", 4, 3, 1, 1), **same)}
    made["ordinary"] = op.convolution(made["pixels"], weights("body.weight", 4, 4, 1, 1), **same)
    made["depthwise"] = op.group_convolution(
        made["ordinary"], weights("depthwise.weight", 4, 1, 1, 1, 1), **same
    )
    flat = op.reshape(made["depthwise"], op.constant(np.array([1, -1], np.int64)), False)
    made["head"] = op.matmul(flat, weights("box_head.fc6.weight", 256, 2), False, False)
    made["predictor"] = op.matmul(
        made["head"], weights("box_predictor.bbox_pred.weight", 2, 4), False, False
    )
    for name, layer in made.items():
        layer.set_friendly_name(f"{name}/WithoutBiases" if name == "ordinary" else name)
    return made


def test_pixels_depthwise_convolutions_and_the_box_predictor_stay_in_fp32(layers):
    kept = {name for name, layer in layers.items() if openvino_runtime._keeps_fp32(layer)}
    assert kept == {"pixels", "depthwise", "predictor"}
    assert openvino_runtime.node_name(layers["ordinary"]) == "ordinary"


def test_int8_layers_are_counted_by_how_their_weights_are_stored(layers, tmp_path):
    import openvino

    op = openvino.opset13
    head = layers["head"]
    stored = op.constant(np.full((256, 2), 3, np.int8))
    scaled = op.multiply(op.convert(stored, "f32"), op.constant(np.float32(0.1)))
    head.input(1).replace_source_output(scaled.output(0))
    result = op.result(layers["predictor"])
    (pixels,) = (layers["pixels"].input_value(0).get_node(),)
    openvino.save_model(openvino.Model([result], [pixels]), str(tmp_path / "model.xml"))
    assert openvino_runtime.count_int8_layers(tmp_path / "model.xml") == (1, 5)
