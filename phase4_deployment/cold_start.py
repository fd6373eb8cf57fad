"""What a format costs from a cold start: run as a child process by export_all.py.

    python phase4_deployment/cold_start.py outputs/deployment/model.onnx images.npz 2

Prints one JSON object: seconds to import what the format needs and to load it, milliseconds of
the first inference, the peak resident set of the process, and the detections on the images of
the .npz (uint8 RGB arrays), by which the caller knows that the file itself was read back right.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/cold_start.py` finds common/


def import_pytorch() -> None:
    import torch  # noqa: F401
    import torchvision  # noqa: F401  (the .pt2 file names its operators)

    from common import inference_graph, models  # noqa: F401


def import_onnxruntime() -> None:
    import onnxruntime  # noqa: F401

    from common import onnx_detector  # noqa: F401


def load_pth(path: Path, threads: int) -> Callable:
    import torch

    from common.models import load_model, stock_predictor

    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    return stock_predictor(load_model(path, cpu).model, cpu)


def load_pt2(path: Path, threads: int) -> Callable:
    import torch

    from common.inference_graph import graph_predictor

    torch.set_num_threads(threads)
    # The guards of an export refuse feature maps of one row, on which the program is right.
    program = torch.export.load(path).module(check_guards=False)
    return graph_predictor(program, torch.device("cpu"))


def load_onnx(path: Path, threads: int) -> Callable:
    from common.onnx_detector import OnnxDetector

    return OnnxDetector(path, "cpu", threads)


LOADERS: dict[str, tuple[Callable[[], None], Callable[[Path, int], Callable]]] = {
    ".pth": (import_pytorch, load_pth),
    ".pt2": (import_pytorch, load_pt2),
    ".onnx": (import_onnxruntime, load_onnx),
}


def cold_start(path: Path, images_file: Path, threads: int) -> dict[str, Any]:
    """See the head of this file; runs in a fresh process only."""
    import_libraries, load = LOADERS[path.suffix]
    started = perf_counter()
    import_libraries()
    imported = perf_counter()
    predict = load(path, threads)
    loaded = perf_counter()

    import numpy as np

    from common import timing

    with np.load(images_file) as archive:
        images = list(archive.values())
    before = perf_counter()
    detections = predict(images[:1])
    first_ms = (perf_counter() - before) * 1e3
    detections += [found for image in images[1:] for found in predict([image])]
    return {
        "import_s": imported - started,
        "load_s": loaded - imported,
        "first_inference_ms": first_ms,
        "peak_memory_mib": timing.resident_peak_mib(),
        "detections": [[values.tolist() for values in found[:3]] for found in detections],
    }


def main(argv: Sequence[str] | None = None) -> int:
    path, images_file, threads = (argv or sys.argv[1:])[:3]
    sys.stdout.write(json.dumps(cold_start(Path(path), Path(images_file), int(threads))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
