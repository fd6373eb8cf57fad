"""The inference graph against torchvision itself, its operators against plain definitions."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch._dynamo.testing import CompileCounter
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as torchvision_boxes

from common import inference_ops
from common.inference_graph import InferenceGraph, graph_predictor
from common.models import Detections, build_model, resized_size, stock_predictor
from tests.random_detectors import random_detector, random_scene

CPU = torch.device("cpu")
MAX_BOX_ERROR_PX, MAX_SCORE_ERROR = 1e-2, 1e-4  # pixels of the resized image: what is computed in
# (architecture, batches compared, proposals kept): the ResNets are slow, so they keep fewer
CASES = [
    ("demo", 130, None),
    ("fasterrcnn_mobilenet_v3_large_fpn", 30, 300),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 40, None),
    ("fasterrcnn_resnet50_fpn", 5, 100),
    ("fasterrcnn_resnet50_fpn_v2", 4, 40),
]


@pytest.fixture(autouse=True)
def exact_torchvision_nms(monkeypatch):
    """torchvision separates classes by offsets that round boxes in float32; compare without."""
    vanilla = torchvision_boxes._batched_nms_vanilla
    monkeypatch.setattr(torchvision_boxes, "_batched_nms_coordinate_trick", vanilla)


@pytest.fixture(scope="module")
def demo():
    return random_detector("demo", min_size=96, max_size=192)


def random_batch(rng: np.random.Generator) -> list[np.ndarray]:
    """1 to 5 pictures of one size, sides 32 to 1333 and aspect ratios up to 1:8."""
    side, aspect = 2 ** rng.uniform(5, 9.6), 2 ** rng.uniform(-3, 3)
    height, width = (int(np.clip(s, 32, 1333)) for s in (side, side * aspect))
    return [random_scene(rng, height, width) for _ in range(rng.integers(1, 6))]


def assert_same(
    expected: Detections, actual: Detections, max_detections: int, scale: float = 1.0
) -> None:
    """One-to-one equal, but for which of several equal scores made it into a full list.

    `scale`: pixels of the original image for one of the resized image.
    """
    assert len(actual.scores) == len(expected.scores)
    box_error = np.abs(expected.boxes_xyxy[:, None] - actual.boxes_xyxy[None]).max(2, initial=0)
    score_error = np.abs(expected.scores[:, None] - actual.scores[None])
    differs = (
        (expected.labels[:, None] != actual.labels[None])
        | (box_error > MAX_BOX_ERROR_PX * scale)
        | (score_error > MAX_SCORE_ERROR)
    )
    rows, columns = linear_sum_assignment(differs)
    unmatched = rows[differs[rows, columns]]
    if len(expected.scores) == max_detections:
        last = expected.scores.min()
        unmatched = unmatched[expected.scores[unmatched] > last + MAX_SCORE_ERROR]
    assert len(unmatched) == 0, expected.scores[unmatched]


def assert_equals_torchvision(model, images: list[np.ndarray]) -> list[Detections]:
    graph = InferenceGraph(model)
    expected = stock_predictor(model, CPU)(images)
    actual = graph_predictor(graph, CPU)(images)
    for image, stock, ours in zip(images, expected, actual, strict=True):
        height, width = image.shape[:2]
        resized_height, _ = resized_size(height, width, graph.min_size, graph.max_size)
        assert_same(stock, ours, graph.max_detections, height / resized_height)
    return actual


@pytest.mark.parametrize(("architecture", "batches", "proposals"), CASES)
def test_equals_torchvision_on_random_batches(architecture, batches, proposals):
    model = random_detector(architecture, min_size=72, max_size=160, proposals=proposals)
    rng = np.random.default_rng(batches)
    counts = []
    for _ in range(batches):
        detections = assert_equals_torchvision(model, random_batch(rng))
        counts += [len(one.scores) for one in detections]
    assert max(counts) > 20


def test_equals_torchvision_at_full_scale():
    model = random_detector(
        "fasterrcnn_mobilenet_v3_large_fpn", min_size=800, max_size=1333, proposals=200
    )
    assert_equals_torchvision(model, [random_scene(np.random.default_rng(0), 427, 640)])


@pytest.mark.parametrize("num_classes", [2, 91])
def test_equals_torchvision_with_other_numbers_of_classes(num_classes):
    model = random_detector("demo", num_classes=num_classes, min_size=96, max_size=192)
    model.roi_heads.score_thresh = 0.02
    rng = np.random.default_rng(3)
    detections = assert_equals_torchvision(model, [random_scene(rng, 120, 90) for _ in range(3)])
    assert all(len(one.scores) for one in detections)


def test_images_of_several_sizes_come_back_in_order(demo):
    rng = np.random.default_rng(4)
    predict = graph_predictor(InferenceGraph(demo), CPU)
    images = [random_scene(rng, *size) for size in [(64, 96), (96, 64), (64, 96), (33, 47)]]
    for together, image in zip(predict(images), images, strict=True):
        assert_same(predict([image])[0], together, 50)
    assert predict([]) == []


@pytest.mark.parametrize("content", [0, 255])
def test_a_plain_image(demo, content):
    """Its anchors score alike, but pictures without any texture do occur."""
    assert_equals_torchvision(demo, [np.full((64, 64, 3), content, np.uint8)] * 2)


def test_some_images_of_a_batch_without_detections():
    model = random_detector("demo", min_size=96, max_size=192)
    rng = np.random.default_rng(5)
    images = [random_scene(rng, 80, 120) for _ in range(4)] + [np.zeros((80, 120, 3), np.uint8)]
    best = sorted(one.scores.max() for one in stock_predictor(model, CPU)(images))
    model.roi_heads.score_thresh = float(best[1] + best[2]) / 2
    counts = [len(one.scores) for one in assert_equals_torchvision(model, images)]
    assert min(counts) == 0 < max(counts)


@pytest.mark.parametrize("nothing", ["detections", "proposals"])
def test_nothing_found(nothing):
    model = random_detector("demo", min_size=96, max_size=192)
    if nothing == "detections":
        model.roi_heads.score_thresh = 1.0
    else:
        model.rpn.score_thresh = 1.0
    image = random_scene(np.random.default_rng(6), 80, 120)
    for one in assert_equals_torchvision(model, [image, image]):
        assert one.boxes_xyxy.shape == (0, 4)
        assert one.boxes_xyxy.dtype == np.float32


def test_outputs_have_fixed_size_and_end_in_zeros(demo):
    graph = InferenceGraph(demo)
    graph.score_threshold = 0.8
    scenes = [random_scene(np.random.default_rng(seed), 80, 120) for seed in range(3)]
    with torch.inference_mode():
        boxes, scores, labels, num = graph(torch.from_numpy(np.stack(scenes)))
    assert boxes.shape == (3, 50, 4)
    assert labels.dtype == num.dtype == torch.int64
    assert num.max() > 0
    assert num.min() < 50
    for row, count in enumerate(num.tolist()):
        assert (scores[row, :count] > 0.8).all()
        assert (scores[row, :count].diff() <= 0).all()
        assert (labels[row, :count] >= 1).all()
        for output in (boxes, scores, labels):
            assert not output[row, count:].any()


def test_shares_weights_and_adds_none(demo):
    graph = InferenceGraph(demo)
    shared = {parameter.data_ptr() for parameter in demo.parameters()}
    assert {parameter.data_ptr() for parameter in graph.parameters()} == shared
    assert not demo.training


def test_float_images_are_refused(demo):
    with pytest.raises(TypeError, match="uint8"):
        InferenceGraph(demo)(torch.zeros(1, 32, 32, 3))


# --- torch.compile and torch.export -----------------------------------------------------------


@pytest.mark.slow
def test_export_with_dynamic_batch_height_and_width(demo):
    graph = InferenceGraph(demo)
    dynamic = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    example = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(graph, (example,), dynamic_shapes=(dynamic,)).module()
    rng = np.random.default_rng(7)
    for batch, height, width in [(1, 80, 200), (3, 120, 90), (5, 64, 64), (2, 200, 81)]:
        scenes = np.stack([random_scene(rng, height, width) for _ in range(batch)])
        images = torch.from_numpy(scenes)
        with torch.no_grad():
            for expected, actual in zip(graph(images), program(images), strict=True):
                torch.testing.assert_close(actual, expected)


@pytest.mark.slow
def test_traces_into_a_single_graph_for_all_sizes(demo):
    graph = InferenceGraph(demo)
    rng = np.random.default_rng(8)
    frames = CompileCounter()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), torch.no_grad():
        traced = torch.compile(graph, fullgraph=True, dynamic=True, backend=frames)
        for size in [(64, 96), (96, 64), (120, 50)]:
            images = torch.from_numpy(np.stack([random_scene(rng, *size)] * 2))
            for expected, actual in zip(graph(images), traced(images), strict=True):
                torch.testing.assert_close(actual, expected)
    assert frames.frame_count == 1


# --- the operators ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (1, 1), (2, 300), (333, 500)])
def test_preprocess_equals_torchvisions_transform(size):
    model = build_model("demo", 3, min_size=96, max_size=200).eval()
    transform = model.transform
    scene = random_scene(np.random.default_rng(9), *size)
    expected: ImageList = transform([torch.from_numpy(scene).permute(2, 0, 1) / 255])[0]
    mean, std = torch.tensor(transform.image_mean), torch.tensor(transform.image_std)
    arguments = (torch.from_numpy(scene)[None], mean, std, 96, 200, transform.size_divisible)
    pixels, limits, scale = inference_ops.preprocess(*arguments)
    torch.testing.assert_close(pixels, expected.tensors, rtol=0, atol=0)
    height, width = expected.image_sizes[0]
    assert limits.tolist() == [width, height, width, height]
    torch.testing.assert_close(scale * limits, torch.tensor([size[1], size[0]] * 2).float())
    torch.library.opcheck(
        inference_ops.preprocess, arguments, test_utils=("test_schema", "test_faketensor")
    )


def greedy_nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> set[int]:
    """The definition: best first, each kept box removes what overlaps it too much."""
    kept: list[int] = []
    for candidate in np.argsort(-scores, kind="stable"):
        if all(_iou(boxes[candidate], boxes[other]) <= iou_threshold for other in kept):
            kept.append(int(candidate))
    return set(kept)


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    overlap = np.prod(np.maximum(sides, 0))
    return overlap / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - overlap)


@pytest.mark.parametrize("call_limit", [1, 7, 20, 10_000])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_nms_mask_follows_the_definition(monkeypatch, call_limit, scale):
    monkeypatch.setitem(inference_ops.NMS_CALL_LIMIT, "cpu", call_limit)
    rng = np.random.default_rng(10)
    corners = rng.uniform(-1, 1, (3, 12, 2)) * scale
    boxes = np.concatenate([corners, corners + rng.uniform(0.3, 1, (3, 12, 2)) * scale], axis=2)
    boxes = boxes.astype(np.float32)
    scores = rng.uniform(0, 1, (3, 4, 12)).astype(np.float32)
    scores[1] = 0.1  # an image without candidates
    mask = inference_ops.nms_mask(torch.from_numpy(boxes), torch.from_numpy(scores), 0.3, 0.2)
    for image, group in np.ndindex(3, 4):
        candidates = np.flatnonzero(scores[image, group] > 0.2)
        kept = greedy_nms(boxes[image, candidates], scores[image, group, candidates], 0.3)
        expected = {int(candidates[index]) for index in kept}
        assert set(np.flatnonzero(mask[image, group].numpy()).tolist()) == expected


def test_nms_mask_without_candidates_and_its_shape_rule():
    boxes, scores = torch.rand(2, 5, 4), torch.zeros(2, 3, 5)
    assert not inference_ops.nms_mask(boxes, scores, 0.5, 0.0).any()
    torch.library.opcheck(
        inference_ops.nms_mask,
        (boxes, scores, 0.5, 0.0),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_heads_that_give_no_numbers_crash_nothing(value):
    model = random_detector("demo", num_classes=3, min_size=64, max_size=128, seed=0)
    with torch.no_grad():
        model.rpn.head.bbox_pred.bias.fill_(value)
    boxes, scores, _, num = InferenceGraph(model)(torch.zeros(2, 64, 96, 3, dtype=torch.uint8))
    assert boxes.shape[0] == scores.shape[0] == len(num) == 2
