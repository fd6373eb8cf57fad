"""INT8 quantisation of a detector: PyTorch's dynamic one and ONNX Runtime's static one.

    python phase4_deployment/quantization.py                   # both, on the demo model and data
    python phase4_deployment/quantization.py --max-map-drop 0.01 --calibration-images 64

A real number x is stored as the integer round(x / scale) + zero_point (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877). Dynamic quantisation does so for the weights and finds the
activations' scales anew at every call; PyTorch has it for Linear layers only, so a detector's
convolutions stay in float. Static quantisation fixes the activations' scales beforehand, on
calibration images, and covers convolutions too.

Writes outputs/metrics/quantization.json; `quantize.py` writes quantised models.
"""

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/quantization.py` finds common/

import numpy as np

from common import artifacts, cli, paths
from common.coco import CocoSplit, ImageRecord

if TYPE_CHECKING:
    import torch
    from torchvision.models.detection import FasterRCNN

    from phase4_deployment.activation_ranges import Ranges


QUANTIZED_OPERATORS = ("Conv", "Gemm", "MatMul")  # the rest of the graph is box arithmetic
DYNAMIC = "dynamic int8"  # the value of "quantization" in a checkpoint
CALIBRATION_IMAGES = 32
MAX_MAP_DROP = 0.02


# --- dynamic quantisation in PyTorch ----------------------------------------------------------


def quantize_dynamic(model: "FasterRCNN") -> "FasterRCNN":
    """A copy whose Linear layers hold int8 weights; the CPU only.

    Conv2d is asked for as well, and left alone: PyTorch has no dynamic int8 convolution.

    Raises:
        UserError: this PyTorch was built without an engine for int8.
    """
    import torch

    backend = torch.backends.quantized
    engines = [name for name in backend.supported_engines if name != "none"]
    if not engines:
        what = "this PyTorch was built without an engine for it (fbgemm, qnnpack, ...)"
        raise cli.UserError("dynamic INT8", what, "quantise to .onnx instead")
    if backend.engine == "none":  # some builds have one and choose none
        backend.engine = engines[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its removal at every call
        return torch.ao.quantization.quantize_dynamic(
            model.cpu().eval(), {torch.nn.Linear, torch.nn.Conv2d}, dtype=torch.qint8
        )


def count_quantized(model: "torch.nn.Module") -> dict[str, dict[str, int]]:
    """{"Linear": {"int8": n, "float": m}, "Conv2d": {...}} over the layers of a model."""
    import torch
    from torch.ao.nn import quantized
    from torch.ao.nn.quantized import dynamic

    kinds = {
        "Linear": (dynamic.Linear, torch.nn.Linear),
        "Conv2d": (quantized.Conv2d, torch.nn.Conv2d),
    }
    layers = list(model.modules())
    return {
        name: {
            "int8": sum(isinstance(layer, int8) for layer in layers),
            "float": sum(type(layer) is full for layer in layers),
        }
        for name, (int8, full) in kinds.items()
    }


def save_dynamic(path: Path, model: "FasterRCNN", checkpoint: dict[str, Any]) -> None:
    """Writes a dynamically quantised model as tensors and plain values; see `load_dynamic`.

    Args:
        model: from `quantize_dynamic`.
        checkpoint: the FP32 checkpoint it was made from; its description is kept.
    """
    kept = ("architecture", "num_classes", "min_size", "max_size", "class_names", "category_ids")
    described: dict[str, Any] = {key: checkpoint[key] for key in kept}
    described["quantization"] = DYNAMIC
    layout = [key for key in ("anchor_sizes", "frozen_norm_eps") if key in checkpoint]
    content = described | {key: checkpoint[key] for key in layout}
    content["model_state_dict"] = model.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artifacts.save_checkpoint(path, content, described)


def load_dynamic(path: Path) -> "FasterRCNN":
    """Loads what `save_dynamic` wrote, in evaluation mode on the CPU; executes no pickled code.

    Raises:
        UserError: no such file, a damaged one, or a checkpoint that is not quantised.
    """
    from common.models import rebuild_model

    checkpoint = artifacts.load_checkpoint(path)
    if checkpoint.get("quantization") != DYNAMIC:
        raise cli.UserError(path, "not quantised", "use common.models.load_model for it")
    state = checkpoint["model_state_dict"]
    model = rebuild_model({**checkpoint, "model_state_dict": _in_float(state)})
    model = quantize_dynamic(model)
    model.load_state_dict(state)
    return model.eval()


def _in_float(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a model without int8 layers, with their weights near what they were."""
    packed = "._packed_params._packed_params"
    layers = [name.removesuffix(packed) for name in state if name.endswith(packed)]
    own = {f"{layer}{end}" for layer in layers for end in (".scale", ".zero_point")}
    found = {n: value for n, value in state.items() if "._packed_params." not in n and n not in own}
    for layer in layers:
        weight, bias = state[layer + packed]
        found |= {f"{layer}.weight": weight.dequantize(), f"{layer}.bias": bias}
    return found


# --- static quantisation of an ONNX file ------------------------------------------------------


def calibration_records(train: CocoSplit, count: int) -> tuple[ImageRecord, ...]:
    """`count` images spread evenly over a training split (all of it when it has fewer)."""
    places = np.linspace(0, len(train.records) - 1, min(count, len(train.records)))
    return tuple(train.records[place] for place in places.round().astype(int))


def quantize_static(
    source: Path, target: Path, ranges: "Ranges", float_nodes: Sequence[str] = ()
) -> None:
    """Writes an INT8 copy of an FP32 ONNX detector: QDQ form, int8 weights, uint8 activations.

    Weights get a scale per output channel. Unsigned activations are what x86's integer
    instructions multiply with signed weights; with signed ones they lose most of the speed.
    Weights keep to -64..64: processors without VNNI add two such products in 16 bits, where
    255 * 127 + 255 * 127 is cut off without a word, and a file goes to other machines than the
    one it was made on.
    Only QUANTIZED_OPERATORS are touched: box decoding, NMS and RoIAlign stay in float.

    Args:
        ranges: of the activations by name, see `activation_ranges`.
        float_nodes: names of nodes to leave in float.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    with artifacts.atomic_path(target) as temporary, _without_root_log():
        quantizer = QDQQuantizer(
            onnx.load(source),
            per_channel=True,
            reduce_range=True,  # of the weights
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=list(float_nodes),
            op_types_to_quantize=list(QUANTIZED_OPERATORS),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        model = quantizer.model.model
        _strip(model)
        onnx.checker.check_model(model)
        onnx.save_model(model, temporary)


@contextlib.contextmanager
def _without_root_log() -> Iterator[None]:
    """Drops what ONNX Runtime says through the root logger: the first such call sets up a handler,
    and messages of others are then doubled."""
    root, nowhere = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(nowhere)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(nowhere)


def _strip(model: Any) -> None:
    """Drops source lines and shapes that the exporter noted at every node, 25% of a small file."""
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def layer_groups(path: Path) -> dict[str, list[str]]:
    """Quantisable nodes of an ONNX detector by the part of the network they belong to.

    Returns:
        for instance {"backbone.body.stem": ["node_Conv_962"], "rpn_head": [...]}, in the order
        of the graph. A node belongs to a part by the name of its weights.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {initializer.name for initializer in graph.initializer}
    groups: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in QUANTIZED_OPERATORS:
            named = [name for name in node.input if name in weights]
            parts = named[0].split(".") if named else [node.name]
            depth = 3 if parts[0] == "backbone" else 2 if parts[0] == "box_predictor" else 1
            groups.setdefault(".".join(parts[:depth]), []).append(node.name)
    return groups


def count_int8_layers(path: Path) -> tuple[int, int]:
    """(quantised, all) Conv, Gemm and MatMul nodes of an ONNX file: those fed with int8 weights."""
    import onnx

    graph = onnx.load(path).graph
    int8 = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.INT8}
    restored = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in int8
    }
    layers = [node for node in graph.node if node.op_type in QUANTIZED_OPERATORS]
    return sum(any(name in restored for name in n.input) for n in layers), len(layers)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    add_arguments(parser)
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder for the report")
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that quantization.py and quantize.py share."""
    parser.add_argument("--model-path", type=Path, help="checkpoint (default: newest best model)")
    parser.add_argument("--data-path", type=Path, help="COCO data set (default: the demo data)")
    parser.add_argument(
        "--calibration-images",
        type=cli.positive_int,
        default=CALIBRATION_IMAGES,
        help="training images that fix the ranges of static INT8",
    )
    parser.add_argument(
        "--max-map-drop",
        type=cli.fraction,
        default=MAX_MAP_DROP,
        help="mAP that static INT8 may lose on the val images before layers stay in float",
    )
    parser.add_argument(
        "--max-images", type=cli.positive_int, default=100, help="val images to compute mAP on"
    )
    parser.add_argument(
        "--num-iterations", type=cli.positive_int, default=30, help="timed rounds, at most"
    )


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_arguments` and the common options have read, as `quantize.quantize` takes it."""
    shared = ("model_path", "data_path", "calibration_images", "max_map_drop", "max_images")
    found = {name: getattr(args, name) for name in (*shared, "num_iterations", "seed")}
    return {**found, "device_name": args.device}


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def demonstrate() -> None:
        from phase4_deployment.quantize import quantize

        quantize(
            outputs=[Path("dynamic.pth"), Path("static.onnx")],
            report_path=args.output / "quantization.json",
            delivers=False,
            **settings_of(args),
        )
        cli.finished([args.output / "quantization.json"], "python phase4_deployment/export_all.py")

    return cli.run(demonstrate, args)


if __name__ == "__main__":
    sys.exit(main())
