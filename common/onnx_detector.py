"""An exported detector in ONNX Runtime, without PyTorch.

    detections = OnnxDetector(Path("model.onnx"))([rgb_image])  # uint8 (height, width, 3)

Needs only numpy and onnxruntime (or onnxruntime-gpu).
"""

import contextlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common import artifacts, environment
from common.errors import UserError, is_out_of_memory

if TYPE_CHECKING:
    import numpy as np

FORMAT = "detector/1"  # of the metadata in the ONNX file
INPUTS = {"images": "tensor(uint8)"}
OUTPUTS = {
    "boxes": "tensor(float)",
    "scores": "tensor(float)",
    "labels": "tensor(int64)",
    "num": "tensor(int64)",
}
# What ONNX Runtime says before it comes to the point: error class, file, place in its own sources
PREAMBLE = (
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|"
    r"\S+\.(?:cc|h):\d+ (?:.*?\) (?=[A-Z])|\w+ )"
)
REASON_LENGTH = 200
PROVIDERS = {
    "auto": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
}
PROVIDER_OPTIONS = {  # by default TF32 moves boxes, and every new size starts a long search
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}


class ImageDetections(NamedTuple):
    """Boxes of one image, best first: float32 (N, 4) xyxy in pixels of the image, scores float32
    (N,) in [0, 1], labels int64 (N,) from 1, and their class names."""

    boxes_xyxy: "np.ndarray"
    scores: "np.ndarray"
    labels: "np.ndarray"
    names: list[str]


class OnnxDetector:
    """An exported detector in ONNX Runtime.

    Args:
        onnx_path: a file written by export_onnx.py.
        device: "cpu"; "cuda", which fails where CUDA cannot be used; "auto" takes what works.
        threads: CPU threads of the session; 0 lets ONNX Runtime choose.

    Attributes:
        provider: the execution provider that really runs, for instance CPUExecutionProvider.
        metadata: what the file says of itself; class_names and category_ids are lists.

    Raises:
        UserError: the file is missing, damaged or of another kind, there is no such device, or ONNX
            Runtime is not installed.
    """

    def __init__(self, onnx_path: Path, device: str = "auto", threads: int = 0):
        environment.require("onnxruntime")
        import onnxruntime

        self.onnx_path = Path(onnx_path)
        _check_file(self.onnx_path)
        onnxruntime.set_default_logger_severity(4)  # CUDA's absence is told below, in one line
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        available = onnxruntime.get_available_providers()
        providers = [name for name in PROVIDERS[device] if name in available]
        if "CUDAExecutionProvider" in providers:
            _load_cuda_libraries()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it raises, too
                self.session = onnxruntime.InferenceSession(
                    str(onnx_path),
                    options,
                    providers,
                    [PROVIDER_OPTIONS.get(name, {}) for name in providers],
                )
        except Exception as error:  # noqa: BLE001 (a dozen kinds without a common base)
            what = f"cannot be loaded ({_reason(error)})"
            raise UserError(onnx_path, what, "export it again") from None
        self.session.disable_fallback()  # a GPU that fails later is an error, not a slow success
        self.provider = self.session.get_providers()[0]
        if self.provider not in PROVIDERS[device][:1] and device != "auto":
            remedy = "install onnxruntime-gpu with CUDA, or use --device cpu"
            raise UserError(f"--device {device}", f"runs on {self.provider} instead", remedy)
        try:
            self.metadata = _read_metadata(self.session, onnx_path)
            _check_signature(self.session, onnx_path)
        except UnicodeDecodeError as error:
            raise UserError(onnx_path, f"is damaged ({error.reason})", "export it again") from None
        self.class_names: list[str] = self.metadata["class_names"]

    def __call__(self, images: "Sequence[np.ndarray]") -> list[ImageDetections]:
        """Detects objects in uint8 RGB images (H, W, 3) of any sizes; equal sizes share a batch."""
        import numpy as np

        by_size: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            is_image = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            if not is_image or image.size == 0:
                shape = f"{image.dtype} {image.shape}"
                raise ValueError(f"images must be uint8 (height, width, 3), not {shape}")
            by_size.setdefault(image.shape, []).append(position)
        found: dict[int, ImageDetections] = {}
        for positions in by_size.values():
            batch = np.stack([images[position] for position in positions])
            for position, *outputs, count in zip(positions, *self._run(batch), strict=True):
                boxes, scores, labels = (output[:count] for output in outputs)
                names = self._names(labels)
                found[position] = ImageDetections(boxes, scores, labels, names)
        return [found[position] for position in range(len(images))]

    def _run(self, batch: "np.ndarray") -> "list[np.ndarray]":
        """Boxes, scores, labels and their number for uint8 images (N, H, W, 3)."""
        try:
            outputs = self.session.run(None, {"images": batch})
        except Exception as error:
            is_of_the_runtime = type(error).__module__.startswith("onnxruntime.")
            if is_out_of_memory(error) or not is_of_the_runtime:
                raise
            what = f"cannot be run ({_reason(error)})"
            remedy = "export it again, or try --device cpu"
            raise UserError(self.onnx_path, what, remedy) from error
        count, slots = len(batch), outputs[1].shape[1:]
        shapes = [(count, *slots, 4), (count, *slots), (count, *slots), (count,)]
        if len(slots) != 1 or [output.shape for output in outputs] != shapes:
            told = ", ".join(str(output.shape) for output in outputs)
            raise UserError(self.onnx_path, f"answers in other shapes: {told}", "export it again")
        return outputs

    def _names(self, labels: "np.ndarray") -> list[str]:
        if len(labels) and not 1 <= labels.min() <= labels.max() <= len(self.class_names):
            what = f"finds class {labels.max()}, but names {len(self.class_names)} classes"
            raise UserError(self.onnx_path, what, "export it again")
        return [self.class_names[label - 1] for label in labels]


