"""Every format, in the order of the tables. A new one is a file of this folder and a line here.

A format is a module with its NAME and RUNTIME; `build(ingredients)`, which makes it; and
`import_libraries()` and `load(file, threads)`, which a fresh process calls to run its file, and
which are timed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from phase4_deployment.formats import (
    aot_inductor,
    onnx_fp16,
    onnx_fp32,
    onnx_int8,
    onnx_tensorrt_fp16,
    openvino_fp32,
    openvino_int8,
    pytorch_export,
    pytorch_fp32,
    pytorch_int8_dynamic,
    torchscript,
)
from phase4_deployment.formats.base import Format, Ingredients

if TYPE_CHECKING:
    from common.models import Predictor


class FormatModule(Protocol):
    """What a module of this folder offers."""

    NAME: str
    RUNTIME: str

    def build(self, ingredients: Ingredients) -> Format: ...

    def import_libraries(self) -> None: ...

    def load(self, file: Path, threads: int) -> "Predictor": ...


ALL: Sequence[FormatModule] = (
    pytorch_fp32,
    torchscript,
    pytorch_export,
    aot_inductor,
    onnx_fp32,
    onnx_fp16,
    onnx_int8,
    onnx_tensorrt_fp16,
    openvino_fp32,
    openvino_int8,
    pytorch_int8_dynamic,
)
FORMATS = {module.NAME: module for module in ALL}
ASKED_FOR = (aot_inductor.NAME, onnx_fp16.NAME, onnx_tensorrt_fp16.NAME)  # by name, or by "all"
DEFAULT = tuple(name for name in FORMATS if name not in ASKED_FOR)
NEEDED = (pytorch_fp32.NAME, onnx_fp32.NAME)  # the baseline, and what the package runs
