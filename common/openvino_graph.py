"""What OpenVINO has to be told of the exported graph, so that fewer bits do not move boxes."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PRODUCTS = {"Convolution", "GroupConvolution", "MatMul"}
POOLING = "ROIAlign"
BETWEEN_NETWORKS = {"TopK", "GatherElements", "NonMaxSuppression", POOLING, "ShapeOf"}
# Pooling may read 16 bits: it adds up in FP32 and takes its coordinates in FP32. The others are no
# arithmetic.
MAY_HAVE_FEWER_BITS = {POOLING, "Const", "Parameter", "Result"}
KEEP_FP32 = {"name": "precise", "version": "0"}  # the attribute's name in OpenVINO's files


def network_operations(model: Any) -> set[str]:
    """Names of the convolutions, the matrix products, and what stands between two of them.

    That is the backbone with the RPN head, and the box head with the box predictor: walks from
    the products, in both directions, end where boxes are made of the networks' outputs.

    Args:
        model: an openvino.Model of the exported graph.
    """
    return _between(model, PRODUCTS)


def _between(model: Any, starts: set[str]) -> set[str]:
    """Names of the products, and of what stands between an operation of these types and one."""

    def reached(types: set[str], neighbours: Callable[[Any], Iterable[Any]]) -> set[str]:
        reached_from = [op for op in model.get_ops() if op.get_type_name() in types]
        names = {op.get_friendly_name() for op in reached_from}
        while reached_from:
            for op in neighbours(reached_from.pop()):
                if op.get_friendly_name() in names or op.get_type_name() in BETWEEN_NETWORKS:
                    continue
                names.add(op.get_friendly_name())
                reached_from.append(op)
        return names

    after = reached(
        starts, lambda op: (i.get_node() for o in op.outputs() for i in o.get_target_inputs())
    )
    before = reached(PRODUCTS, lambda op: (i.get_source_output().get_node() for i in op.inputs()))
    return after & before


def with_fp32_coordinates(model: Any) -> Any:
    """A copy of an openvino.Model of the exported graph whose box arithmetic stays in FP32 where
    the networks are compiled for 16 bits.

    By itself OpenVINO gives the regions to RoIAlign in 16 bits, too: 8 significant bits tell 300.0
    from 301.0, but not from 300.9. The mark that prevents it can be set in a file only.
    """
    import openvino

    networks = _between(model, PRODUCTS | {POOLING})
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "model.xml"
        openvino.save_model(model, str(file), compress_to_fp16=False)
        tree = ElementTree.parse(file)
        for layer in tree.iterfind("layers/layer"):
            if layer.get("name") in networks or layer.get("type") in MAY_HAVE_FEWER_BITS:
                continue
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.SubElement(layer, "rt_info")
            ElementTree.SubElement(info, "attribute", KEEP_FP32)
        tree.write(file)
        return openvino.Core().read_model(file.read_bytes(), file.with_suffix(".bin").read_bytes())
