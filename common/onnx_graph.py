"""Writes an InferenceGraph as one ONNX file with dynamic batch, height and width.

The file takes `images` uint8 [batch, height, width, 3] and gives `boxes`, `scores`, `labels` and
`num` as `InferenceGraph.forward` does. It needs no operator outside the ONNX standard.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import artifacts

if TYPE_CHECKING:
    from common.inference_graph import InferenceGraph

OPSETS = range(18, 24)  # Resize with sizes as used here needs 18; later ones are not tried
DEFAULT_OPSET = 18
INPUT_NAME = "images"
OUTPUT_NAMES = ("boxes", "scores", "labels", "num")
MAX_BOXES_PER_GROUP = 2**31 - 1  # "no limit": the graph itself keeps the best D


def write_onnx(
    graph: "InferenceGraph", path: Path, metadata: Mapping[str, str], opset: int = DEFAULT_OPSET
) -> None:
    """Exports through torch.export and the dynamo exporter, checks the file, writes it whole.

    Args:
        graph: on any device; it is exported where it is.
        metadata: texts for the file's `metadata_props`.
        opset: one of OPSETS.
    """
    import onnx
    import torch

    example = torch.zeros(2, 96, 128, 3, dtype=torch.uint8, device=graph.mean.device)
    with torch.no_grad(), _quiet_exporter():
        program: Any = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes=(dict.fromkeys(range(3), torch.export.Dim.DYNAMIC),),
            custom_translation_table=translations(),
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    _name_dimensions(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    with artifacts.atomic_path(path) as temporary:
        onnx.save_model(model, temporary)
        onnx.checker.check_model(temporary)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences what the exporter says of its own inside; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_dimensions(model: Any) -> None:
    """Gives the dynamic dimensions the names a reader of the file expects."""
    shapes = {
        INPUT_NAME: ("batch", "height", "width", 3),
        "boxes": ("batch", None, 4),
        "scores": ("batch", None),
        "labels": ("batch", None),
        "num": ("batch",),
    }
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(
            value.type.tensor_type.shape.dim, shapes[value.name], strict=True
        ):
            if isinstance(name, str):
                dimension.dim_param = name


def translations() -> dict[Callable, Callable]:
    """ONNX functions for the custom operators of common/inference_ops.py."""
    import torch

    from common import inference_ops  # noqa: F401  (registers the operators)

    return {
        torch.ops.detection.preprocess.default: _preprocess_to_onnx(),
        torch.ops.detection.nms_mask.default: _nms_mask_to_onnx(),
        torch.ops.torchvision.roi_align.default: _roi_align_to_onnx(),
    }


def _preprocess_to_onnx() -> Callable:
    import onnx
    from onnxscript import opset18

    op: Any = opset18  # its own annotations do not admit nested calls

    def limits_of(size: Any) -> Any:
        """int64 (height, width) -> float32 (width, height, width, height)."""
        order = op.Constant(value_ints=[1, 0, 1, 0])
        return op.Cast(op.Gather(size, order), to=onnx.TensorProto.FLOAT)

    def resized_size(size: Any, min_size: int, max_size: int) -> Any:
        min_side, max_side = (op.Constant(value_ints=[side]) for side in (min_size, max_size))
        by_short = op.Div(op.Mul(size, min_side), op.ReduceMin(size, keepdims=1))
        by_long = op.Div(op.Mul(size, max_side), op.ReduceMax(size, keepdims=1))
        return op.Max(op.Min(by_short, by_long), op.Constant(value_ints=[1]))

    def preprocess(images, mean, std, min_size: int, max_size: int, divisor: int):
        pixels = op.Cast(op.Transpose(images, perm=[0, 3, 1, 2]), to=onnx.TensorProto.FLOAT)
        pixels = op.Div(pixels, op.Constant(value_float=255.0))
        channels = op.Constant(value_ints=[3, 1, 1])
        pixels = op.Sub(pixels, op.Reshape(mean, channels))
        pixels = op.Div(pixels, op.Reshape(std, channels))
        original = op.Shape(images, start=1, end=3)
        resized = resized_size(original, min_size, max_size)
        pixels = op.Resize(
            pixels,
            None,
            None,
            op.Concat(op.Shape(pixels, start=0, end=2), resized, axis=0),
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
        step = op.Constant(value_ints=[divisor])
        missing = op.Mod(op.Sub(step, op.Mod(resized, step)), step)
        before_and_after = op.Concat(op.Constant(value_ints=[0] * 6), missing, axis=0)
        limits = limits_of(resized)
        return op.Pad(pixels, before_and_after), limits, op.Div(limits_of(original), limits)

    return preprocess


def _nms_mask_to_onnx() -> Callable:
    import onnx
    from onnxscript import opset18

    op: Any = opset18

    def filled(shape: Any, value: float) -> Any:
        content = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [value])
        return op.ConstantOfShape(shape, value=content)

    def nms_mask(boxes, scores, iou_threshold: float, score_threshold: float):
        selected = op.NonMaxSuppression(
            op.Reshape(boxes, op.Constant(value_ints=[0, -1, 4])),  # OpenVINO must see the 4
            scores,
            op.Constant(value_ints=[MAX_BOXES_PER_GROUP]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[score_threshold]),
        )
        marks = filled(op.Shape(selected, start=0, end=1), 1.0)
        mask = op.ScatterND(filled(op.Shape(scores), 0.0), selected, marks)
        return op.Greater(mask, op.Constant(value_float=0.5))

    return nms_mask


def _roi_align_to_onnx() -> Callable:
    """Unlike onnxscript's own it gathers columns, as OpenVINO rewrites slices into splits, which
    forget that they must keep FP32 (see `common.openvino_graph`)."""
    import onnx
    from onnxscript import opset18

    op: Any = opset18

    def roi_align(
        features, rois, spatial_scale: float, pooled_height: int, pooled_width: int,
        sampling_ratio: int, aligned: bool,
    ):  # fmt: skip
        return op.RoiAlign(
            features,
            op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1),
            op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=onnx.TensorProto.INT64),
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            output_height=pooled_height,
            output_width=pooled_width,
            sampling_ratio=max(0, sampling_ratio),
            spatial_scale=spatial_scale,
        )

    return roi_align
