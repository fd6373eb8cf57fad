"""The InferenceGraph with everything that makes it faster and costs nothing to set up.

graph = fast_graph(load_model(path, device).model)
predict = graph_predictor(graph, device)
"""

import copy
from typing import TYPE_CHECKING

import torch
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from common.fastpath import fold_batchnorm
from common.inference_graph import InferenceGraph
from common.low_precision import InPrecision, replace_heavy_modules
from common.roi_align import GATHERING_DEVICES, ChannelsLastMLPHead
from common.winograd import use_winograd

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN


def fast_graph(
    model: "FasterRCNN", dtype: torch.dtype = torch.float32, *, winograd: bool = False
) -> InferenceGraph:
    """Turns a model into its fastest graph; in FP32 results are equal up to rounding.

    Args:
        model: changed in place, for inference only: normalisation is folded into the
            convolutions, whose weights go into channels_last memory.
        dtype: of backbone and heads; torch.bfloat16 and torch.float16 leave box arithmetic in
            FP32 (see `common.low_precision`).
        winograd: 3x3 convolutions in FP32 with a quarter of the multiplications (CPU).
    """
    device = next(model.parameters()).device
    fold_batchnorm(model.eval())
    if winograd:
        use_winograd(model)
    graph = InferenceGraph(model.to(memory_format=torch.channels_last))
    if device.type in GATHERING_DEVICES and isinstance(graph.box_head, TwoMLPHead):
        graph.box_head = ChannelsLastMLPHead(graph.box_head, graph.roi_size)
    if dtype is not torch.float32:
        replace_heavy_modules(graph, lambda module: InPrecision(module, dtype))
    return graph


def shipped_graph(model: "FasterRCNN", device: torch.device, dtype: torch.dtype) -> InferenceGraph:
    """The `fast_graph` of a copy on a device, as videos are detected with."""
    # In FP32 multiplications are what a CPU spends its time on.
    winograd = device.type == "cpu" and dtype is torch.float32
    return fast_graph(copy.deepcopy(model).to(device), dtype, winograd=winograd)
