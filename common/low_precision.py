"""Inference in half precision where that is safe: in the heavy layers, never in box arithmetic."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common.fastpath import to_float32

if TYPE_CHECKING:
    from common.inference_graph import InferenceGraph

HEAVY_MODULES = ("backbone", "rpn_head", "box_head", "box_predictor")


class InPrecision(nn.Module):
    """A module that computes in another precision: inputs are converted, outputs are FP32.

    Autocast converts the weights of every layer at every call; here they are converted once.

    Args:
        module: copied, so the original keeps its weights.
        dtype: torch.bfloat16 or torch.float16.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module = copy.deepcopy(module).to(dtype)
        self.dtype = dtype

    def forward(self, inputs: Any) -> Any:
        """One tensor or list of tensors, as the heavy modules of an InferenceGraph take them."""
        if isinstance(inputs, Tensor):
            return to_float32(self.module(inputs.to(self.dtype)))
        return to_float32(self.module([entry.to(self.dtype) for entry in inputs]))


def replace_heavy_modules(
    graph: "InferenceGraph", replacement: Callable[[nn.Module], nn.Module]
) -> None:
    """Exchanges the modules of a graph that hold its weights; the box arithmetic stays."""
    for name in HEAVY_MODULES:
        setattr(graph, name, replacement(getattr(graph, name)))