def _check_file(path: Path) -> None:
    """A file that is there, and the one its sidecar tells of, if it has one."""
    if not path.is_file():
        raise UserError(path, "no such file", "check the path")
    beside = artifacts.sidecar(path)
    recorded = artifacts.read_json(beside).get("sha256") if beside.is_file() else None
    if recorded is not None and recorded != artifacts.sha256(path):
        raise UserError(path, f"differs from the sha256 in {beside.name}", "export it again")


def _reason(error: Exception) -> str:
    """What is wrong, in one line and without what concerns the makers of ONNX Runtime only."""
    return re.sub(PREAMBLE, "", " ".join(str(error).split()))[:REASON_LENGTH].strip()


def _load_cuda_libraries() -> None:
    """Loads the CUDA libraries that pip put beside onnxruntime-gpu, which does not find them itself
    unless PyTorch has loaded its own before."""
    import onnxruntime

    preload = getattr(onnxruntime, "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # what is missing, the session tells
            preload()


def _read_metadata(session: Any, onnx_path: Path) -> dict[str, Any]:
    """The file's metadata with its JSON values parsed."""
    metadata: dict[str, Any] = dict(session.get_modelmeta().custom_metadata_map)
    if metadata.get("format") != FORMAT:
        raise UserError(onnx_path, "not a detector of this kind", "export it with export_onnx.py")
    for key, kind in (("class_names", str), ("category_ids", int)):
        try:
            metadata[key] = json.loads(metadata[key])
            whole = all(isinstance(value, kind) for value in metadata[key])
            whole = whole and isinstance(metadata[key], list)
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise UserError(onnx_path, f"its {key} cannot be read", "export it again")
    if len(metadata["class_names"]) != len(metadata["category_ids"]):
        what = "has other numbers of class_names and category_ids"
        raise UserError(onnx_path, what, "export it again")
    return metadata


def _check_signature(session: Any, onnx_path: Path) -> None:
    """Metadata can be copied to any graph: its inputs and outputs must be the detector's, too."""
    for entries, expected in (
        (session.get_inputs(), INPUTS),
        (session.get_outputs(), OUTPUTS),
    ):
        found = {entry.name: entry.type for entry in entries}
        if found != expected or [entry.name for entry in entries] != list(expected):
            names = ", ".join(f"{name} {kind}" for name, kind in found.items()) or "nothing"
            asked = ", ".join(f"{name} {kind}" for name, kind in expected.items())
            what = f"its graph has {names} instead of {asked}"
            raise UserError(onnx_path, what, "export it with export_onnx.py")
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or shape[3] != 3:
        what = f"its images are {shape} instead of [batch, height, width, 3]"
        raise UserError(onnx_path, what, "export it with export_onnx.py")
