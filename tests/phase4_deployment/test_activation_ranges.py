"""What is seen of activations, on graphs whose activations are known."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from common.coco_format import ImageRecord
from phase4_deployment import activation_ranges
from phase4_deployment.activation_ranges import ESTIMATORS, Seen


def record(path, image) -> ImageRecord:
    cv2.imwrite(str(path), image[..., ::-1])
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0)
    height, width = image.shape[:2]
    return ImageRecord(1, path, width, height, *nothing)


@pytest.fixture
def onnx_path(tmp_path):
    """images (1, H, W, 3) uint8 -> float -> 1x1 Conv with weights 2 and bias -100 -> ReLU; and a
    MatMul of an empty matrix."""
    constants = {
        "weight": np.full((1, 3, 1, 1), 2, np.float32),
        "bias": np.array([-100], np.float32),
        "nothing": np.zeros((0, 3), np.float32),
        "matrix": np.ones((3, 2), np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["pixels", "weight", "bias"], ["convolved"]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("Identity", ["nothing"], ["rows"]),
        helper.make_node("MatMul", ["rows", "matrix"], ["product"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, None, None, 3])],
        [helper.make_tensor_value_info("positive", TensorProto.FLOAT, [1, 1, None, None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(model, tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


def test_ranges_are_what_the_network_computed(onnx_path, tmp_path):
    """Greys of 10 and of 50, in three channels: 2 * 3 * grey - 100 is -40 and 200."""
    images = [np.full((40, 30, 3), grey, np.uint8) for grey in (10, 50)]
    images[1][0, 0] = 110  # one pixel of 560
    records = [record(tmp_path / f"{n}.png", image) for n, image in enumerate(images)]
    seen = activation_ranges.look_at(onnx_path, records, ("Conv", "MatMul"))
    assert seen.ranges("widest") == {
        "pixels": (0, 110),
        "convolved": (-40, 560),
        "positive": (0, 560),
        "rows": (0, 0),
        "product": (0, 0),
    }
    average = seen.ranges("average")
    assert average["pixels"] == (0, (10 + 110) / 2)
    assert average["convolved"] == (-20, (0 + 560) / 2)  # 0 is within each image's range


def test_a_quantile_leaves_out_the_rarest_values():
    values = np.arange(-1000, 9001, dtype=np.float32)
    seen = Seen([-1000.0], [9000.0], [values])
    assert seen.range_by("99.9%") == pytest.approx((-990, 8990))
    assert seen.range_by("99.99%") == pytest.approx((-999, 8999))
    assert seen.range_by("widest") == (-1000, 9000)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_zero_is_within_every_range(estimator):
    """What padding holds; asymmetric 8 bits need it as a code."""
    low, high = Seen([0.0], [9.0], [np.linspace(5, 9, 100)]).range_by(estimator)
    assert low == 0
    assert high >= 8
    low, high = Seen([-9.0], [0.0], [np.linspace(-9, -5, 100)]).range_by(estimator)
    assert high == 0
    assert low <= -8


def test_looking_changes_no_detection_and_leaves_no_file(onnx_path, tmp_path):
    before = onnx_path.read_bytes()
    files = set(tmp_path.iterdir())
    image = np.full((8, 8, 3), 50, np.uint8)
    shown = record(tmp_path / "a.png", image)
    activation_ranges.look_at(onnx_path, [shown], ("Conv",))
    assert onnx_path.read_bytes() == before
    assert set(tmp_path.iterdir()) == files | {shown.path}
    session = onnxruntime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": image[None]})[0].max() == 200


def test_large_activations_are_sampled(onnx_path, tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (600, 800, 3), np.uint8)
    seen = activation_ranges.look_at(onnx_path, [record(tmp_path / "a.png", image)], ("Conv",))
    (sample,) = seen.seen["pixels"].sample
    assert sample.base is None, "a view would keep all that the runtime gave out"
    assert 1000 < len(sample) <= activation_ranges.SAMPLE
    assert abs(sample.mean() - 127.5) < 10
