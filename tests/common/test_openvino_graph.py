"""Which parts of the exported graph OpenVINO may compute with fewer bits."""

import numpy as np
import pytest

from common import onnx_graph
from common.inference_graph import InferenceGraph
from common.openvino_graph import network_operations, with_fp32_coordinates
from tests.random_detectors import random_detector, random_scene

openvino = pytest.importorskip("openvino", reason="requirements-extras.txt is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def graph():
    return InferenceGraph(random_detector("demo", min_size=256, max_size=384, proposals=60))


@pytest.fixture(scope="module")
def exported(graph, tmp_path_factory):
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    onnx_graph.write_onnx(graph, file, {})
    return openvino.Core().read_model(str(file))


def compiled(model, precision: str):
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})


def precisions_of_regions(model) -> set[str]:
    """In which precision the operations compute that give RoIAlign its boxes."""
    executed = compiled(model, "bf16").get_runtime_model()

    def told(operation, key: str) -> str:
        information = operation.get_rt_info()
        return str(information[key].astype(str)) if key in information else ""

    pools = [op for op in executed.get_ops() if told(op, "layerType") == "ROIAlign"]
    assert pools
    found = set()
    for pool in pools:
        above = [pool.input(1).get_source_output().get_node()]
        while above and told(above[0], "layerType") in ("Reorder", "Convert", "Reshape"):
            above = [above[0].input(0).get_source_output().get_node()]
        found.add(told(above[0], "runtimePrecision"))
    return found


def test_networks_end_where_boxes_begin(exported):
    kinds = {op.get_friendly_name(): op.get_type_name() for op in exported.get_ops()}
    networks = network_operations(exported)
    inside = {kinds[name] for name in networks}
    assert {"Convolution", "MatMul"} <= inside
    assert not inside & {"TopK", "NonMaxSuppression", "ROIAlign", "Exp", "Softmax"}
    products = {name for name, kind in kinds.items() if kind in ("Convolution", "MatMul")}
    assert products <= networks


def test_regions_stay_in_fp32_where_networks_compute_in_16_bits(exported):
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16 instructions")
    assert precisions_of_regions(exported) == {"bf16"}  # or the mark would not be needed
    assert precisions_of_regions(with_fp32_coordinates(exported)) == {"f32"}


def test_the_marked_graph_is_the_same_in_fp32(exported):
    image = random_scene(np.random.default_rng(0), 200, 300)[None]
    plain, marked = (
        compiled(model, "f32")({onnx_graph.INPUT_NAME: image})
        for model in (exported, with_fp32_coordinates(exported))
    )
    assert plain["num"][0] > 5
    for name in onnx_graph.OUTPUT_NAMES:
        np.testing.assert_array_equal(plain[name], marked[name])


def test_regions_are_pooled_as_torchvision_pools_them(graph, exported):
    import torch

    image = random_scene(np.random.default_rng(1), 250, 333)[None]
    found = compiled(exported, "f32")({onnx_graph.INPUT_NAME: image})
    with torch.inference_mode():
        boxes, scores, _, num = (value.numpy() for value in graph(torch.from_numpy(image)))
    assert found["num"][0] == num[0] > 5
    np.testing.assert_allclose(found["scores"], scores, atol=1e-4)
    np.testing.assert_allclose(found["boxes"], boxes, atol=1e-2)
