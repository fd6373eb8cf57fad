"""What a format costs from a cold start: each file is loaded in a process of its own.

    python phase4_deployment/cold_start.py onnx_fp32 model.onnx images.npz 2 measured.json

As a script, which is the child process, it writes one JSON object: seconds to import what the
format needs and to load it, milliseconds of the first inference, the peak resident set of the
process, and the detections on the images of the .npz (uint8 RGB arrays), by which the caller knows
that the file itself was read back right.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/cold_start.py` finds common/

from phase4_deployment.formats import catalogue

TIMEOUT_S = 600  # torch.export programs take long to load

if TYPE_CHECKING:
    import numpy as np

    from phase4_deployment.formats.base import Format


def measure_cold_starts(formats: "Sequence[Format]", images: "Sequence[np.ndarray]") -> None:
    """Loads each shipped file in a process of its own; a file that reads back wrong is rejected.

    Fills in `extra["cold_start"]` and `extra["peak_memory_mib"]` (of that process).

    Args:
        images: uint8 RGB (H, W, 3).
    """
    import numpy as np

    from common.cli import log

    with tempfile.TemporaryDirectory() as name:
        archive = Path(name) / "images.npz"
        np.savez(archive, *images)
        for item in formats:
            if item.file is None or item.predict is None or not item.is_shipped:
                continue
            log.info("Loading %s in a process of its own", item.file.name)
            measured = Path(name) / f"{item.name}.json"
            if fault := _run_alone(item.name, item.file, archive, measured):
                item.status = f"rejected: cannot be loaded ({fault})"
                continue
            result = json.loads(measured.read_text(encoding="utf-8"))
            detections = result.pop("detections")
            item.extra["peak_memory_mib"] = result.pop("peak_memory_mib")
            item.extra["cold_start"] = result
            _compare_reloaded(item, detections, images)


def _run_alone(name: str, file: Path, archive: Path, measured: Path) -> str:
    """Has a child process write `measured`; what went wrong, in a line, or nothing."""
    import torch

    arguments = (name, str(file), str(archive), str(torch.get_num_threads()), str(measured))
    try:
        done = subprocess.run(
            [sys.executable, str(Path(__file__)), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"not within {TIMEOUT_S} s"
    last_line = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
    return last_line[0][:200] if done.returncode else ""


def _compare_reloaded(
    item: "Format", detections: Sequence[Sequence], images: "Sequence[np.ndarray]"
) -> None:
    import numpy as np

    from common.evaluation import compare_detections
    from common.models import Detections
    from phase4_deployment.measuring import MIN_MATCHED

    assert item.predict is not None
    expected = [item.predict([image])[0] for image in images]
    actual = [
        Detections(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(scores, np.float32),
            np.asarray(labels, np.int64),
        )
        for boxes, scores, labels in detections
    ]
    matched = compare_detections(expected, actual)["matched"] or 0.0
    if matched < MIN_MATCHED:
        item.status = f"rejected: the file read back agrees on {matched:.3f} of the boxes only"


# --- the child process ------------------------------------------------------------------------


def cold_start(name: str, path: Path, images_file: Path, threads: int) -> dict[str, Any]:
    """See the head of this file; runs in a fresh process only."""
    module = catalogue.FORMATS[name]
    started = perf_counter()
    module.import_libraries()
    imported = perf_counter()
    predict = module.load(path, threads)
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
    name, path, images_file, threads, measured = (argv or sys.argv[1:])[:5]
    result = cold_start(name, Path(path), Path(images_file), int(threads))
    Path(measured).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
