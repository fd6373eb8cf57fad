"""Which range of an activation static INT8 maps to 8 bits, from what was seen on images.

A wide range loses resolution for all values, a narrow one cuts off the largest (Nagel et al. 2021,
https://arxiv.org/abs/2106.08295, section 3.1). Which costs less depends on how heavy the tails of a
network's activations are: a detector whose largest activation is a thousand times its usual ones
finds nothing with the widest ranges. So there are several ESTIMATORS, to be tried.
"""

import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.coco import ImageRecord, read_image

if TYPE_CHECKING:
    import onnx

WIDEST, AVERAGE = "widest", "average"  # of all images, and of each image's smallest and largest
QUANTILES = {"99.99%": 0.9999, "99.9%": 0.999}
ESTIMATORS = (WIDEST, AVERAGE, *QUANTILES)
STEP = 61  # of each activation every 61st value is looked at: a prime, so all channels have a part
SAMPLE = 4096  # of these at most, of each image

Ranges = dict[str, tuple[float, float]]


@dataclass
class Seen:
    """What was seen of one activation: extremes of every image, with 0, and some of its values."""

    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    sample: list[np.ndarray] = field(default_factory=list)

    def range_by(self, estimator: str) -> tuple[float, float]:
        """(low, high) by one of ESTIMATORS; 0 is always within, as padding is 0."""
        if estimator == WIDEST:
            return min(self.lows), max(self.highs)
        if estimator == AVERAGE:
            return float(np.mean(self.lows)), float(np.mean(self.highs))
        share = QUANTILES[estimator]
        low, high = np.quantile(np.concatenate(self.sample), [1 - share, share])
        return min(0.0, float(low)), max(0.0, float(high))


@dataclass(frozen=True)
class SeenActivations:
    """What was seen of all activations around the operators that become INT8."""

    seen: dict[str, Seen]

    def ranges(self, estimator: str) -> Ranges:
        return {name: seen.range_by(estimator) for name, seen in self.seen.items()}


def look_at(
    source: Path, images: Iterable[ImageRecord], operators: Collection[str]
) -> SeenActivations:
    """Runs an FP32 ONNX detector over images and keeps what its activations were.

    Only extremes and samples leave the runtime, so memory stays that of a detection.

    Args:
        operators: types of the nodes whose inputs and outputs are looked at, and what ReLU makes
            of the outputs.
    """
    import onnx
    import onnxruntime

    model = onnx.load(source)
    names = _activations(model.graph, operators)
    outputs = [output for name in names for output in _add_probes(model.graph, name)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    seen = {name: Seen() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        probed = Path(folder) / "probed.onnx"
        onnx.save_model(model, probed)
        session = onnxruntime.InferenceSession(probed, options, providers=["CPUExecutionProvider"])
        for record in images:
            image = read_image(record.path, (record.width, record.height))[None]
            found = session.run(outputs, {"images": image})
            for name, low, high, values in zip(
                names, found[0::3], found[1::3], found[2::3], strict=True
            ):
                seen[name].lows.append(float(low))
                seen[name].highs.append(float(high))
                few = values[:: max(1, -(-len(values) // SAMPLE))]
                seen[name].sample.append(few.copy())  # a view would keep all values in memory
    return SeenActivations(seen)


def _activations(graph: "onnx.GraphProto", operators: Collection[str]) -> list[str]:
    """Names of what the operators take and give, without weights, in the order of the graph."""
    constants = {constant.name for constant in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    names: dict[str, None] = {}
    for node in graph.node:
        if node.op_type in operators:
            names |= dict.fromkeys([*node.input, *node.output])
        elif node.op_type == "Relu" and node.input[0] in names:
            names[node.output[0]] = None
    return [name for name in names if name and name not in constants]


def _add_probes(graph: "onnx.GraphProto", name: str) -> list[str]:
    """Adds the smallest value, the largest, and every STEP-th; returns the names of these outputs.

    A 0 is added to the values first: an activation without any has a smallest one then, too.
    """
    from onnx import TensorProto, helper, numpy_helper

    def constant(part: str, values: Any, dtype: type) -> str:
        tensor = numpy_helper.from_array(np.array(values, dtype), f"{name}/{part}")
        graph.initializer.append(tensor)
        return tensor.name

    flat, with_zero = f"{name}/flat", f"{name}/with_zero"
    outputs = [f"{name}/low", f"{name}/high", f"{name}/sample"]
    every = [
        constant("begin", [0], np.int64),
        constant("end", [np.iinfo(np.int64).max], np.int64),
        constant("axis", [0], np.int64),
        constant("step", [STEP], np.int64),
    ]
    graph.node.extend(
        [
            helper.make_node("Reshape", [name, constant("shape", [-1], np.int64)], [flat]),
            helper.make_node(
                "Concat", [flat, constant("zero", [0], np.float32)], [with_zero], axis=0
            ),
            helper.make_node("ReduceMin", [with_zero], [outputs[0]], keepdims=0),
            helper.make_node("ReduceMax", [with_zero], [outputs[1]], keepdims=0),
            helper.make_node("Slice", [with_zero, *every], [outputs[2]]),
        ]
    )
    for output in outputs:
        shape = [None] if output == outputs[-1] else []
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
    return outputs
