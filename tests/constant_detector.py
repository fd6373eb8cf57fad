"""An ONNX file of a detector that finds the same in every image; made in milliseconds."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model

from common.onnx_detector import FORMAT

BOX, SCORE, LABEL = (1.0, 2.0, 30.0, 40.0), 0.75, 1
OPSET, IR_VERSION = 17, 8


def write_constant_detector(path: Path) -> None:
    """Writes a detector of two classes, car and person, that finds one car at BOX."""
    outputs = {
        "boxes": (TensorProto.FLOAT, np.array([[BOX]], np.float32)),
        "scores": (TensorProto.FLOAT, np.array([[SCORE]], np.float32)),
        "labels": (TensorProto.INT64, np.array([[LABEL]])),
        "num": (TensorProto.INT64, np.array([1])),
    }
    nodes = [helper.make_node("Shape", ["images"], ["batch"], start=0, end=1)]
    constants = []
    for name, (_, value) in outputs.items():
        constants.append(numpy_helper.from_array(value, f"one_{name}"))
        constants.append(numpy_helper.from_array(np.array(value.shape[1:], np.int64), f"of_{name}"))
        nodes.append(helper.make_node("Concat", ["batch", f"of_{name}"], [f"all_{name}"], axis=0))
        nodes.append(helper.make_node("Expand", [f"one_{name}", f"all_{name}"], [name]))
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w", 3])],
        [
            helper.make_tensor_value_info(name, kind, ["n", *value.shape[1:]])
            for name, (kind, value) in outputs.items()
        ],
        constants,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    described = {"class_names": ["car", "person"], "category_ids": [3, 1]}
    metadata = {key: json.dumps(value) for key, value in described.items()}
    helper.set_model_props(model, {"format": FORMAT, **metadata})
    save_model(model, path)
