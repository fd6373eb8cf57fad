"""A package made without measuring anything, and running one as its users do."""

import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from phase4_deployment.packing import package_files


def measured_row(name: str, file: str | None, status: str = "ok", **changes: Any) -> dict[str, Any]:
    """A row as `measure_formats` makes them, with figures that nobody measured."""
    batches = [
        {
            "batch_size": size,
            "latency_ms": {"p50": 30.0 * size, "p90": 40.0 * size, "p99": 50.0 * size},
            "throughput_img_s": 30.0 + size,
        }
        for size in (1, 2, 3)
    ]
    return {
        "name": name,
        "file": file,
        "status": status,
        "size_mib": 8.0,
        "latency_ms": batches[0]["latency_ms"],
        "throughput_img_s": 33.0,
        "optimal_batch_size": 3,
        "batch_size_within_budget": 2,
        "batches": batches,
        "map": 0.5,
        "map_50": None,
        "speedup": {"ratio": 1.5, "ci95": [1.25, 1.75]},
        "cold_start": {"load_s": 0.5},
        **changes,
    }


def build_package(
    folder: Path,
    exported: SimpleNamespace,
    images: Sequence[np.ndarray],
    *,
    reason: str | None = None,
    proposals: int = 1000,
    **changes: Any,
) -> None:
    """Writes a package whose model_int8.onnx is the FP32 one.

    Args:
        reason: why it could not be tried in a clean environment.
        proposals: that exported graphs look at, of 1000.
        changes: those of its row.
    """
    folder.mkdir(parents=True)
    shutil.copyfile(exported.model_path, folder / "model.pth")
    for name in ("model.onnx", "model_int8.onnx"):
        shutil.copyfile(exported.onnx_path, folder / name)
    rows = [
        measured_row("pytorch_fp32", "model.pth", speedup=None),
        measured_row("torchscript", None, status="unsupported: no"),
        measured_row("onnx_fp32", "model.onnx", **changes),
        measured_row("onnx_int8", "model_int8.onnx", speedup={"ratio": 2.0, "ci95": None}),
    ]
    report = {
        "command": "python phase4_deployment/export_all.py",
        "created": "2026-01-31T12:00:00+00:00",
        "environment": {"device_name": "a CPU", "threads": 2, "packages": {"torch": "2.15.0"}},
        "inputs": {},
        "val_images": len(images),
        "tried_in": {"clean": reason is None, "reason": reason},
        "latency_budget_ms": 100.0,
        "max_proposals": {"model": 1000, "exported": proposals},
    }
    package_files.write_small_files(folder, exported.loaded, rows, report, images)


def unpack(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    (package,) = folder.iterdir()
    return package


def run_detect(python: Path, package: Path, *arguments: str | Path, cwd: Path) -> SimpleNamespace:
    """Runs the package isolated (-I): neither the working folder nor PYTHONPATH is searched."""
    command = [str(python), "-I", "-B", str(package / "detect.py"), *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    return SimpleNamespace(status=done.returncode, out=done.stdout, error=done.stderr.strip())
